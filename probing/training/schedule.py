"""At which steps of a training run something is measured."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from probing.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """The steps at which a callback measures; the last one of the run always belongs to them.

    Args:
        every: a whole number N of at least 1, for every N-th step; a number between 0 and 1, for a share of the run,
            as .1 for ten times; or the numbers of the steps themselves.

    Raises:
        UsageError: none of these, such as 0, a negative number, or no steps at all.
    """

    every: int | float | Collection[int]

    def __post_init__(self) -> None:
        if isinstance(self.every, Collection):
            steps = list(self.every)
            if not steps or any(isinstance(step, bool) or not isinstance(step, int) or step < 1 for step in steps):
                raise UsageError(f"every must name whole steps from 1 on, not {self.every!r:.60}")
        elif isinstance(self.every, bool) or not isinstance(self.every, int | float) or not self._is_interval():
            raise UsageError(
                f"every is {self.every!r}; give a whole number of steps from 1 on, a share of the run between 0 and 1, "
                f"or a list of steps"
            )

    def _is_interval(self) -> bool:
        whole = float(self.every).is_integer()  # type: ignore[arg-type]
        return self.every >= 1 if whole else 0 < self.every < 1  # type: ignore[operator]

    def is_due(self, step: int, last: int) -> bool:
        """Whether it is measured after a step.

        Args:
            step: number of optimizer steps that are done.
            last: number of steps of the whole run; 0 or less where it is not known.
        """
        if last > 0 and step >= last:
            return True
        if isinstance(self.every, Collection):
            return step in self.every
        # A share is rounded up, as the library does for its own intervals; .07 of 100 steps are 7, not 8.
        interval = self.every if self.every >= 1 else math.ceil(round(max(last, 1) * self.every, 6))
        return step % int(interval) == 0
