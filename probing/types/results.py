"""What a job answers: numbers with their intervals, where they come from, tables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probing.shown import LONGEST_CELL, LONGEST_FIELD, LONGEST_MESSAGE, LONGEST_REPR, Shown, to_message, to_page_text

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


SHOWN_DIGITS = 8
"""How much of a hash is shown."""
SHOWN_ROWS = 60
"""Rows of a table that a notebook shows."""


@dataclass(frozen=True, slots=True, repr=False)
class Source(Shown):
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

    def shown_facts(self) -> Mapping[str, object]:
        """The model, and the beginnings of the hashes."""
        hashes = {name: getattr(self, f"{name}_sha256") for name in ("weights", "config", "tokenizer", "template")}
        hashes["adapter"] = self.adapter_sha256
        given = {name: str(digest)[:SHOWN_DIGITS] for name, digest in hashes.items() if digest is not None}
        return {"model": self.model, **({"revision": self.revision} if self.revision else {}), **given}


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a job.

    Attributes:
        tables: tables by title.
        facts: facts of the run: the content of ``run.json``.
        text: what the command line prints in place of the tables, if anything.
        exit_status: status with which the command line leaves once it has printed: 1 where a check that was asked for
            did not hold.
    """

    tables: Mapping[str, "pandas.DataFrame"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    exit_status: int = 0

    def __repr__(self) -> str:
        shapes = [
            f"'{to_message(re.split('[,:(]', title)[0].strip(), LONGEST_FIELD)}': {len(table)} x {table.shape[1]}"
            for title, table in self.tables.items()
        ]
        return to_message(f"Report({'; '.join(shapes)})", LONGEST_REPR)

    def _repr_html_(self) -> str:
        """All tables, for notebooks."""
        return "\n".join(
            f"<h4>{to_page_text(title)}</h4>\n{_write_html(table)}" for title, table in self.tables.items()
        )


def _write_html(table: "pandas.DataFrame") -> str:
    """The beginning of a table as HTML, with its texts on one line each; pandas escapes the markup in them."""
    import pandas as pd

    # Sentences of a column of its own are not cut.
    longest = LONGEST_MESSAGE if table.shape[1] == 1 else LONGEST_CELL
    shown = table.head(SHOWN_ROWS).rename(columns=lambda name: to_message(name, LONGEST_CELL))
    for at in range(shown.shape[1]):
        if not pd.api.types.is_numeric_dtype(shown.iloc[:, at]):
            cells = [to_message(cell, longest) if isinstance(cell, str) else cell for cell in shown.iloc[:, at]]
            shown.isetitem(at, cells)
    with pd.option_context("display.max_colwidth", None):
        page = shown.to_html(index=False, float_format="{:.4g}".format)
    more = len(table) - len(shown)
    return f"{page}\n<p>{more} more rows</p>" if more else page
