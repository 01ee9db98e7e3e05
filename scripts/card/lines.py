"""Figures as JSON lines: printed at once, and appended to a file that can be committed."""

import json
import math
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGNIFICANT = 5
LAST_FRAMES = 6


def rounded(value: Any) -> Any:
    """Numbers to five significant digits, within lists and dicts too; NaN and infinity in words, as JSON has none."""
    if isinstance(value, dict):
        return {str(key): rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else str(value)


def end_of(error: BaseException) -> dict[str, Any]:
    """What went wrong and the last lines of its traceback, for one line of output."""
    text = "".join(traceback.format_exception(error)).splitlines()
    return {"failed": f"{type(error).__name__}: {error}"[:2000], "traceback": text[-2 * LAST_FRAMES :]}


@dataclass
class Lines:
    """Where the lines go.

    Attributes:
        path: the file that they are appended to.
        written: every line so far, as a dict.
    """

    path: Path
    written: list[dict[str, Any]] = field(default_factory=list)

    def say(self, stage: str, **facts: Any) -> None:
        """Print one line, flushed at once, and append it to the file."""
        line = {"stage": stage, **rounded(facts)}
        self.written.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def note(self, text: str) -> None:
        """Progress for a person, on stderr; no figure."""
        print(f"on_card: {text}", file=sys.stderr, flush=True)
