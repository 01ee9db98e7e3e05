"""The files of ``probing clusters``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.data.tables import Table
from probing.instruments.problems import LISTED_PROBLEMS
from probing.metrics.clusters.preparation import scale_points
from probing.metrics.clusters.readings import DriftReadings
from probing.report.layout import shorten
from probing.report.plot_page import write_plots
from probing.report.plots import POINTS, draw_clusters
from probing.report.tables import to_line
from probing.runs.clusters.config import DRIFT_FILE, PLOTS_FILE, RESULTS_FILE, ROWS_FILE, SHIFTS_FILE, SUMMARY_FILE
from probing.runs.clusters.parts import ArraysOf, drift_subsets
from probing.runs.clusters.results import Judged, judge
from probing.runs.clusters.rows import CATEGORY, DRIFT, Material
from probing.runs.clusters.tables import make_tables
from probing.runs.common.about import describe_run
from probing.runs.common.record import describe_how, write_summary
from probing.runs.common.results import ALL
from probing.store.activations import write_states
from probing.store.manifest import RunFolder
from probing.store.shards import write_frame
from probing.types import LabelledPrompt, Problem

PLOTTED = ("silhouette", "aqi_size_free", "davies_bouldin", "dunn", "calinski_harabasz", "xie_beni")
TEXT_WIDTH = 80
TSNE_ROWS = 10
"""Least number of rows of a t-SNE picture: fewer have no neighbourhoods to show."""


def write_everything(
    folder: RunFolder,
    material: Material,
    table: Table,
    control: tuple[Table, list[LabelledPrompt]] | None,
    arrays_of: ArraysOf,
) -> tuple[dict[str, Any], list[str]]:
    """Write every file but the record; returns the record's facts and the files' names."""
    judged = judge(material, arrays_of)
    facts = _gather_facts(material, table, control, judged)
    tables = make_tables(material, judged, facts)
    written = [RESULTS_FILE, ROWS_FILE, SUMMARY_FILE]
    _write_frame(judged.results, folder, RESULTS_FILE)
    _write_frame(_list_rows(material, judged), folder, ROWS_FILE)
    if len(judged.drift):
        _write_frame(judged.drift, folder, DRIFT_FILE)
        write_states(folder.path / SHIFTS_FILE, _collect_shifts(material, arrays_of))
        written += [DRIFT_FILE, SHIFTS_FILE]
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    results = judged.results[(judged.results["set"] == ALL) & judged.results["metric"].isin(PLOTTED)]
    categories = judged.results[(judged.results["set"] == CATEGORY) & (judged.results["metric"] == PLOTTED[0])]
    config = material.config
    about = describe_run(folder, config, model=config.models, states=config.stores, data=config.sources)
    figures = draw_clusters(results, categories, _draw_pictures(material, judged))
    if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive):
        written.append(PLOTS_FILE)
    return facts, written


def _write_frame(frame: pd.DataFrame, folder: RunFolder, name: str) -> None:
    write_frame(frame, folder.path / name)


def _gather_facts(
    material: Material,
    table: Table,
    control: tuple[Table, list[LabelledPrompt]] | None,
    judged: Judged,
) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    rows = material.rows
    of_data = rows.labels[: rows.of_data]
    facts: dict[str, Any] = {
        "data": table.facts(),
        "models": {
            name: {"source": seen.store.facts["source"], "how": describe_how(seen.store), "places": places}
            for name, seen, places in zip(material.names, material.seen, material.places, strict=True)
        },
        "request": material.seen[0].store.facts["request"],
        "labels": dict(Counter(of_data.tolist())),
        "rows_by_status": _count_statuses(rows.of_data, rows.problems),
        "problems": [asdict(problem) for problem in rows.problems.values()][:LISTED_PROBLEMS],
        "rows": rows.of_data,
        "groups": len(set(rows.units[: rows.of_data].tolist())),
        "folds": None if rows.folds is None else np.bincount(rows.folds).tolist(),
        "sets": [f"{view.kind} {view.name}".strip() for view in rows.views],
        "skipped_sets": rows.skipped,
        "skipped_places": judged.skipped,
        "chosen": judged.chosen,
        "best": judged.best,
        "layer_weights": judged.layer_weights,
    }
    if control is not None:
        path, count = control[0].path, len(rows.prompts) - rows.of_data
        facts["control"] = {"path": path, "sha256": control[0].sha256}
        facts["control"]["rows_by_status"] = _count_statuses(count, rows.control_problems)
        listed = list(rows.control_problems.values())[:LISTED_PROBLEMS]
        facts["control"]["problems"] = [asdict(problem) for problem in listed]
    return facts


def _count_statuses(ok: int, problems: Mapping[str, Problem]) -> dict[str, int]:
    return {"ok": ok, **dict(sorted(Counter(problem.status for problem in problems.values()).items()))}


def _list_rows(material: Material, judged: Judged) -> pd.DataFrame:
    """Every row of the data: its status, and its silhouette at each model's place."""
    rows = material.rows
    folds: NDArray[np.int64] | list[None] = [None] * rows.of_data if rows.folds is None else rows.folds
    listed: list[dict[str, Any]] = []
    for at, (prompt, label, fold) in enumerate(zip(rows.prompts, rows.labels[: rows.of_data], folds, strict=False)):
        row = {"id": prompt.id, "status": "ok", "label": str(label), "category": prompt.category, "fold": fold}
        listed.append(row | {f"silhouette {name}": values[at] for name, values in judged.silhouettes.items()})
    listed += [{"id": p.id, "status": p.status, "detail": p.detail} for p in rows.problems.values()]
    return pd.DataFrame(listed).astype({"fold": "Int64"})


def _collect_shifts(material: Material, arrays_of: ArraysOf) -> dict[str, Tensor]:
    """Shift vectors by model, place and subset."""
    shifts = {}
    for part in material.parts:
        model, kind, place = part
        if kind != DRIFT:
            continue
        readings = DriftReadings.from_arrays(arrays_of(part))
        for vector, (subset, name, _) in zip(readings.shifts, drift_subsets(material.rows), strict=True):
            title = "/".join((material.names[model], place, f"{subset} {name}".strip()))
            shifts[title] = torch.from_numpy(np.ascontiguousarray(vector))
    return shifts


def _draw_pictures(material: Material, judged: Judged) -> dict[str, pd.DataFrame]:
    """Principal components, and t-SNE where it is wanted, of every model's place."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows, seed = material.rows, material.config.seed
    chosen = np.random.default_rng([seed, 9]).permutation(rows.of_data)[:POINTS]
    chosen.sort()
    frame = pd.DataFrame(
        {
            "truth": rows.labels[chosen],
            "id": [rows.prompts[at].id for at in chosen],
            "text": [shorten(to_line(rows.prompts[at].text), TEXT_WIDTH) for at in chosen],
        }
    )
    pictures = {}
    for model, (name, place) in enumerate(judged.best.items()):
        if place in judged.skipped[name]:
            continue
        states = material.states(model, place, control=False)[chosen].double().cpu()
        points = scale_points(states, material.config.scaling).numpy()
        if material.config.metric == "cosine":
            points = points / np.linalg.norm(points, axis=1, keepdims=True)
        ways: dict[str, Any] = {"principal components": PCA(2, svd_solver="full")}
        if material.config.tsne and len(chosen) > TSNE_ROWS:
            perplexity = min(30.0, (len(chosen) - 1) / 3)
            ways["t-SNE"] = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
        for way, method in ways.items():
            across, up = method.fit_transform(points).T.astype(float)
            title = f"{name}, {place}: {way} (a picture; no number is made from it)"
            pictures[title] = pd.DataFrame({f"{way} 1": across, f"{way} 2": up}).join(frame)
    return pictures
