"""The plots of ``probing influence``."""

import pandas as pd

from probing.report.influence_plots import draw_influences
from probing.report.plot_page import write_plots
from probing.runs.common.about import describe_run
from probing.runs.influence.config import PLOTS_FILE, InfluenceConfig
from probing.runs.influence.data import Inputs
from probing.store.manifest import RunFolder


def write_pages(folder: RunFolder, config: InfluenceConfig, frame: pd.DataFrame, inputs: Inputs) -> list[str]:
    """Draw the distributions of influences and rates, by group where there are some; returns the names of the files."""
    good = (frame["status"] == "ok").to_numpy()
    if not good.any():
        return []
    groups = None if inputs.groups is None else [str(group) for group in inputs.groups]
    named = None if groups is None else [group for group, kept in zip(groups, good, strict=True) if kept]
    figures = draw_influences(frame[good].reset_index(drop=True), named)
    about = describe_run(folder, config, model=config.model, data=config.sources, target=config.target)
    return [PLOTS_FILE] if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive) else []
