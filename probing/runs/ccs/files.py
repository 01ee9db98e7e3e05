"""The files of ``probing ccs``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.decomposition import PCA

from probing.data.forms import FORMS
from probing.data.tables import Table
from probing.instruments.problems import LISTED_PROBLEMS
from probing.probes.contrast_readings import PROBES
from probing.report.layout import shorten
from probing.report.plot_page import write_plots
from probing.report.plots import POINTS, draw_layers
from probing.report.tables import to_line
from probing.runs.ccs.config import (
    CONTROLS_FILE,
    PAIRS_FILE,
    PLOTS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    CCSConfig,
)
from probing.runs.ccs.parts import Material
from probing.runs.ccs.results import Judged
from probing.runs.common.about import describe_run
from probing.runs.common.record import describe_how, write_summary
from probing.runs.common.results import CHOSEN
from probing.store.manifest import RunFolder
from probing.store.probes import save_probes
from probing.store.shards import join_shards, write_frame
from probing.types import ContrastPair, Problem

SHOWN_PICTURES = 3
TEXT_WIDTH = 80
PAIRS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("status", pa.string()),
        ("label", pa.bool_()),
        ("category", pa.string()),
        ("formulation", pa.string()),
        ("fold", pa.int64()),
        ("place", pa.string()),
        *((f"ccs_{form}", pa.float64()) for form in FORMS),
        ("detail", pa.string()),
    ]
)


def gather_facts(
    table: Table,
    pairs: Sequence[ContrastPair],
    material: Material,
    problems: Mapping[str, Problem],
    judged: Judged,
) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    statuses = Counter(problems[pair.id].status if pair.id in problems else "ok" for pair in pairs)
    return {
        "data": table.facts(),
        "source": material.forms.store.facts["source"],
        "how": describe_how(material.forms.store),
        "token": material.forms.token,
        "rows_by_status": dict(sorted(statuses.items())),
        "problems": [asdict(problem) for problem in problems.values()][:LISTED_PROBLEMS],
        "pairs": len(material.pairs),
        "groups": len(set(material.rows.units.tolist())),
        "statements_true": int(material.rows.labels.sum()),
        "folds": np.bincount(material.rows.splits.folds).tolist(),
        "probes_trained": judged.trained,
        "places": material.places,
        "skipped_places": material.skipped,
        "extreme_norms": list(material.extremes),
        "chosen": judged.chosen,
        "best": judged.best,
    }


def write_files(
    folder: RunFolder,
    config: CCSConfig,
    material: Material,
    judged: Judged,
    pairs: Sequence[ContrastPair],
    problems: Mapping[str, Problem],
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Write every file but the record; returns their names."""
    written = [RESULTS_FILE, CONTROLS_FILE, PAIRS_FILE, PROBES_FILE, SUMMARY_FILE]
    write_frame(judged.results, folder.path / RESULTS_FILE)
    write_frame(judged.controls, folder.path / CONTROLS_FILE)
    join_shards([_tabulate_pairs(material, judged, pairs, problems)], folder.path / PAIRS_FILE)
    save_probes(
        path=folder.path / PROBES_FILE,
        source=material.forms.store.source,
        places=material.places,
        names=PROBES,
        weight=judged.weights,
        bias=judged.biases,
        centers=judged.centers,
        facts={"normalization": config.normalization, "token": material.forms.token, "best": judged.best},
    )
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    about = describe_run(folder, config, model=config.model, states=config.store, data=config.sources)
    pictures = _draw_pictures(material, judged)
    figures = draw_layers(judged.results, pictures, apart=[CHOSEN])
    if write_plots(figures, folder.path / PLOTS_FILE, about, config.interactive):
        written.append(PLOTS_FILE)
    return written


def _tabulate_pairs(
    material: Material, judged: Judged, pairs: Sequence[ContrastPair], problems: Mapping[str, Problem]
) -> pa.Table:
    """Every pair: its status, and what the held-out contrast-consistent probe says of it."""
    at = {pair.id: number for number, pair in enumerate(material.pairs)}
    forms, folds = judged.forms["ccs"], material.rows.splits.folds
    rows = []
    for pair in pairs:
        problem, number = problems.get(pair.id), at.get(pair.id)
        row: dict[str, Any] = {"id": pair.id, "status": problem.status if problem else "ok", "label": pair.label}
        row |= {"category": pair.category, "formulation": pair.formulation}
        row |= {"fold": None if number is None else int(folds[number])}
        row |= {"place": None if number is None else judged.chosen["ccs"][folds[number]]}
        for form, name in enumerate(FORMS):
            row[f"ccs_{name}"] = None if number is None else float(forms[form, number])
        rows.append(row | {"detail": problem.detail if problem else None})
    return pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)


def _draw_pictures(material: Material, judged: Judged) -> dict[str, pd.DataFrame]:
    """The differences between yes and no forms in their first two principal components, at the chosen places.

    Of more than 1000 statements some are drawn by lot; the components are of all.
    """
    chosen = [place for place, _ in Counter(judged.chosen["ccs"]).most_common(SHOWN_PICTURES)]
    # The bytes of a page are the same whenever it is drawn.
    shown = np.sort(np.random.default_rng(0).permutation(2 * len(material.pairs))[:POINTS])
    truth = [*material.rows.labels, *~material.rows.labels]
    texts = [*(pair.statement for pair in material.pairs), *(pair.opposite for pair in material.pairs)]
    words = {
        "truth": ["true" if truth[at] else "false" for at in shown],
        "id": [material.ids[at % len(material.ids)] for at in shown],
        "text": [shorten(to_line(texts[at]), TEXT_WIDTH) for at in shown],
    }
    pictures = {}
    for place in sorted(chosen, key=material.places.index):
        a1, a0, n1, n0 = material.forms.of(material.forms.store.read(place), material.ids).float()
        contrast = torch.cat([a1 - a0, n1 - n0]).numpy()
        components = PCA(2, svd_solver="randomized", random_state=0).fit(contrast)
        spots = components.transform(contrast[shown])
        shares = components.explained_variance_ratio_
        pictures[place] = pd.DataFrame(
            {
                f"first component ({shares[0]:.0%} of the variance)": spots[:, 0],
                f"second component ({shares[1]:.0%})": spots[:, 1],
                **words,
            }
        )
    return pictures
