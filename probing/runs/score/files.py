"""The plots of ``probing score``."""

import pandas as pd

from probing.report.pair_titles import SCORED, TITLES, mask_one_token
from probing.report.plot_page import write_plots
from probing.report.plots import draw_scores
from probing.runs.common.about import describe_run
from probing.runs.score.config import PLOTS_FILE, SUGGESTED_DROP, ScoreConfig
from probing.runs.score.tables import BY, find_suggested_threshold
from probing.store.manifest import RunFolder


def write_pages(folder: RunFolder, config: ScoreConfig, frame: pd.DataFrame) -> list[str]:
    """Draw the distribution of every column; returns the names of the files."""
    if not (frame["status"] == "ok").any():
        return []
    ranked = mask_one_token(frame)
    axes = {name: TITLES[name] for name in SCORED if name in frame}
    threshold = find_suggested_threshold(frame) if BY in axes else None
    marks = {} if threshold is None else {BY: (threshold, f"--drop-highest {SUGGESTED_DROP:g}")}
    about = describe_run(folder, config, model=config.model, data=config.sources)
    figures = draw_scores(ranked, axes, marks)
    return [PLOTS_FILE] if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive) else []
