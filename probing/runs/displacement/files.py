"""The plots of ``probing displacement``."""

from typing import Any

import pandas as pd

from probing.report.changes import average_changes
from probing.report.plot_page import About, write_plots
from probing.report.plots import draw_changes, draw_course
from probing.runs.common.about import describe_run
from probing.runs.displacement.config import COURSE_FILE, COURSE_PLOT, PAIRS_FILE, PLOTS_FILE, DisplacementConfig
from probing.runs.displacement.data import Inputs
from probing.runs.score.tables import good_units
from probing.statistics.bootstrap import estimate_share
from probing.store.manifest import RunFolder


def write_pages(folder: RunFolder, config: DisplacementConfig, inputs: Inputs) -> list[str]:
    """Draw the distribution of the changes, and the course where there is one; returns the names of the files."""
    frame = pd.read_parquet(folder.path / PAIRS_FILE)
    scored = frame[frame["status"] == "ok"]
    if scored.empty:
        return []
    about, units = _describe(folder, config), good_units(frame, inputs.pairs)
    share = estimate_share(scored["displaced"].astype(float), groups=units)
    pages = {PLOTS_FILE: draw_changes(scored, share)}
    if (folder.path / COURSE_FILE).is_file() and config.steps is not None:
        course = average_changes(
            pd.read_parquet(folder.path / COURSE_FILE), dict(zip(scored["id"], units, strict=True))
        )
        pages[COURSE_PLOT] = draw_course(course)
    return [
        name for name, figures in pages.items() if write_plots(figures, folder.path / name, about, config.interactive)
    ]


def _describe(folder: RunFolder, config: DisplacementConfig) -> About:
    """What the plots were made from."""
    policies: dict[str, Any] = {"policy": config.policy, "adapter": config.adapter, "steps": config.steps}
    models = {"reference": config.reference, "reference adapter": config.reference_adapter, **policies}
    return describe_run(folder, config, **models, data=config.sources)
