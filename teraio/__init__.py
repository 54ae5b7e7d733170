"""teraio trains PyTorch models under a memory budget: inactive storages move to SSD files and back.

In: names asked for by users. Out: the public functions, records and errors, each loaded when it
is first used, so that ``import teraio`` is quick. Must not know: torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from teraio.api import iteration, offload, profile, report, resident, restore
    from teraio.errors import (
        BudgetError,
        ConfigurationError,
        FileFormatError,
        PlanError,
        SpillError,
        TeraioError,
    )
    from teraio.records import Hardware, Plan, RunReport, StepReport, Trace

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "ConfigurationError",
    "FileFormatError",
    "Hardware",
    "Plan",
    "PlanError",
    "RunReport",
    "SpillError",
    "StepReport",
    "TeraioError",
    "Trace",
    "__version__",
    "iteration",
    "offload",
    "profile",
    "report",
    "resident",
    "restore",
]

_MODULE_OF = {
    "BudgetError": "teraio.errors",
    "ConfigurationError": "teraio.errors",
    "FileFormatError": "teraio.errors",
    "Hardware": "teraio.records",
    "Plan": "teraio.records",
    "PlanError": "teraio.errors",
    "RunReport": "teraio.records",
    "SpillError": "teraio.errors",
    "StepReport": "teraio.records",
    "TeraioError": "teraio.errors",
    "Trace": "teraio.records",
    "iteration": "teraio.api",
    "offload": "teraio.api",
    "profile": "teraio.api",
    "report": "teraio.api",
    "resident": "teraio.api",
    "restore": "teraio.api",
}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'teraio' has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
