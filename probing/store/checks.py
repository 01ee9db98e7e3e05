"""What a value read from a file must be, before anything in it is believed."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from probing.types import Place

Check = Callable[[Any, str], None]
"""Raises ``ValueError`` with the place of the value and what is wrong with it."""


def is_anything(value: Any, where: str) -> None:
    """Whatever stands there."""


def is_text(value: Any, where: str) -> None:
    """Text."""
    _expect(isinstance(value, str), where, "text", value)


def is_cell(value: Any, where: str) -> None:
    """A value that a table can hold: no list and no object, and of texts those that can be encoded."""
    plain = isinstance(value, str) and value.encode(errors="replace").decode() == value
    small = type(value) is not int or abs(value) < 2**63
    _expect(plain or (small and isinstance(value, int | float | None)), where, "a cell of a table", value)


def is_count(value: Any, where: str) -> None:
    """A whole number that is not negative."""
    _expect(type(value) is int and 0 <= value < 2**63, where, "a count", value)


def is_positive(value: Any, where: str) -> None:
    """A whole number above 0."""
    _expect(type(value) is int and 0 < value < 2**63, where, "a whole number above 0", value)


def is_amount(value: Any, where: str) -> None:
    """A finite number that is not negative."""
    good = type(value) in (int, float) and 0 <= value < 2**63
    _expect(good, where, "a number that is not negative", value)


def is_hash(value: Any, where: str) -> None:
    """SHA-256 in hexadecimal digits."""
    _expect(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None, where, "a SHA-256", value)


def is_file_name(value: Any, where: str) -> None:
    """Name of a file in the folder itself: never a path that leads elsewhere."""
    good = isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value, re.ASCII) is not None
    _expect(good, where, "the name of a file in the folder", value)


def is_place(value: Any, where: str) -> None:
    """A place in a model, with its layer counted from 0."""
    try:
        place = Place.parse(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from error
    _expect(str(place) == value and (place.layer is None or place.layer >= 0), where, "a place", value)


def is_one_of(*values: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, str) and value in values, where, f"one of {', '.join(values)}", value)

    return check


def is_none_or(check: Check) -> Check:
    """Nothing, or what passes the check."""

    def check_unless_none(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_unless_none


def is_list(each: Check) -> Check:
    """A list, every entry of which passes the check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, list), where, "a list", value)
        for number, entry in enumerate(value):
            each(entry, f"{where}[{number}]")

    return check


def is_mapping(each: Check, key: Check = is_text) -> Check:
    """An object, every value and every key of which passes its check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), where, "an object", value)
        for name, entry in value.items():
            key(name, where)
            each(entry, _join(where, name))

    return check


def check_object(needed: Mapping[str, Check], further: Mapping[str, Check] = {}, closed: bool = False) -> Check:
    """An object with these keys.

    Args:
        needed: checks of the keys that must be there.
        further: checks of keys that may be there.
        closed: whether there may be no others.
    """

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), where, "an object", value)
        missing = [name for name in needed if name not in value]
        if missing:
            raise ValueError(f"{where + ': ' if where else ''}{', '.join(missing)} missing")
        unknown = [name for name in value if name not in needed and name not in further]
        if closed and unknown:
            raise ValueError(f"{where + ': ' if where else ''}{', '.join(unknown)} unknown")
        for name, each in {**needed, **further}.items():
            if name in value:
                each(value[name], _join(where, name))

    return check


def _expect(good: bool, where: str, wanted: str, value: Any) -> None:
    if not good:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise ValueError(f"{where or 'the whole'}: expected {wanted}, found {shown[:60]}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
