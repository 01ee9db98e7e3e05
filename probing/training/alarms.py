"""Thresholds on what a callback measures: an alarm goes off when the whole interval of a number is beyond one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from probing.errors import UsageError
from probing.statistics.intervals import CONFIDENCE
from probing.types import Estimate

OnAlarm = Literal["warn", "stop", "save"]
ON_ALARM: tuple[OnAlarm, ...] = ("warn", "stop", "save")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Alarm:
    """A threshold of one number.

    Attributes:
        column: name of the number, without "probing/".
        above: whether the alarm goes off above the threshold; otherwise below it.
        threshold: the number that the interval has to be beyond.
    """

    column: str
    above: bool
    threshold: float

    def __str__(self) -> str:
        return f"{self.column} {'>' if self.above else '<'} {self.threshold:g}"

    def goes_off(self, measured: Estimate) -> bool:
        """Whether the whole 95 % interval is beyond the threshold; never where there is no interval."""
        return measured.low > self.threshold if self.above else measured.high < self.threshold


def read_alarms(alarms: Mapping[str, str] | None, columns: Mapping[str, bool]) -> list[Alarm]:
    """Alarms from texts such as ``{"share_displaced": "> 0.2"}``.

    Args:
        alarms: a threshold by name of a number; None for no alarms.
        columns: the numbers that are measured, and whether each has an interval.

    Raises:
        UsageError: a number that is not measured or has no interval, or a threshold that is no "> X" or "< X".
    """
    found = []
    for column, text in (alarms or {}).items():
        name = column.removeprefix("probing/")
        if name not in columns:
            raise UsageError(f"alarms: '{name}' is not measured; there are {', '.join(columns)}")
        if not columns[name]:
            able = ", ".join(known for known, interval in columns.items() if interval)
            raise UsageError(
                f"alarms: '{name}' has no interval, so that noise could not be told from a change; there are {able}"
            )
        match = re.fullmatch(rf"\s*([<>])=?\s*({NUMBER})\s*", text) if isinstance(text, str) else None
        if match is None:
            raise UsageError(f"alarms: the threshold of '{name}' is {text!r}; write it as '> 0.2' or '< 0'")
        found.append(Alarm(name, match[1] == ">", float(match[2])))
    return found


def explain_silence(alarm: Alarm, rows: int, is_share: bool) -> str | None:
    """Why an alarm can never go off with so few rows, in words; None if it can.

    Args:
        alarm: the alarm.
        rows: number of pairs or prompts that the number is estimated from.
        is_share: whether the number is a share of them.
    """
    if rows < 2:
        return f"the alarm '{alarm}' cannot go off: an interval needs at least 2 rows, and there is {rows}"
    if not is_share:
        return None
    # Clopper and Pearson's interval where all rows have the property, or none.
    farthest = ((1 - CONFIDENCE) / 2) ** (1 / rows)
    reachable = farthest > alarm.threshold if alarm.above else 1 - farthest < alarm.threshold
    if reachable:
        return None
    ends = f"{farthest:.2f} of all" if alarm.above else f"{1 - farthest:.2f} of none"
    return (
        f"the alarm '{alarm}' cannot go off with {rows} rows: at the most extreme, where all rows agree, the interval "
        f"of the share ends at {ends}; give more rows or another threshold"
    )
