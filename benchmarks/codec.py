"""Frozen dataclasses as JSON values, and back, by their annotations.

In: records of this package. Out: plain values. Must not know: which records there are.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def encode(record: Any) -> dict[str, Any]:
    return asdict(record)


def decode(kind: type[Record], value: dict[str, Any]) -> Record:
    """Raises ValueError when ``value`` lacks a field that has no default, or has one too many.

    So what was written before a field was added is read on.
    """
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]
    needed = {field.name for field in known if field.default is MISSING}
    wrong = (needed - value.keys()) | (value.keys() - {field.name for field in known})
    if wrong:
        raise ValueError(f"{kind.__name__}: the fields {sorted(wrong)} differ")
    return kind(**{name: _decoded(hints[name], part) for name, part in value.items()})


def _decoded(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is tuple:
        return tuple(_decoded(get_args(hint)[0], item) for item in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value)
    return value
