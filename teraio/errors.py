"""The errors that teraio raises.

In: nothing. Out: exception types. Must not know: torch or any other module of teraio.
"""

from __future__ import annotations


class TeraioError(RuntimeError):
    """Base of all errors of teraio. The message names what, where and the remedy."""


class ConfigurationError(TeraioError, ValueError):
    """An argument or a setting can't be used as it is given."""


class BudgetError(TeraioError):
    """The memory budget can't be kept: something needs more at once than the budget holds."""


class SpillError(TeraioError):
    """A spill folder can't be used, or reading or writing a spill file failed. No data was lost."""


class FileFormatError(TeraioError, ValueError):
    """A trace, plan, report or weights file is damaged, of another kind or an unknown version."""


class PlanError(TeraioError):
    """A plan breaks one of its own rules (found by the validator)."""
