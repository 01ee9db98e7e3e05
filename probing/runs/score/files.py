"""The plots of ``probing score``."""

import pandas as pd

from probing.data.filters import find_threshold, make_keep_mask
from probing.instruments.columns import LIKELIHOOD_COLUMNS, RATE_COLUMNS, SCORE_COLUMNS
from probing.report.plot_page import write_plots
from probing.report.plots import draw_scores
from probing.runs.common.about import describe_run
from probing.runs.score.config import PLOTS_FILE, SUGGESTED_DROP, ScoreConfig
from probing.runs.score.tables import BY, STATE_SUMS, has_one_token
from probing.store.manifest import RunFolder

AXES = {
    **{name: f"{name} (higher: the responses look more alike to the model)" for name in SCORE_COLUMNS},
    **{name: name for name in LIKELIHOOD_COLUMNS if name != "ranking_correct"},
    **{f"{side}_logprob": f"ln p({side}), nats" for side in ("chosen", "rejected")},
    **{f"{side}_logprob_per_token": f"ln p({side}) per token, nats" for side in ("chosen", "rejected")},
    **{name: f"{name} (below 0: training on the pair pushes ln p(chosen) down)" for name in RATE_COLUMNS},
}
"""What each column holds, for the axis of its histogram."""


def write_pages(folder: RunFolder, config: ScoreConfig, frame: pd.DataFrame) -> list[str]:
    """Draw the distribution of every column; returns the names of the files."""
    if not (frame["status"] == "ok").any():
        return []
    short = has_one_token(frame)
    ranked = frame.assign(**{name: frame[name].mask(short) for name in STATE_SUMS if name in frame})
    axes = {name: axis for name, axis in AXES.items() if name in frame}
    threshold = find_suggested_threshold(frame) if BY in axes else None
    marks = {} if threshold is None else {BY: (threshold, f"--drop-highest {SUGGESTED_DROP:g}")}
    about = describe_run(folder, config, model=config.model, data=config.sources)
    figures = draw_scores(ranked, axes, marks)
    return [PLOTS_FILE] if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive) else []


def find_suggested_threshold(frame: pd.DataFrame) -> float | None:
    """The score between the pairs that the suggested filter keeps and those that it drops, if it drops any."""
    good = frame[frame["status"] == "ok"]
    kept = make_keep_mask(good["id"].tolist(), good[BY].tolist(), drop_highest=SUGGESTED_DROP)
    return find_threshold(good[BY].to_numpy(), kept)
