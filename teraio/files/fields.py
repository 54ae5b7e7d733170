"""The members of JSON objects, taken out with their types checked; and records as JSON objects.

In: JSON values, and what they must be. Out: values of these types, or a Fault that says where.
Must not know: which records there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from teraio.files.fault import fail

MAX_INT = (1 << 63) - 1
_MAX_RATE = 1e15

Value = TypeVar("Value")


class Fields:
    """A JSON object whose members are taken out one by one, each with its type checked."""

    def __init__(
        self,
        value: object,
        where: str,
        names: tuple[str, ...],
        later: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """``later`` are members of ``names`` that older versions lack, and what they are there."""
        if not isinstance(value, dict):
            fail(f"{where} is not an object")
        value = {**later, **value}
        if value.keys() != set(names):
            odd = sorted(value.keys() ^ set(names))
            fail(f"{where} has missing or unknown members: {', '.join(odd)[:80]}")
        self._value: dict[str, Any] = value
        self.where = where

    def _bad(self, name: str, what: str) -> NoReturn:
        fail(f"{self.where}.{name} is not {what}")

    def part(self, name: str, read: Callable[[object, str], Value]) -> Value:
        """What ``read(value, where)`` makes of the member."""
        return read(self._value[name], f"{self.where}.{name}")

    def text(self, name: str) -> str:
        value = self._value[name]
        if type(value) is not str:
            self._bad(name, "a text")
        return value

    def one_of(self, name: str, names: tuple[str, ...]) -> Any:
        value = self._value[name]
        if type(value) is not str or value not in names:
            self._bad(name, f"one of {', '.join(names)}")
        return value

    def integer(self, name: str) -> int:
        value = self._value[name]
        if type(value) is not int or not 0 <= value <= MAX_INT:
            self._bad(name, f"an integer from 0 to {MAX_INT}")
        return value

    def number(self, name: str, above_zero: bool = False) -> float:
        value = self._value[name]
        if type(value) not in (int, float) or not 0 <= value <= 1e300:
            self._bad(name, "a number from 0 on")
        if above_zero and value == 0:
            self._bad(name, "a number above 0")
        return float(value)

    def share(self, name: str, above_zero: bool = False) -> float:
        share = self.number(name, above_zero)
        if share > 1:
            fail(f"{self.where}.{name} is above 1")
        return share

    def rate(self, name: str) -> float:
        """Bytes per second; so slow or fast that clocks stand still is no rate of a drive."""
        rate = self.number(name, above_zero=True)
        if not 1 <= rate <= _MAX_RATE:
            fail(f"{self.where}.{name} is not between 1 and {_MAX_RATE:.0e} bytes/s")
        return rate

    def flag(self, name: str) -> bool:
        value = self._value[name]
        if type(value) is not bool:
            self._bad(name, "true or false")
        return value

    def optional(self, name: str, read: Callable[[str], Value]) -> Value | None:
        return None if self._value[name] is None else read(name)

    def items(self, name: str, read: Callable[[object, str], Value]) -> tuple[Value, ...]:
        value = self._value[name]
        if type(value) is not list:
            self._bad(name, "a list")
        where = f"{self.where}.{name}"
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))

    def texts(self, name: str) -> list[str]:
        return self._column(name, lambda column: _are(column, str), "a list of texts")

    def names(self, name: str, names: tuple[str, ...]) -> list[Any]:
        texts = self.texts(name)
        if not set(texts) <= set(names):
            self._bad(name, f"a list of {', '.join(names)}")
        return texts

    def flags(self, name: str) -> list[bool]:
        return self._column(name, lambda column: _are(column, bool), "a list of flags")

    def integers(self, name: str, least: int = 0, most: int = MAX_INT) -> list[int]:
        def right(column: list[Any]) -> bool:
            return _are_integers(column, least, most)

        return self._column(name, right, f"a list of integers from {least} to {most}")

    def optional_integers(self, name: str, least: int, most: int) -> list[int | None]:
        def right(column: list[Any]) -> bool:
            return _are_integers([value for value in column if value is not None], least, most)

        return self._column(name, right, f"a list of integers from {least} to {most} or null")

    def _column(self, name: str, right: Callable[[list[Any]], bool], what: str) -> list[Any]:
        value = self._value[name]
        if type(value) is not list or not right(value):
            self._bad(name, what)
        return value

    def same_length(self, *columns: list[Any]) -> None:
        if len({len(column) for column in columns}) > 1:
            fail(f"{self.where} has columns of different lengths")


def _are(column: list[Any], kind: type) -> bool:
    return set(map(type, column)) <= {kind}  # exactly: a flag is no integer


def _are_integers(column: list[Any], least: int, most: int) -> bool:
    return _are(column, int) and (not column or (min(column) >= least and max(column) <= most))


def objects_of(items: tuple[Any, ...], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One object for each item, with its attributes of these names."""
    return [{name: getattr(item, name) for name in names} for item in items]


def columns_of(items: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, list[Any]]:
    """One list for each name, with that attribute of all items."""
    return {name: [getattr(item, name) for item in items] for name in names}
