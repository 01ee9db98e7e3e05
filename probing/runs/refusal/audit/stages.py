"""``probing refusal audit`` after its data: changes of weights, drift, refusal, tables, files."""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from probing.data.tables import canonical
from probing.instruments.audit import EditAudit, judge_changes, pair_tensors
from probing.instruments.directions import resolve_tokens
from probing.instruments.problems import LISTED_PROBLEMS
from probing.instruments.refusal_drift import RefusalChange, compare_refusals, measure_drift
from probing.models.devices import devices_of
from probing.models.load import LanguageModel
from probing.runs.common.groups import text_units
from probing.runs.common.record import (
    begin_run,
    clear,
    content_of,
    dtype_name,
    finish,
    hash_files,
    model_facts,
    read_finished_report,
    write_summary,
)
from probing.runs.refusal.audit.config import DRIFT_FILE, PROMPTS_FILE, SUMMARY_FILE, WRITERS_FILE, AuditConfig
from probing.runs.refusal.audit.models import load_both, read_direction
from probing.runs.refusal.audit.parts import complete_changes
from probing.runs.refusal.audit.tables import list_drift, list_matrices, list_prompts, make_tables
from probing.runs.refusal.common.prompts import Kinds, split_kinds
from probing.shown import to_message
from probing.store.activations import tensor_sha256
from probing.store.manifest import RunFolder
from probing.store.shards import write_frame
from probing.types import Direction, Report


def audit_into(folder: RunFolder, config: AuditConfig, kinds: Kinds) -> Report:
    """Audit the change into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the models do not belong together, the direction is of another one, or the folder's run was
            made from something else.
        EditRefused: the writes of the model are not understood, or its weights are quantised.
        DataInvalid: too few prompts can be read.
    """
    began = time.monotonic()
    reference, policy = load_both(config)
    direction = read_direction(config, reference, policy)
    if config.tokens is not None:
        # A wrong one is told before the weights are compared, which takes long.
        resolve_tokens(reference, config.tokens)
    made_of = _identify_content(kinds, reference, policy, direction)
    begin_run(folder, config, made_of, devices_of(reference), reference.dtype)
    if not folder.finished:
        pairs = pair_tensors(reference, policy)
        audit = judge_changes(pairs, *complete_changes(folder, pairs), direction)
        harmful, harmless = split_kinds(kinds.prompts, kinds.harmful)
        drift = list_drift(measure_drift(reference, policy, harmful, harmless))
        change = compare_refusals(reference, policy, harmful, harmless, config.tokens)
        prompts = list_prompts(kinds.prompts, kinds.harmful, text_units(kinds.prompts), change)
        names = {token.id: to_message(reference.tokenizer.decode([token.id])) for token in change.tokens}
        tables = make_tables(config, audit, drift, prompts, change, names)
        facts = {"reference": model_facts(reference), "policy": model_facts(policy), "data": kinds.table.facts()}
        facts |= gather_facts(audit, change, prompts)
        frames = {WRITERS_FILE: list_matrices(audit), DRIFT_FILE: drift, PROMPTS_FILE: prompts}
        for name, frame in frames.items():
            write_frame(frame, folder.path / name)
        write_summary(folder.path / SUMMARY_FILE, facts, tables)
        finish(folder, config, facts, hash_files(folder, [*frames, SUMMARY_FILE]), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _identify_content(
    kinds: Kinds, reference: LanguageModel, policy: LanguageModel, direction: Direction | None
) -> dict[str, Any]:
    """Hashes that identify the prompts, the models and the direction."""
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in kinds.prompts], kinds.harmful])).hexdigest()
    return {
        "prompts": hashed,
        "reference": content_of(reference.source),
        "policy": content_of(policy.source),
        "policy_dtype": dtype_name(policy.dtype),
        "direction": None if direction is None else tensor_sha256(direction.vector),
    }


def gather_facts(audit: EditAudit, change: RefusalChange, prompts: pd.DataFrame) -> Mapping[str, Any]:
    """Facts of the run for the record and the summary, apart from its tables and models."""
    return {
        "finding": audit.describe(),
        "consistent": audit.consistent,
        "writers": len(audit.writers),
        "writers_by_state": audit.counts,
        "rows_by_status": dict(sorted(Counter(prompts["status"]).items())),
        "problems": [asdict(problem) for problem in change.problems][:LISTED_PROBLEMS],
        "refusal_tokens": [asdict(token) for token in change.tokens],
        "refusal_tokens_found_in": change.found_in,
    }
