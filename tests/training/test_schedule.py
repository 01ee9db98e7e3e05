import pytest

from probing.errors import UsageError
from probing.training.schedule import Schedule


@pytest.mark.parametrize(
    ("every", "last", "due"),
    [
        (4, 10, [4, 8, 10]),
        (0.25, 10, [3, 6, 9, 10]),
        (0.07, 100, [*range(7, 100, 7), 100]),
        ([1, 5], 10, [1, 5, 10]),
        ((7,), 0, [7]),
        (1.0, 3, [1, 2, 3]),
        (50, 10, [10]),
    ],
)
def test_steps_that_are_due(every, last, due):
    schedule = Schedule(every)
    assert [step for step in range(1, (last or 10) + 1) if schedule.is_due(step, last)] == due


@pytest.mark.parametrize("every", [0, -3, 1.5, 0.0, True, "often", [], [0], [2.5], None, float("nan")])
def test_what_is_no_interval(every):
    with pytest.raises(UsageError, match="every"):
        Schedule(every)
