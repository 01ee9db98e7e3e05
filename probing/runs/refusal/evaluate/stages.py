"""``probing refusal evaluate`` after its data: parts, results, tables, files."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from probing.data.contents import content_of_row
from probing.data.tables import canonical
from probing.directions.judge_text import REFUSED
from probing.directions.refusal_score import FoundToken
from probing.instruments.answers import LogitReader
from probing.instruments.problems import LISTED_PROBLEMS
from probing.kernels.dispatch import with_fallbacks
from probing.models.layers import find_stack
from probing.ranks import current_ranks
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
from probing.runs.refusal.common.directions import identify_direction
from probing.runs.refusal.evaluate.config import SUMMARY_FILE, EvaluateConfig
from probing.runs.refusal.evaluate.data import EvaluationData
from probing.runs.refusal.evaluate.files import list_answers, write_files
from probing.runs.refusal.evaluate.models import Models, open_models
from probing.runs.refusal.evaluate.parts import Instruments, PartRunner
from probing.runs.refusal.evaluate.results import (
    Judged,
    Scores,
    ask_judge,
    compare_judges,
    judge_table,
    list_cross_entropy,
    try_judge,
)
from probing.runs.refusal.evaluate.rows import (
    AFTER,
    BEFORE,
    IN,
    WITHOUT,
    Plan,
    Rows,
    find_tokens,
    make_plan,
    prepare_rows,
)
from probing.runs.refusal.evaluate.states import Extracted, open_extracted
from probing.runs.refusal.evaluate.tables import Shown, make_tables, tell_verdict
from probing.shown import to_message
from probing.store.activations import tensor_sha256
from probing.store.manifest import RunFolder
from probing.types import Report

WINDOW = 512
"""Tokens of the text that are read together, for the cross-entropy."""


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
        measured = _measure(folder, config, data, models, extracted)
        current_ranks().leave()
        facts = _gather_facts(data, models, measured, extracted)
        files = _conclude(folder, config, data, models, measured, facts)
        finish(folder, config, facts, hash_files(folder, files), began)
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
class _Measured:
    """Everything that was run.

    Attributes:
        rows: the prompts.
        tokens: refusal tokens.
        plan: the conditions.
        answers: answers by condition.
        scores: scores by condition.
        texts: cross-entropy of the text by condition; none without a text.
        how: how the models were run.
        edit: what was edited.
    """

    rows: Rows
    tokens: list[FoundToken]
    plan: Plan
    answers: Mapping[str, pa.Table]
    scores: Mapping[str, pa.Table]
    texts: Mapping[str, pa.Table]
    how: str
    edit: str


def _measure(
    folder: RunFolder, config: EvaluateConfig, data: EvaluationData, models: Models, extracted: Extracted | None
) -> _Measured:
    """Run the prompts under every condition; what can be wrong with the options shows before that."""
    try_judge(config)
    rows = prepare_rows(config, data.kinds, models.before, data.phrases.thought_ends)
    instruments = Instruments(config)
    for model in (models.before, models.edited):
        if model is not None:
            instruments.add(model)
    reader = instruments.reader(models.before)
    edit = models.describe_edit()
    tokens = find_tokens(config, rows, reader, models.direction)
    plan = make_plan(config, models, rows, extracted, data.kinds)
    runner = PartRunner(folder.shards, rows, instruments)
    answers = runner.answer(plan.answered)
    own = {mode: answers[f"{BEFORE}, thinking {mode}"]["tokens"].to_pylist() for mode in config.modes}
    scores = runner.score(plan.scored, [token.id for token in tokens], reader, own)
    windows = _cut_text(data.text, reader)
    texts = runner.read_text(plan.read, windows) if windows else {}
    how = with_fallbacks("; ".join([instruments.generator(models.before).how, reader.stream.how]))
    return _Measured(
        rows=rows, tokens=tokens, plan=plan, answers=answers, scores=scores, texts=texts, how=how, edit=edit
    )


def _conclude(
    folder: RunFolder,
    config: EvaluateConfig,
    data: EvaluationData,
    models: Models,
    measured: _Measured,
    facts: dict[str, Any],
) -> list[str]:
    """Judge the answers and write every file but the record; adds to the facts. Returns the names of the files."""
    rows, plan, tokenizer = measured.rows, measured.plan, models.before.tokenizer
    judged = {
        each.key: judge_table(tokenizer, measured.answers[each.key], each, rows, data.phrases) for each in plan.answered
    }
    main = {each.key: judged[each.key] for each in plan.answered if each.name in (BEFORE, AFTER)}
    theirs = ask_judge(config, rows, main)
    scores = [_gather_scores(config, measured, judged, mode) for mode in config.modes]
    results = pd.DataFrame(
        [row for each in scores for row in each.list_all()] + list_cross_entropy(measured.texts, config)
    )
    names = {token.id: to_message(tokenizer.decode([token.id])) for token in measured.tokens}
    facts["answers_cut"] = float(np.mean([not ended for found in main.values() for ended in found.ended]))
    facts["refusal_tokens"] = [asdict(token) | {"text": names[token.id]} for token in measured.tokens]
    shown = Shown(
        config=config,
        results=results,
        tokens=measured.tokens,
        names=names,
        facts=facts,
        left_out=_list_left_out(plan, scores[0]) if plan.left_out else None,
        judges=compare_judges(rows, judged, theirs, config) if theirs else None,
        matrix=_list_matrix(plan, scores, rows),
    )
    facts["verdict"] = tell_verdict(shown)
    return write_files(folder.path, list_answers(scores, theirs), results, make_tables(shown), facts)


def _gather_scores(config: EvaluateConfig, measured: _Measured, judged: Mapping[str, Judged], mode: str) -> Scores:
    answered = {each.name: judged[each.key] for each in measured.plan.answered if each.thinking == mode}
    tables = {
        each.name: measured.scores[each.key].to_pandas() for each in measured.plan.scored if each.thinking == mode
    }
    return Scores(mode, measured.rows, answered, tables, config)


def _cut_text(text: str | None, reader: LogitReader) -> list[list[int]]:
    """The tokens of the text in windows; one that holds a single token predicts nothing and is left out."""
    if text is None:
        return []
    ids = reader.model.tokenizer(text)["input_ids"]
    size = min(WINDOW, reader.model.max_positions or WINDOW)
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]


def _gather_facts(
    data: EvaluationData, models: Models, measured: _Measured, extracted: Extracted | None
) -> dict[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables."""
    rows = measured.rows
    statuses = Counter(problem.status for problem in rows.problems)
    known = set() if extracted is None else set(extracted.store.rows["content"])
    used = sum(content_of_row(prompt) in known for prompt in rows.prompts)
    direction = models.direction
    facts: dict[str, Any] = {
        "data": data.kinds.table.facts(),
        "model": model_facts(models.before),
        "edited_model": None if models.edited is None else model_facts(models.edited),
        "edit": measured.edit,
        "how": measured.how,
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


def _list_left_out(plan: Plan, scores: Scores) -> pd.DataFrame:
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


def _list_matrix(plan: Plan, scores: Sequence[Scores], rows: Rows) -> pd.DataFrame | None:
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
