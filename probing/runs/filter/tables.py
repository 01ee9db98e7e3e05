"""Tables of ``probing filter``."""

from collections.abc import Sequence

import pandas as pd

from probing.report.tables import quantiles
from probing.types import Report


def make_report(frame: pd.DataFrame, ids: Sequence[str], kept: Sequence[bool], by: str) -> Report:
    """Counts of the rows by status, and quantiles of the score of all, kept and dropped rows; nothing is written yet.

    Args:
        frame: the scores.
        ids: ids of the rows of the dataset.
        kept: whether each of them is kept.
        by: the score that they were filtered by.
    """
    keep = dict(zip(ids, kept, strict=True))
    fate = frame["id"].map(keep).map({True: "kept", False: "dropped"})
    counts = pd.crosstab(frame["status"], fate).reindex(columns=["kept", "dropped"], fill_value=0)
    parts = {"all": frame, "kept": frame[fate == "kept"], "dropped": frame[fate == "dropped"]}
    spread = pd.concat([quantiles(part, [by]).assign(score=name) for name, part in parts.items()], ignore_index=True)
    facts = {"by": by, "kept": sum(kept), "dropped": len(kept) - sum(kept)}
    counts = counts.rename_axis(columns=None).reset_index()
    return Report({"Pairs": counts, f"Quantiles: {by}": spread.rename(columns={"score": "rows"})}, facts)
