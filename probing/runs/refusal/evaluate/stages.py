"""``probing refusal evaluate`` after its data: conditions, parts, results, tables, files."""

import contextlib
import functools
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.data.contents import content_of_row
from probing.data.tables import canonical
from probing.directions.judge_text import REFUSED
from probing.errors import UsageError
from probing.instruments.answers import LogitReader
from probing.instruments.directions import extract_directions
from probing.instruments.problems import LISTED_PROBLEMS
from probing.kernels.dispatch import with_fallbacks
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.report.screen import to_message
from probing.runs.common.parts import Shard
from probing.runs.common.record import (
    begin_run,
    clear,
    content_of,
    dtype_name,
    finish,
    hash_files,
    model_facts,
    read_finished_report,
    rendered_prompts,
)
from probing.runs.refusal.common.prompts import Kinds, hold_out
from probing.runs.refusal.evaluate.config import SUMMARY_FILE, EvaluateConfig
from probing.runs.refusal.evaluate.data import EvaluationData
from probing.runs.refusal.evaluate.files import list_answers, write_files
from probing.runs.refusal.evaluate.models import Models, draw_random_directions, identify_direction, open_models
from probing.runs.refusal.evaluate.parts import (
    AFTER,
    BEFORE,
    Condition,
    Instruments,
    complete_answers,
    complete_scores,
    complete_texts,
    keep,
)
from probing.runs.refusal.evaluate.results import (
    BANDS,
    LABELS,
    RANDOM,
    Scores,
    ask_judge,
    compare_judges,
    judge_shard,
    list_cross_entropy,
)
from probing.runs.refusal.evaluate.rows import Rows, find_tokens, prepare_rows, with_thinking
from probing.runs.refusal.evaluate.states import (
    Extracted,
    LeftOut,
    leave_categories_out,
    open_extracted,
    permute_labels_of,
)
from probing.runs.refusal.evaluate.tables import Shown, make_tables, tell_verdict
from probing.store.activations import tensor_sha256
from probing.store.manifest import RunFolder
from probing.types import Direction, Report

WINDOW = 512
"""Tokens of the text that are read together, for the cross-entropy."""
WITHOUT = "without "
IN = "extracted, thinking "


def evaluate_into(folder: RunFolder, config: EvaluateConfig, data: EvaluationData) -> Report:
    """Measure the edit into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else; the direction is of another model.
        UsageError: a place, layers or a switch for thinking that are not there.
        DataInvalid: too few prompts can be read, no refusal token, or a judge that answers nonsense.
        NotFinite: scores that are NaN.
    """
    began = time.monotonic()
    models = open_models(config)
    stack = find_stack(models.before)
    extracted = open_extracted(config, models.direction, stack.width, len(stack.blocks))
    begin_run(
        folder,
        config,
        _identify(config, data, models, extracted),
        [models.before.device],
        rendered=rendered_prompts(data.kinds.prompts, True, model=models.before),
    )
    if not folder.finished:
        rows = prepare_rows(config, data.kinds, models.before, data.phrases.thought_ends)
        _evaluate(folder, config, data, models, rows, extracted, began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _identify(
    config: EvaluateConfig, data: EvaluationData, models: Models, extracted: Extracted | None
) -> dict[str, Any]:
    kinds = data.kinds
    made_of: dict[str, Any] = {
        "prompts": hashlib.sha256(canonical([[asdict(prompt) for prompt in kinds.prompts], kinds.harmful])).hexdigest(),
        "model": content_of(models.before.source),
        "dtype": dtype_name(models.before.dtype),
        **data.hashes,
        **identify_direction(models.direction),
    }
    if models.edited is not None:
        made_of["edited_model"] = content_of(models.edited.source)
    if extracted is not None:
        made_of["extracted"] = extracted.store.facts["rows_sha256"]
    return made_of


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is run.

    Attributes:
        answered: conditions under which prompts are answered.
        scored: conditions under which they are scored.
        read: conditions under which the text is read.
        left_out: directions that were extracted without a category.
        held_out: prompts on which directions that were extracted in each way of thinking are evaluated.
    """

    answered: list[Condition]
    scored: list[Condition]
    read: list[Condition]
    left_out: list[LeftOut]
    held_out: NDArray[np.int64]


def _plan(config: EvaluateConfig, models: Models, rows: Rows, extracted: Extracted | None, kinds: Kinds) -> _Plan:
    every = np.arange(len(rows.prompts))
    found = models.direction
    random = [] if found is None else draw_random_directions(found, config.random_directions, config.seed)
    labels = [] if extracted is None else permute_labels_of(extracted, config.permutations, config.seed)
    left_out = [] if extracted is None else leave_categories_out(extracted, config.seed)
    by_thinking, held_out = _extract_in_each(config, models, rows, kinds)
    answered, scored, read = [], [], []
    for mode in config.modes:
        plain = [
            Condition(BEFORE, mode, functools.partial(keep, models.before), every),
            Condition(AFTER, mode, models.edit_found, every),
        ]

        def of(name: str, direction: Direction, chosen: NDArray[np.int64], mode: str = mode) -> Condition:
            return Condition(name, mode, functools.partial(_edit, models, direction), chosen)

        bands = [of(f"{BANDS[RANDOM]}{number}", each, every) for number, each in enumerate(random)]
        answered += plain + bands[: config.random_texts]
        answered += [of(f"{IN}{name}", each, held_out) for name, each in by_thinking.items()]
        scored += plain + bands
        scored += [of(f"{BANDS[LABELS]}{number}", each, every) for number, each in enumerate(labels)]
        if mode == config.modes[0]:
            read = plain
            for each in left_out:
                own = np.flatnonzero([prompt.category == each.category for prompt in rows.prompts] & rows.harmful)
                scored += [of(f"{WITHOUT}{each.category}", each.direction, own)] if len(own) else []
    return _Plan(answered, scored, read, left_out, held_out)


@contextlib.contextmanager
def _edit(models: Models, direction: Direction) -> Iterator[LanguageModel]:
    with models.edit(direction):
        yield models.before


def _extract_in_each(
    config: EvaluateConfig, models: Models, rows: Rows, kinds: Kinds
) -> tuple[dict[str, Direction], NDArray[np.int64]]:
    """Where thinking on and off are compared: a direction extracted in each from half of the prompts, and the others.

    Raises:
        UsageError: the prompt does not have the direction's token in each way of thinking.
    """
    if config.thinking != "both" or models.direction is None:
        return {}, np.empty(0, dtype=np.int64)
    out = dict(zip((prompt.id for prompt in kinds.prompts), hold_out(kinds, 0.5, config.seed), strict=True))
    held_out = np.array([out[prompt.id] for prompt in rows.prompts])
    found = {}
    for mode in config.modes:
        sides = [
            [
                with_thinking(prompt, models.before, mode)
                for prompt, harmful, held in zip(rows.prompts, rows.harmful, held_out, strict=True)
                if harmful == kind and not held
            ]
            for kind in (True, False)
        ]
        every = extract_directions(models.before, *sides, places=[models.direction.place], filter_by_sign=False)
        try:
            found[mode] = every.at(models.direction.place, models.direction.position)
        except ValueError as error:
            raise UsageError(f"with thinking {mode}, {error}") from error
    return found, np.flatnonzero(held_out)


def _evaluate(
    folder: RunFolder,
    config: EvaluateConfig,
    data: EvaluationData,
    models: Models,
    rows: Rows,
    extracted: Extracted | None,
    began: float,
) -> None:
    instruments = Instruments(config)
    for model in (models.before, models.edited):
        if model is not None:
            instruments.add(model)
    reader = instruments.reader(models.before)
    tokens = find_tokens(config, rows, reader, models.direction)
    plan = _plan(config, models, rows, extracted, data.kinds)
    written = complete_answers(folder.shards, plan.answered, rows, instruments)
    own = {mode: _ids_of(written, BEFORE, mode) for mode in config.modes}
    ids = [token.id for token in tokens]
    scored = complete_scores(folder.shards, plan.scored, rows, instruments, ids, own, models.before)
    windows = _cut_text(data.text, reader)
    texts = complete_texts(folder.shards, plan.read, windows, instruments) if windows else {}
    judged = {
        condition.key: judge_shard(models.before.tokenizer, written[condition.key], condition, rows, data.phrases)
        for condition in plan.answered
    }
    main = {key: judged[key] for key in judged if key.split(",")[0] in (BEFORE, AFTER)}
    theirs = ask_judge(config, rows, main)
    scores = [
        Scores(
            mode,
            rows,
            {each.name: judged[each.key] for each in plan.answered if each.thinking == mode},
            {each.name: scored[each.key].rows.to_pandas() for each in plan.scored if each.thinking == mode},
            config,
        )
        for mode in config.modes
    ]
    results = pd.DataFrame([row for each in scores for row in each.list_all()] + list_cross_entropy(texts, config))
    names = {token.id: to_message(models.before.tokenizer.decode([token.id])) for token in tokens}
    cut = np.mean([not ended for found in main.values() for ended in found.ended])
    facts = _gather_facts(data, models, rows, extracted, instruments) | {
        "answers_cut": float(cut),
        "refusal_tokens": [asdict(token) | {"text": names[token.id]} for token in tokens],
    }
    left_out = _list_left_out(plan, scores[0]) if plan.left_out else None
    judges = compare_judges(rows, judged, theirs, config) if theirs else None
    shown = Shown(config, results, tokens, names, facts, left_out, judges, _list_matrix(plan, scores, rows))
    facts["verdict"] = tell_verdict(shown)
    files = write_files(folder.path, list_answers(scores, theirs), results, make_tables(shown), facts)
    finish(folder, config, facts, hash_files(folder, files), began)


def _ids_of(written: dict[str, Shard], name: str, mode: str) -> list[list[int]]:
    found: list[list[int]] = written[f"{name}, thinking {mode}"].rows["tokens"].to_pylist()
    return found


def _cut_text(text: str | None, reader: LogitReader) -> list[list[int]]:
    """The tokens of the text in windows; one that holds a single token predicts nothing and is left out."""
    if text is None:
        return []
    ids = reader.model.tokenizer(text)["input_ids"]
    size = min(WINDOW, reader.model.max_positions or WINDOW)
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]


def _gather_facts(
    data: EvaluationData, models: Models, rows: Rows, extracted: Extracted | None, instruments: Instruments
) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    statuses = Counter(problem.status for problem in rows.problems)
    known = set() if extracted is None else set(extracted.store.rows["content"])
    used = sum(content_of_row(prompt) in known for prompt in rows.prompts)
    direction = models.direction
    facts: dict[str, Any] = {
        "data": data.kinds.table.facts(),
        "model": model_facts(models.before),
        "edited_model": None if models.edited is None else model_facts(models.edited),
        "how": with_fallbacks(
            "; ".join([instruments.generator(models.before).how, instruments.reader(models.before).stream.how])
        ),
        "rows_by_status": {"ok": len(rows.prompts), **dict(sorted(statuses.items()))},
        "problems": [asdict(problem) for problem in rows.problems][:LISTED_PROBLEMS],
        "rows_of_other_labels": data.kinds.others,
        "groups": min(len(set(rows.units[rows.harmful == kind].tolist())) for kind in (True, False)),
        "prompts_extracted_from": used,
        "extracted_known": extracted is not None,
    }
    if direction is not None:
        facts["direction"] = {
            "place": str(direction.place),
            "position": direction.position,
            "method": direction.method,
            "length": float(direction.vector.double().norm()),
            "sha256": tensor_sha256(direction.vector.double().contiguous()),
        }
    return facts


def _list_left_out(plan: _Plan, scores: Scores) -> pd.DataFrame:
    """One row a category: held-out AUROC, the layer that was chosen, and the scores of prompts of this category."""
    rows = []
    for each in plan.left_out:
        row: dict[str, Any] = {
            "category": each.category,
            "left out of the extraction": each.prompts,
            "place chosen": str(each.direction.place),
            "AUROC": each.auroc,
        }
        table = scores.tables.get(f"{WITHOUT}{each.category}")
        if table is not None:
            before = scores.tables[BEFORE].set_index("id").loc[table["id"], "log_odds"]
            row |= {
                "evaluated": len(table),
                "log-odds before": before.mean(),
                "log-odds after": table["log_odds"].mean(),
            }
            row |= {"above 0 before": (before > 0).mean(), "above 0 after": (table["log_odds"] > 0).mean()}
        rows.append(row)
    return pd.DataFrame(rows)


def _list_matrix(plan: _Plan, scores: Sequence[Scores], rows: Rows) -> pd.DataFrame | None:
    """Refusal in answers to the held-out prompts, by where the direction was extracted and where it is evaluated."""
    if not len(plan.held_out):
        return None
    table = []
    harmful = rows.harmful[plan.held_out]
    modes = [each.thinking for each in scores]
    for name in (BEFORE, AFTER, *(f"{IN}{mode}" for mode in modes)):
        row: dict[str, Any] = {
            "direction": {BEFORE: "none", AFTER: "as given"}.get(name, name.replace(IN, "extracted "))
        }
        for each in scores:
            refused = each.judged[name].is_(*REFUSED)
            refused = refused[plan.held_out] if name in (BEFORE, AFTER) else refused
            for kind, flag in (("harmful", True), ("harmless", False)):
                row[f"{kind}, thinking {each.thinking}"] = float(refused[harmful == flag].mean())
        table.append(row)
    return pd.DataFrame(table)
