"""What the card of a filtered dataset tells, and the picture of the score that it was filtered by."""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.filters import check_rule, find_threshold
from probing.instruments.columns import INFLUENCE_COLUMNS, KEEP_LOWEST, RATE_COLUMNS, SCORE_COLUMNS
from probing.report.filter_card import FilterCard
from probing.report.pair_titles import TITLES
from probing.report.plot_page import make_plots
from probing.report.plots import draw_filter
from probing.runs.common.about import describe_now, today, write_command
from probing.runs.common.provenance import list_data, list_models, list_versions, name_source
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.rows import Filtered
from probing.types import PreferencePair, Report

MODELS = ("model", "reference", "policy", "adapter", "steps")
"""Options of a scoring that name models."""
EXAMPLES = 3
_TOGETHER = "when all pairs are trained on together"
INFLUENCE_MEANINGS = {
    "influence": "Lower means that training on the pair lowers the target more.",
    "joint_rate": f"Lower means that the chosen response is expected to lose more {_TOGETHER}.",
    "joint_rejected_rate": f"Lower means that the rejected response is expected to lose more {_TOGETHER}.",
    "pilot_influence": "Lower means that training on the pair lowers the target more, averaged over a pilot.",
    "pilot_change": "Lower means that the chosen response lost more in a few steps of training on all pairs together.",
    "pilot_rejected_change": "Lower means that the rejected response lost more in a few such steps.",
}
"""What a column of an influence run says of a pair, by its name."""


def make_card(
    config: FilterConfig,
    reading: FilterConfig,
    filtered: Filtered,
    facts: Mapping[str, Any],
    report: Report,
    named: str,
) -> FilterCard:
    """What the card tells.

    Args:
        config: the options as they were given.
        reading: the options with those of the scoring for how the data are read.
        filtered: the rows with their scores.
        facts: record of the scoring.
        report: counts and quantiles.
        named: name of the output, as it is shown.
    """

    counts, spread = report.tables.values()
    mask, values = filtered.kept, filtered.scores.values

    def read(rows: list[int]) -> list[tuple[PreferencePair, float]]:
        return [(filtered.pairs[row], float(values[row])) for row in rows]

    chosen = _choose_examples(values, mask, check_rule(**config.rule)[0])
    # Without the slash the same command would write a file where there is no folder yet.
    out = f"{named.rstrip('/')}/"
    return FilterCard(
        folder=config.target.name,
        title=", ".join(map(name_source, config.sources)),
        source=", ".join(config.sources),
        data=list_data(reading, filtered.table),
        models=list_models(facts),
        by=config.column,
        meaning=_tell_meaning(config.column),
        rule=check_rule(**config.rule),
        threshold=find_threshold(values, mask),
        bad=(config.bad, int((filtered.scores.status != "ok").sum())),
        counts=counts,
        spread=spread,
        examples={title: read(rows) for title, rows in chosen.items()},
        command=f"{write_command('filter', config)} --out {shlex.quote(out)}",
        versions=list_versions(facts),
        date=today(),
    )


def _choose_examples(values: NDArray[np.float64], kept: NDArray[np.bool_], rule: str) -> dict[str, list[int]]:
    """Rows to show: of those dropped the farthest from the threshold, of those kept the nearest to it."""
    low = rule in ("keep_lowest", "drop_highest", "below")
    order = np.argsort(-values if low else values, kind="stable")
    order = order[np.isfinite(values[order])]
    return {
        f"Dropped, with the {'highest' if low else 'lowest'} scores": order[~kept[order]][:EXAMPLES].tolist(),
        "Kept, nearest to the threshold": order[kept[order]][:EXAMPLES].tolist(),
    }


def _tell_meaning(by: str) -> str:
    if by in SCORE_COLUMNS:
        return "Higher means that the two responses are more alike to the model."
    if by in KEEP_LOWEST:
        return "Higher means that the chosen response is expected to lose more."
    if by in RATE_COLUMNS:
        return "Lower means that the chosen response is expected to lose more."
    if by in INFLUENCE_COLUMNS:
        return INFLUENCE_MEANINGS[by]
    return f"It is the {TITLES[by]}." if by in TITLES and "_change" in by else ""


def draw_page(
    config: FilterConfig, scores: NDArray[np.float64], kept: NDArray[np.bool_], used: Mapping[str, Any]
) -> str | None:
    """A page with the distribution of the score.

    Args:
        config: the options.
        scores: the score of each pair, NaN where there is none, [pair].
        kept: whether each pair is kept, [pair].
        used: options of the scoring.
    """
    name, value = check_rule(**config.rule)
    at = value if name in ("below", "above") else find_threshold(scores, kept)
    mark = None if at is None else (at, f"--{name.replace('_', '-')} {value:g}")
    # Options in a record are not believed: they are shown.
    models = {kind: str(used[kind]) for kind in MODELS if used.get(kind)}
    about = describe_now("filter", config, **models, data=config.sources)
    figures = draw_filter(scores, kept, config.column, mark)
    return make_plots(figures, about, config.interactive) if figures else None
