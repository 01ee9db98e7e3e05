"""What tokenised rows of every kind have in common: they are ok, or there is a problem with them."""

from probing.types import Problem, Status


class TokenizedRow:
    """A row with its problem, or with none."""

    __slots__ = ()
    problem: Problem | None

    @property
    def status(self) -> Status:
        """Status of the problem; "ok" where there is none."""
        return "ok" if self.problem is None else self.problem.status

    @property
    def detail(self) -> str:
        """Detail of the problem; nothing where there is none."""
        return "" if self.problem is None else self.problem.detail
