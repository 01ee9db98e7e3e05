"""Axes of pictures: where a value lies, and ticks at numbers that a reader would write."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probing.report.layout import shorten

LARGEST = 1e300
"""Values beyond it are drawn as infinite ones are: the width of their range would be no number."""
SMALLEST = 1e-290
NEAR = 1e-6
"""Share of an axis by which a value may lie beyond its end, as the end of a bar does that is made from its middle."""
TICKS = 6
ROOM = 0.04
"""Share of a range that is left free at both of its ends."""
NAME_WIDTH = 28


@dataclass(frozen=True)
class Axis:
    """One axis of a picture.

    Attributes:
        kind: how values are laid out.
        low: the value at its beginning; of a logarithmic axis its common logarithm.
        high: the value at its end.
        ticks: values with the texts beside them.
        names: names of the categories, in order.
    """

    kind: Literal["linear", "log", "category"]
    low: float
    high: float
    ticks: Sequence[tuple[Any, str]]
    names: Mapping[str, int]

    def locate(self, value: Any) -> float:
        """Where a value lies: 0 at the beginning, 1 at the end; NaN for one that cannot be drawn."""
        if self.kind == "category":
            at = float(self.names.get(str(value), math.nan))
        else:
            at = to_number(value, infinite=True)
            if self.kind == "log":
                at = math.log10(at) if at > 0 else math.nan
        share = (at - self.low) / (self.high - self.low)
        return share if -NEAR <= share <= 1 + NEAR else math.nan

    def clamp(self, value: Any) -> float:
        """The same of an end of an interval, which may lie beyond the picture; NaN only for NaN."""
        number = to_number(value, infinite=True)
        if math.isnan(number):
            return math.nan
        share = self.locate(number)
        if math.isnan(share):
            # Of a logarithmic axis: nothing that is not positive lies on it, so it is below.
            share = 1.0 if number > (10**self.high if self.kind == "log" else self.high) else 0.0
        return min(max(share, 0.0), 1.0)

    @property
    def has_zero(self) -> bool:
        """Whether zero lies inside the picture."""
        return self.kind == "linear" and self.low < 0 < self.high


def to_number(value: Any, infinite: bool = False) -> float:
    """A value as a number; NaN for what is none, and for what is too large to be drawn unless ``infinite``."""
    number = math.nan if value is None or isinstance(value, str) else float(value)
    return number if infinite or abs(number) <= LARGEST else math.nan


def make_axis(
    given: Mapping[str, Any], values: Iterable[Any], whole: bool = False, room: float = ROOM, most: int = TICKS
) -> Axis:
    """The axis over values.

    Args:
        given: ``xaxis`` or ``yaxis`` of a figure's layout.
        values: everything that is to lie on it; what is no number, NaN or infinite has no place on an axis of numbers.
        whole: whether the values are counts, so that ticks stand at whole numbers.
        room: share of the range that is left free at both ends.
        most: about the largest number of ticks.
    """
    found = list(values)
    if given.get("type") == "category" or any(isinstance(value, str) for value in found):
        return _make_categories(given, found)
    known = [number for number in map(to_number, found) if math.isfinite(number)]
    if given.get("type") == "log":
        return _make_log(given, [number for number in known if number > 0])
    low, high = _widen(min(known, default=0.0), max(known, default=1.0))
    span = high - low
    # Room below is left only where values reach there: bars stand on the axis.
    low, high = low - room * span if low != 0 else low, high + room * span if high != 0 else high
    low, high = _widen(*(float(end) for end in given.get("range", (low, high))))
    shown = given.get("tickvals") or choose_ticks(low, high, whole, most)
    texts = given.get("ticktext") or write_numbers([float(value) for value in shown])
    ticks = [(value, text) for value, text in zip(shown, texts, strict=True) if low <= float(value) <= high]
    return Axis("linear", low, high, ticks, {})


def _make_categories(given: Mapping[str, Any], values: Iterable[Any]) -> Axis:
    names = [str(name) for name in given.get("categoryarray") or dict.fromkeys(map(str, values))]
    shown = given.get("tickvals") or names
    texts = given.get("ticktext") or [shorten(str(name), NAME_WIDTH) for name in shown]
    order = {name: number for number, name in enumerate(names)}
    return Axis("category", -0.5, max(len(names), 1) - 0.5, list(zip(shown, texts, strict=True)), order)


def _make_log(given: Mapping[str, Any], known: Sequence[float]) -> Axis:
    low, high = math.log10(min(known, default=1.0)), math.log10(max(known, default=10.0))
    room = max(ROOM * (high - low), 0.05)
    low, high = low - room, high + room
    shown = [float(tick) for tick in given.get("tickvals", ())]
    texts = given.get("ticktext") or write_numbers(shown)
    inside = [(tick, text) for tick, text in zip(shown, texts, strict=True) if low <= math.log10(tick) <= high]
    # Between two decades there may be hardly a tick: one stands at either end then.
    ends = [(10**end, f"{10**end:.3g}") for end in (low, high)]
    return Axis("log", low, high, inside if len(inside) > 1 else ends, {})


def _widen(low: float, high: float) -> tuple[float, float]:
    """The range, made wide enough to be drawn where values are all but equal."""
    size = max(abs(low), abs(high))
    if size < SMALLEST:
        return (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    if high - low <= 1e-9 * size:
        return (low - 0.1 * size, high + 0.1 * size)
    return low, high


def round_up(width: float) -> float:
    """The next of the numbers 1, 2 and 5, with any power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= width * (1 - 1e-9))


def choose_ticks(low: float, high: float, whole: bool = False, most: int = TICKS) -> list[float]:
    """Round numbers between two ends, at most one more than ``most``.

    Args:
        low: lower end.
        high: upper end, greater.
        whole: only whole numbers.
        most: largest number of steps between the ends.
    """
    step = round_up((high - low) / most)
    step = max(step, 1.0) if whole else step
    digits = max(0, -math.floor(math.log10(step)))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    # A product such as 3 * 0.1 is not the nearest number to 0.3; zero has no sign.
    return [round(number * step, digits) + 0.0 for number in numbers]


def write_numbers(values: Sequence[float]) -> list[str]:
    """Each number in as few digits as tell it from the others."""
    for digits in (6, 9, 12, 17):
        texts = [write_number(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def write_number(value: float, digits: int = 6) -> str:
    """A number in so many digits, thousands apart: 12,000, 0.25, 1e-07."""
    whole = value == round(value) and 1e6 <= abs(value) < 1e7
    return f"{value:,.0f}" if whole else f"{value:,.{digits}g}"
