"""Training and judging the probes of every layer into a claimed folder: the part of ``probing ccs`` after its data."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from probing.data.statements import FORMS, text_groups
from probing.data.tables import Table, canonical
from probing.errors import DataInvalid, OutOfMemory
from probing.models.load import LanguageModel, choose_device, free_memory
from probing.probes.ccs import CCSOptions
from probing.probes.closed_form import STEPS
from probing.probes.contrast import PROBES, ContrastOptions, Rows, read_layer, same_states
from probing.probes.controls import LEAST_FOLDS, Splits
from probing.report.plots import draw_layers
from probing.runs.ccs import (
    CONTROLS_FILE,
    PAIRS_FILE,
    PLOTS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    CCSConfig,
)
from probing.runs.ccs_results import CHOSEN, Judged, judge
from probing.runs.ccs_tables import make_tables
from probing.runs.contrast_states import DISTRACTOR, MARKER, FormStates, Variants, check_contrast, read_forms
from probing.runs.layer_shards import (
    Arrays,
    all_layers,
    check_memory,
    finish,
    finished_report,
    folds_of,
    how_told,
    identity_of_layers,
    places_of,
    read_layer_arrays,
    source_of,
    write_summary,
)
from probing.runs.problems import LISTED_PROBLEMS
from probing.runs.sharded import clear, plain
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.store.probes import save_probes
from probing.store.shards import join_shards
from probing.types import ContrastPair, Problem, Report

NOT_IDENTITY = (
    "model data out store device trust_remote_code layout split batch_tokens statement_column opposite_column "
    "pair_column polarity_column label_column category_column formulation_column id_column dtype revision"
).split()
"""Options that change no byte, or are told apart by content."""

NAMES = ("pairs", "text")
SHOWN_PICTURES = 3
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

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """The pairs that are probed, with their states.

    Attributes:
        pairs: those that are ok.
        rows: their labels, units and splits.
        forms: where their states are.
        variants: of all pairs.
        index: of each pair that is ok among all.
        places: of which states can be probed.
        skipped: other places, and why they cannot be.
    """

    pairs: list[ContrastPair]
    rows: Rows
    forms: FormStates
    variants: Variants
    index: list[int]
    places: list[str]
    skipped: dict[str, str]

    @property
    def ids(self) -> list[str]:
        """Of the pairs."""
        return [pair.id for pair in self.pairs]


def probe_into(
    folder: RunFolder, config: CCSConfig, table: Table, pairs: list[ContrastPair], split_values: list[str] | None
) -> Report:
    """Train and judge the probes of every place into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        DataInvalid: too few pairs are left, or no place can be probed.
        NotFinite: training diverged.
        OutOfMemory: a layer does not fit.
    """
    began = time.monotonic()
    device = choose_device(config.device)
    source = source_of(config)
    folder.begin(_identity(config, pairs, split_values, source, device), {"config": plain(config)})
    if not folder.finished:
        groups = text_groups(pairs)
        folds_of(config, groups, split_values, *NAMES)  # too few are found before anything is captured
        variants = Variants.of(config, pairs, groups)
        forms = read_forms(folder.path, config, table, pairs, variants, source)
        material, problems = _material(config, pairs, groups, split_values, forms, variants)
        options = _options(config)
        at_once = places_at_once(material, options, device)
        threads = torch.get_num_threads() // (at_once or 1)
        all_layers(
            folder.shards,
            material.places,
            lambda place, report: _layer(material, place, options, device, report, threads),
            "probing",
            at_once,
        )
        judged = judge(
            config,
            material.pairs,
            material.rows,
            material.places,
            lambda number: read_layer_arrays(folder.shards, number),
        )
        facts = _facts(table, pairs, material, problems, judged)
        tables = make_tables(config, judged, facts)
        written = _write(folder, config, material, judged, pairs, problems, tables, facts)
        finish(folder, config, facts, written, began)
    clear(folder.shards)
    return finished_report(folder, SUMMARY_FILE)


def _identity(
    config: CCSConfig,
    pairs: Sequence[ContrastPair],
    split_values: Sequence[str] | None,
    source: LanguageModel | ActivationStore,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that the bytes of the results depend on."""
    statements = [[asdict(pair), None if split_values is None else split_values[at]] for at, pair in enumerate(pairs)]
    hashed = hashlib.sha256(canonical(statements)).hexdigest()
    return {"statements": hashed, **identity_of_layers(config, NOT_IDENTITY, source, device)}


def _options(config: CCSConfig) -> ContrastOptions:
    ccs = CCSOptions(
        config.loss,
        config.restarts,
        config.epochs,
        config.optimizer,
        config.learning_rate,
        config.weight_decay,
        config.supervision,
        config.seed,
    )
    return ContrastOptions(
        ccs,
        config.normalization,
        config.centering,
        config.random,
        config.pairings,
        config.refits,
        config.inverse_penalty,
    )


def _material(
    config: CCSConfig,
    pairs: Sequence[ContrastPair],
    groups: Sequence[int],
    split_values: Sequence[str] | None,
    forms: FormStates,
    variants: Variants,
) -> tuple[Material, dict[str, Problem]]:
    """The pairs and places that can be probed, and what is wrong with the other pairs.

    Raises:
        DataInvalid: too few pairs, or no place.
    """
    problems = _unread(config, forms, pairs, variants)
    readable = [pair for pair in pairs if pair.id not in problems]
    if not readable:
        first = next(iter(problems.values()))
        raise DataInvalid(f"no pair could be read; the first: '{first.id}' ({first.status}, {first.detail})")
    asked = places_of(forms.store, config.places)
    same, skipped = _alike(forms, readable, asked)
    check_contrast(forms, readable, same)
    for at in np.flatnonzero(same):
        detail = f"the yes and the no form have the same state everywhere; what is read is {forms.token}"
        problems[readable[at].id] = Problem(readable[at].id, "same_state", detail)
    index = [at for at, pair in enumerate(pairs) if pair.id not in problems]
    places = [place for place in asked if place not in skipped]
    if not places:
        raise DataInvalid(f"no place can be probed; the first: {', '.join(next(iter(skipped.items())))}")
    for place, why in skipped.items():
        log.warning("%s is left out: %s", place, why)
    kept = [pairs[at] for at in index]
    units = [groups[at] for at in index]
    values = None if split_values is None else [split_values[at] for at in index]
    folds, units = folds_of(config, units, values, *NAMES)
    rows = Rows(np.array([pair.label for pair in kept]), np.array(units), Splits.of(folds))
    return Material(kept, rows, forms, variants, index, places, skipped), problems


def _unread(
    config: CCSConfig, forms: FormStates, pairs: Sequence[ContrastPair], variants: Variants
) -> dict[str, Problem]:
    """Pairs of which a form has no states."""
    found = {}
    for at, pair in enumerate(pairs):
        names = ["", *([DISTRACTOR] if variants.distracted[at] else []), *([MARKER] if at in variants.marker else [])]
        for name in names:
            if not forms.has([pair.id], name):
                continue  # a control that the store does not have
            status, detail = forms.status(pair.id, name)
            if status != "ok":
                found[pair.id] = Problem(pair.id, status, f"{name}{detail}")
                break
    return found


def _alike(
    forms: FormStates, pairs: Sequence[ContrastPair], places: Sequence[str]
) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Pairs whose forms have the same states at every place; places where nothing can be told apart."""
    same = np.ones(len(pairs), dtype=bool)
    skipped = {}
    for place in places:
        states = forms.of(forms.store.read(place), [pair.id for pair in pairs])
        here = same_states(states).cpu().numpy()
        same &= here
        if bool((states == states[:, :1]).all()):
            skipped[place] = "the states of all pairs are the same there"
        elif here.all():
            skipped[place] = "yes and no forms have the same states there"
    return same, skipped


def places_at_once(material: Material, options: ContrastOptions, device: torch.device) -> int | None:
    """How many places are probed at once on a CPU; None on a card, where one fills it.

    One for every thread, where there are as many places and they fit into half of the memory: threads that have a place
    of their own never wait for each other. Otherwise one, whose trainings the threads share. Either way no byte
    depends on it.
    """
    if device.type != "cpu":
        return None
    threads, free = torch.get_num_threads(), free_memory(device)
    width = int(material.forms.store.facts["width"])
    needed = _needed(len(material.pairs), width, options, len(material.rows.splits.left_out))
    enough = free is None or threads * needed <= free / 2
    return threads if enough and len(material.places) >= threads else 1


def _layer(
    material: Material,
    place: str,
    options: ContrastOptions,
    device: torch.device,
    report: Callable[[float], None],
    threads: int,
) -> Arrays:
    """The arrays of one place."""
    stored = material.forms.store.read(place)
    needed = _needed(len(material.pairs), stored.shape[1], options, len(material.rows.splits.left_out))
    check_memory(needed, device, f"probing {place} ({len(material.pairs)} pairs of width {stored.shape[1]})")
    states = material.forms.of(stored, material.ids).to(device)
    try:
        return read_layer(
            states,
            material.rows,
            options,
            marker=_marker(material, stored, device),
            distracted=_distracted(material, stored, device),
            report=report,
            threads=threads,
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"probing {place} does not fit on the {device}; take fewer pairs, fewer --restarts or --folds"
        ) from error


def _needed(pairs: int, width: int, options: ContrastOptions, splits: int) -> int:
    """Bytes that training a layer takes, roughly, with the distractor.

    States of the pairs and with the distractor, each as given, normalised, about an origin and by folds; in float64 for
    the closed forms, which come after training. Every probe with its gradient, AdamW's two moments and a copy; L-BFGS
    keeps ten steps and changes of the gradient. Logits of one fold with what their gradient needs.
    """
    columns = splits * options.ccs.restarts * (2 + options.pairings)
    states = 8 * (4 * pairs * width) + 4 * (4 * pairs * width)
    probes = (5 if options.ccs.optimizer == "adamw" else 30) * width * columns
    logits = 8 * 4 * pairs * columns // LEAST_FOLDS
    lanczos = 2 * splits * STEPS * width
    return 4 * (states + probes + logits + lanczos)


def _marker(material: Material, stored: Tensor, device: torch.device) -> tuple[Tensor, NDArray[np.int64]] | None:
    which = [at for at, number in enumerate(material.index) if number in material.variants.marker]
    ids = [material.pairs[at].id for at in which]
    if not ids or not material.forms.has(ids, MARKER):
        return None
    return material.forms.of(stored, ids, MARKER).to(device), np.array(which)


def _distracted(material: Material, stored: Tensor, device: torch.device) -> tuple[Tensor, NDArray[np.bool_]] | None:
    has = material.variants.distracted[material.index]
    ids = [pair.id for pair, yes in zip(material.pairs, has, strict=True) if yes]
    if not ids or len(ids) == len(has) or not material.forms.has(ids, DISTRACTOR):
        return None
    names = [DISTRACTOR if yes else "" for yes in has]
    return material.forms.of(stored, material.ids, names).to(device), has


def _facts(
    table: Table,
    pairs: Sequence[ContrastPair],
    material: Material,
    problems: Mapping[str, Problem],
    judged: Judged,
) -> dict[str, Any]:
    statuses = Counter(problems[pair.id].status if pair.id in problems else "ok" for pair in pairs)
    return {
        "data": {"path": table.path, "format": table.format, "rows": len(table.rows), "sha256": table.sha256},
        "source": material.forms.store.facts["source"],
        "how": how_told(material.forms.store),
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
        "chosen": judged.chosen,
        "best": judged.best,
    }


def _write(
    folder: RunFolder,
    config: CCSConfig,
    material: Material,
    judged: Judged,
    pairs: Sequence[ContrastPair],
    problems: Mapping[str, Problem],
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Every file but the record; their names."""
    written = [RESULTS_FILE, CONTROLS_FILE, PAIRS_FILE, PROBES_FILE, SUMMARY_FILE]
    join_shards([pa.Table.from_pandas(judged.results, preserve_index=False)], folder.path / RESULTS_FILE)
    join_shards([pa.Table.from_pandas(judged.controls, preserve_index=False)], folder.path / CONTROLS_FILE)
    join_shards([_pairs_table(material, judged, pairs, problems)], folder.path / PAIRS_FILE)
    save_probes(
        folder.path / PROBES_FILE,
        material.forms.store.source,
        material.places,
        PROBES,
        judged.weights,
        judged.biases,
        judged.centers,
        {"normalization": config.normalization, "token": material.forms.token, "best": judged.best},
    )
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    if draw_layers(judged.results, _pictures(material, judged), folder.path / PLOTS_FILE, [CHOSEN]):
        written.append(PLOTS_FILE)
    return written


def _pairs_table(
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


def _pictures(material: Material, judged: Judged) -> dict[str, pd.DataFrame]:
    """The differences between yes and no forms in their first two principal components, at the chosen places."""
    chosen = [place for place, _ in Counter(judged.chosen["ccs"]).most_common(SHOWN_PICTURES)]
    pictures = {}
    for place in sorted(chosen, key=material.places.index):
        a1, a0, n1, n0 = material.forms.of(material.forms.store.read(place), material.ids).float()
        contrast = torch.cat([a1 - a0, n1 - n0]).numpy()
        found = PCA(2, svd_solver="randomized", random_state=0).fit(contrast)
        spots = found.transform(contrast)
        truth = [*material.rows.labels, *~material.rows.labels]
        shares = found.explained_variance_ratio_
        pictures[place] = pd.DataFrame(
            {
                f"first component ({shares[0]:.0%} of the variance)": spots[:, 0],
                f"second component ({shares[1]:.0%})": spots[:, 1],
                "truth": ["true" if yes else "false" for yes in truth],
                "id": [*material.ids, *material.ids],
                "text": [*(pair.statement for pair in material.pairs), *(pair.opposite for pair in material.pairs)],
            }
        )
    return pictures
