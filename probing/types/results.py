"""What a job answers: numbers with their intervals, where they come from, tables."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: rows that it was made from.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Source:
    """The model that a number was computed from, by content: two sources are equal only if their hashes are.

    Attributes:
        model: folder or hub id, as given.
        revision: the hub revision asked for.
        weights_sha256: over the weight files; None for a model handed over in memory.
        config_sha256: over the model's config, and over code that the checkpoint brings.
        tokenizer_sha256: over the tokenizer's own serialisation and its special tokens.
        template_sha256: over the chat template; None where there is none.
        adapter_sha256: over weights and config of an adapter on top; None where there is none.
    """

    model: str
    revision: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    adapter_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a job.

    Attributes:
        tables: tables by title.
        facts: facts of the run: the content of ``run.json``.
        text: what the command line prints in place of the tables, if anything.
    """

    tables: Mapping[str, "pandas.DataFrame"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    def __repr__(self) -> str:
        shapes = [f"{title!r}: {len(table)} x {table.shape[1]}" for title, table in self.tables.items()]
        return f"Report({'; '.join(shapes)})"

    def _repr_html_(self) -> str:
        """All tables, for notebooks."""
        return "\n".join(
            f"<h4>{html.escape(title)}</h4>\n{table.to_html(index=False, float_format='{:.4g}'.format)}"
            for title, table in self.tables.items()
        )
