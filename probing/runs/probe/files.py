"""The files of ``probing probe``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.data.tables import Table
from probing.instruments.problems import LISTED_PROBLEMS
from probing.probes.prompts import PROBES
from probing.report.plot_page import write_plots
from probing.report.plots import draw_layers
from probing.runs.common.about import describe_run
from probing.runs.common.record import describe_how, write_summary
from probing.runs.common.results import CHOSEN, SURFACE
from probing.runs.common.states import Prompts
from probing.runs.probe.config import PLOTS_FILE, PREDICTIONS_FILE, PROBES_FILE, RESULTS_FILE, SUMMARY_FILE
from probing.runs.probe.results import FRESH, HELD_OUT, Judged
from probing.runs.probe.rows import Material
from probing.store.manifest import RunFolder
from probing.store.probes import save_probes
from probing.store.shards import write_frame


def gather_facts(material: Material, table: Table, judged: Judged) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    seen, rows, others = material.seen, material.rows, material.fresh
    statuses = Counter(problem.status for problem in seen.problems.values())
    facts: dict[str, Any] = {
        "data": table.facts(),
        "source": seen.store.facts["source"],
        "how": describe_how(seen.store),
        "request": seen.store.facts["request"],
        "positive": material.positive,
        "rows_by_status": {"ok": len(seen.rows), **dict(sorted(statuses.items()))},
        "problems": [asdict(problem) for problem in seen.problems.values()][:LISTED_PROBLEMS],
        "rows": len(seen.rows),
        "groups": len(set(rows.units.tolist())),
        "rows_positive": int(rows.labels.sum()),
        "folds": np.bincount(rows.splits.folds).tolist(),
        "places": list(material.places),
        "skipped_places": dict(material.skipped),
        "extreme_norms": list(material.extremes),
        "chosen": judged.chosen,
        "best": judged.best,
    }
    if others is not None:
        counted = Counter(problem.status for problem in others.problems.values())
        facts["fresh"] = {"path": material.config.fresh, "rows_by_status": {"ok": len(others.rows), **dict(counted)}}
        facts["fresh"]["groups"] = len(set(others.units))
    return facts


def write_files(
    folder: RunFolder,
    material: Material,
    judged: Judged,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    written = [RESULTS_FILE, PREDICTIONS_FILE, PROBES_FILE, SUMMARY_FILE]
    write_frame(judged.results, folder.path / RESULTS_FILE)
    frame = _list_predictions(material, judged)
    write_frame(frame, folder.path / PREDICTIONS_FILE)
    width = judged.weights.shape[-1]
    save_probes(
        path=folder.path / PROBES_FILE,
        source=material.seen.store.source,
        places=material.places,
        names=PROBES,
        weight=judged.weights,
        bias=judged.biases,
        centers=np.zeros((len(material.places), 1, width)),
        facts={
            "normalization": "none",
            "request": facts["request"],
            "positive": facts["positive"],
            "best": judged.best,
        },
    )
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    config = material.config
    about = describe_run(folder, config, model=config.model, states=config.store, data=config.sources)
    shown = judged.results[judged.results["set"] == HELD_OUT]
    figures = draw_layers(shown, {}, apart=[CHOSEN, SURFACE])
    if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive):
        written.append(PLOTS_FILE)
    return written


def _list_predictions(material: Material, judged: Judged) -> pd.DataFrame:
    """Every row: its status, and the logits at the place chosen without it (of fresh rows: at the best place)."""
    parts: list[tuple[str, Prompts, NDArray[np.int64] | None, dict[str, NDArray[np.float64]]]]
    parts = [(HELD_OUT, material.seen, material.rows.splits.folds, judged.logits)]
    parts += [] if material.fresh is None else [(FRESH, material.fresh, None, judged.fresh)]
    predictions = []
    for name, prompts, folds, logits in parts:
        for at, prompt in enumerate(prompts.rows):
            row: dict[str, Any] = {"set": name, "id": prompt.id, "status": "ok", "label": bool(prompts.labels[at])}
            row |= {"category": prompt.category, "fold": None if folds is None else int(folds[at])}
            predictions.append(row | {probe: float(logits[probe][at]) for probe in (*PROBES, SURFACE)})
        problems = prompts.problems.values()
        predictions += [{"set": name, "id": p.id, "status": p.status, "detail": p.detail} for p in problems]
    return pd.DataFrame(predictions).astype({"fold": "Int64", "label": "boolean"})
