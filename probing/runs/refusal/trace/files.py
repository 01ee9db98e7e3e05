"""The files of ``probing refusal trace``."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from probing.instruments.problems import LISTED_PROBLEMS
from probing.models.language_model import LanguageModel
from probing.report.plot_page import write_plots
from probing.report.trace_plots import draw_trace
from probing.runs.common.about import describe_run
from probing.runs.common.record import describe_how, model_facts, write_summary
from probing.runs.refusal.trace.config import (
    BANDS_FILE,
    CLIFFS_FILE,
    CURVES_FILE,
    PLOTS_FILE,
    RESULTS_FILE,
    SOURCES_FILE,
    SUMMARY_FILE,
    TraceConfig,
)
from probing.runs.refusal.trace.data import TraceData
from probing.runs.refusal.trace.results import Traced, count_decisions
from probing.runs.refusal.trace.rows import Material, count_statuses
from probing.store.manifest import RunFolder
from probing.store.shards import write_frame
from probing.types import Direction


def gather_facts(
    material: Material,
    data: TraceData,
    traced: Traced,
    model: LanguageModel,
    direction: Direction | None,
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    plan = material.plan
    return {
        "data": data.kinds.table.facts(),
        "source": model_facts(model),
        "how": describe_how(material.store),
        "rows_by_status": count_statuses(material),
        "problems": [asdict(problem) for problem in material.problems][:LISTED_PROBLEMS],
        "rows_of_other_labels": data.kinds.others,
        "decisions": count_decisions(material),
        "decided_by": "sign of the refusal log-odds" if data.answers is None else "verdicts on answers",
        "depths": {name: None if math.isnan(value) else value for name, value in traced.depths.items()},
        "chosen_inside_folds": list(traced.chosen),
        "sources": None if plan is None else {"by": data.source_name, "names": list(plan.sources)},
        "not_measured": {} if plan is None else dict(plan.why_not),
        "lens": traced.describe_lens(),
        "no_lens": material.why_no_lens,
        "falls": json.loads(traced.falls.to_json(orient="records", double_precision=15)),
        "direction": None
        if direction is None
        else {"place": str(direction.place), "position": direction.position, "method": direction.method},
        "refusal_tokens": [asdict(token) | {"text": names[token.id]} for token in material.tokens],
    }


def write_files(
    folder: RunFolder,
    config: TraceConfig,
    traced: Traced,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    frames = {
        RESULTS_FILE: traced.places,
        SOURCES_FILE: traced.sources,
        CURVES_FILE: traced.curves,
        CLIFFS_FILE: traced.cliffs,
        BANDS_FILE: traced.bands,
    }
    written = [name for name, frame in frames.items() if len(frame)]
    for name in written:
        write_frame(frames[name], folder.path / name)
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    about = describe_run(folder, config, model=config.model, direction=config.direction, data=config.sources)
    figures = draw_trace(traced.places, traced.bands)
    drawn = write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive)
    return [*written, SUMMARY_FILE, *([PLOTS_FILE] if drawn else [])]
