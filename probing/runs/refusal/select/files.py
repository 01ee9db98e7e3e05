"""The files of ``probing refusal select``."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probing.instruments.select_direction import Selection
from probing.kernels.dispatch import with_fallbacks
from probing.models.load import LanguageModel
from probing.report.plot_page import write_plots
from probing.report.plots import draw_candidates
from probing.runs.common.about import describe_run
from probing.runs.common.record import model_facts, write_summary
from probing.runs.refusal.select.config import CANDIDATES_FILE, PLOTS_FILE, SUMMARY_FILE, SelectConfig
from probing.runs.refusal.select.data import HeldOut
from probing.store.directions import DIRECTION_FILE, save_direction
from probing.store.manifest import RunFolder
from probing.store.shards import write_frame


def gather_facts(selection: Selection, held_out: HeldOut, model: LanguageModel) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    chosen, second = selection.direction, selection.cosmic
    given = len(held_out.harmful) + len(held_out.harmless)
    return {
        "data": held_out.table.facts(),
        "source": model_facts(model),
        "how": with_fallbacks(selection.how),
        "rows_by_status": {"ok": sum(selection.prompts.values())},
        "problems": [],
        "prompts": selection.prompts,
        "left_out": given - sum(selection.prompts.values()),
        "chosen": {"place": str(chosen.place), "position": chosen.position, **chosen.facts["selection"]},
        "cosmic": None if second is None else {"place": second[0], "position": second[1]},
        "cosmic_layers": selection.cosmic_layers,
        "base": selection.base,
        "layer_forwards": selection.layer_forwards,
        "cosmic_layer_forwards": selection.cosmic_layer_forwards,
        "exhaustive_layer_forwards": selection.exhaustive_layer_forwards,
        "refusal_tokens": chosen.facts["refusal_tokens"],
    }


def write_files(
    folder: RunFolder,
    config: SelectConfig,
    selection: Selection,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    path = folder.path
    save_direction(path / DIRECTION_FILE, selection.direction)
    write_frame(selection.table, path / CANDIDATES_FILE)
    write_summary(path / SUMMARY_FILE, facts, tables)
    written = [DIRECTION_FILE, CANDIDATES_FILE, SUMMARY_FILE]
    about = describe_run(folder, config, model=config.model, directions=config.directions, data=config.sources)
    drawn = write_plots(draw_candidates(selection.table), path / PLOTS_FILE, about, config.interactive)
    return [*written, PLOTS_FILE] if drawn else written
