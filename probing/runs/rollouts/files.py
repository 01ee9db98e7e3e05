"""The plots of ``probing rollouts``."""

import pandas as pd

from probing.report.group_rates import draw_group_rates, sum_up_groups
from probing.report.plot_page import write_plots
from probing.runs.common.about import describe_run
from probing.runs.rollouts.config import PLOTS_FILE, RolloutsConfig
from probing.store.manifest import RunFolder


def write_pages(folder: RunFolder, config: RolloutsConfig, frame: pd.DataFrame) -> list[str]:
    """Draw the distribution of the rates of groups; returns the names of the files."""
    figures = draw_group_rates(sum_up_groups(frame))
    about = describe_run(folder, config, model=config.model, data=config.sources)
    wrote = bool(figures) and write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive)
    return [PLOTS_FILE] if wrote else []
