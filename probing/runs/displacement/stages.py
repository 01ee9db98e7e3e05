"""``probing displacement`` after its data: comparing, shard by shard, step by step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from probing.engine.stream import Stream
from probing.errors import NotFinite, ProbingError
from probing.instruments.columns import LIKELIHOOD_COLUMNS, TOKEN_COLUMNS
from probing.instruments.pair_changes import (
    TOKENS_SCHEMA,
    PairComparer,
    change_columns,
    check_same_head,
    check_same_tokens,
    measure_likelihoods,
)
from probing.instruments.pair_scores import PairScorer
from probing.instruments.problems import refuse_if_none
from probing.instruments.reading import Advance
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.report.tables import counts
from probing.runs.common.budget import budget_facts
from probing.runs.common.engines import open_workers
from probing.runs.common.makers import Where, make_with_next_prepared
from probing.runs.common.model_facts import ModelFacts, find_model_facts
from probing.runs.common.parts import Dataset, Shard, Shards, keep_shard, note_making, pair_facts, to_rows
from probing.runs.common.record import (
    begin_run,
    check_files,
    check_ids,
    check_rendered,
    clear,
    content_of,
    dtype_name,
    finish,
    hash_files,
    model_facts,
    note_rendered,
    rendered_pairs,
    report_of,
)
from probing.runs.common.token_shards import TOKENS_FILE, JoinTokens, TokenShards, WithTokens
from probing.runs.common.workers import Workers
from probing.runs.displacement.config import COURSE_FILE, COURSE_PLOT, PAIRS_FILE, DisplacementConfig
from probing.runs.displacement.data import Inputs
from probing.runs.displacement.files import write_pages
from probing.runs.displacement.models import (
    find_policy,
    hash_checkpoint,
    load_policy,
    load_reference,
    note_broken_step,
)
from probing.runs.displacement.tables import Results, course_frame, make_tables
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards
from probing.tokens.pairs import TokenizedPair
from probing.types import PreferencePair, Report

COURSE_SCHEMA = pa.schema([("id", pa.string()), ("chosen_logprob", pa.float64()), ("rejected_logprob", pa.float64())])


def compare_into(folder: RunFolder, config: DisplacementConfig, inputs: Inputs) -> Report:
    """Compare the models on every pair into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the models do not belong together, or the folder's run was made from something else.
        StoreCorrupt: the folder's finished tables are missing or changed.
        DataInvalid, NotFinite: not one pair could be compared.
    """
    began = time.monotonic()
    data = Dataset(inputs.table, inputs.pairs, config.shard_pairs)
    tokens = token_shards(folder, config.top)
    plan = Shards(folder.shards, data, schema_of(config), whole=tokens.is_whole)
    with open_workers(
        config, partial(CompareWorker, steps=inputs.steps), folder, partial(plan.missing, folder)
    ) as workers:
        reference: ModelFacts = workers.facts["reference"]
        policy: ModelFacts = workers.facts["policy"]
        made_of = _identify_content(inputs, reference, policy)
        rendered = rendered_pairs(inputs.pairs, reference=reference, policy=policy)
        begin_run(folder, config, made_of, reference.device_kinds, reference.dtype, rendered)
        if not folder.finished:
            check_rendered(folder, rendered)
            shards = compare_shards(folder, plan, tokens, workers)
            note_rendered(folder, rendered_pairs(inputs.pairs, reference=reference, policy=policy))
            facts: dict[str, Any] = {"reference": model_facts(reference), "policy": model_facts(policy)}
            facts |= {"how": workers.how()}
            steps = follow_steps(folder, config, inputs, shards, workers)
            current_ranks().leave()
            joiner = tokens.joiner(len(data.blocks))
            finish_changes(folder, config, inputs, shards, facts, steps=steps, tokens=joiner, began=began)
    clear(folder.shards)
    return read_report(folder, config, inputs)


@dataclass(frozen=True)
class Steps:
    """What a run says of the checkpoints in a folder.

    Attributes:
        policy: step of the policy; None where it is no checkpoint.
        broken: the checkpoints that are left out, and why.
        course: likelihoods at every step, a row a step and pair; None where there are no steps.
    """

    policy: int | None
    broken: Sequence[Mapping[str, Any]]
    course: pd.DataFrame | None


def follow_steps(
    folder: RunFolder,
    config: DisplacementConfig,
    inputs: Inputs,
    shards: Sequence[Shard],
    workers: Workers[WithTokens],
) -> Steps:
    """The course of the likelihoods over the checkpoints, where these are compared; and what is wrong with any.

    Args:
        folder: folder of the run.
        config: the options.
        inputs: the pairs, and the checkpoints.
        shards: changes from the reference to the policy, in order.
        workers: what made them; in this process, where there are checkpoints.
    """
    taken: int | None = workers.facts["step"]
    if taken is None:
        return Steps(None, [], None)
    assert isinstance(workers.local, CompareWorker)
    # Only one policy is in memory at a time.
    before = workers.local.drop_policy()
    data = Dataset(inputs.table, inputs.pairs, config.shard_pairs)
    earlier = [(step, path) for step, path in inputs.steps or () if step < taken]
    likelihoods_of, unreadable = measure_steps(folder, config, data, before, earlier)
    course = course_frame(pa.concat_tables([shard.rows for shard in shards]).to_pandas(), likelihoods_of, taken)
    return Steps(taken, [*workers.facts["broken"], *unreadable], course)


def finish_changes(
    folder: RunFolder,
    config: DisplacementConfig,
    inputs: Inputs,
    shards: Sequence[Shard],
    facts: Mapping[str, Any],
    *,
    steps: Steps,
    tokens: JoinTokens,
    began: float,
) -> None:
    """Join the changes of all pairs, and write what is made of them, and the record.

    Args:
        folder: folder of the run, which has begun.
        config: the options.
        inputs: the pairs, with their groups.
        shards: their changes, in order.
        facts: facts of the models for the record.
        steps: what is known of the steps.
        tokens: joins the tables of tokens.
        began: start of the run, by ``time.monotonic``.
    """
    data = Dataset(inputs.table, inputs.pairs, config.shard_pairs)
    facts = {**facts, "data": data.facts(), **pair_facts(shards, data)}
    join_shards(data.with_places(shards), folder.path / PAIRS_FILE)
    wrote = [PAIRS_FILE, *tokens(folder.path)]
    if steps.course is not None:
        rows = to_rows(steps.course, pa.schema([("step", pa.int64()), *COURSE_SCHEMA]))
        join_shards([rows], folder.path / COURSE_FILE)
        wrote.append(COURSE_FILE)
        facts |= {"policy_step": steps.policy}
    facts |= {"broken_steps": list(steps.broken)}
    wrote += write_pages(folder, config, inputs)
    finish(folder, config, facts, hash_files(folder, wrote), began)


def _identify_content(inputs: Inputs, reference: ModelFacts, policy: ModelFacts) -> dict[str, Any]:
    """Hashes that identify the models and the data."""
    return {
        "reference": content_of(reference.source),
        "policy": content_of(policy.source),
        "steps": {path.name: hash_checkpoint(path) for _, path in inputs.steps or ()},
        "policy_dtype": dtype_name(policy.dtype),
        "data": {"sha256": inputs.table.sha256},
    }


def make_comparer(config: DisplacementConfig, reference: LanguageModel, policy: LanguageModel) -> PairComparer:
    """A comparer of two models by the options."""
    return PairComparer(
        reference,
        policy,
        predictors=config.predictor_names(),
        top=config.top,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        rate_parameters=config.rate_parameters,
        compile=config.compile,
    )


def token_shards(folder: RunFolder, top: int) -> TokenShards:
    """The tables of tokens; none where no tokens are to be named."""
    return TokenShards(folder.shards, TOKENS_SCHEMA, wanted=top > 0)


def schema_of(config: DisplacementConfig) -> pa.Schema:
    """Types of a table of changes."""
    kinds = {"boolean": pa.bool_(), "float64": pa.float64()}
    return pa.schema(
        [("id", pa.string()), ("status", pa.string())]
        + [(name, pa.int64()) for name in TOKEN_COLUMNS]
        + [(name, kinds[kind]) for name, kind in change_columns(config.predictor_names()).items()]
    )


class CompareWorker:
    """Compares two models on blocks of pairs.

    Args:
        config: the options.
        steps: checkpoints of which the last readable one is the policy, by step; None where the options name it.
    """

    def __init__(self, config: DisplacementConfig, steps: Sequence[tuple[int, Path]] | None) -> None:
        self._config, self._reference = config, load_reference(config)
        policy, self._step, self._broken = find_policy(config, steps, self._reference)
        self._policy: LanguageModel | None = policy

    @cached_property
    def comparer(self) -> PairComparer:
        """Compares the models."""
        assert self._policy is not None
        return make_comparer(self._config, self._reference, self._policy)

    def drop_policy(self) -> PairScorer:
        """Give up the policy, and with it the comparing; what is left is the scorer with the reference."""
        before = self.comparer.before
        del self.comparer
        self._policy = None
        return before

    @property
    def streams(self) -> list[Stream]:
        """The streams that run both models."""
        return self.comparer.streams

    def describe(self) -> dict[str, Any]:
        """Facts of the models, the step of the policy, and the checkpoints that cannot be read."""
        assert self._policy is not None
        models = {"reference": find_model_facts(self._reference), "policy": find_model_facts(self._policy)}
        return {**models, "step": self._step, "broken": self._broken}

    def how(self) -> dict[str, str]:
        """How each model is run."""
        return {"reference": self.comparer.before.stream.how, "policy": self.comparer.after.stream.how}

    def prepare(self, pairs: Sequence[PreferencePair], where: Where) -> list[TokenizedPair]:
        """Tokens of some pairs."""
        return self.comparer.tokenize(pairs, where)

    def make(self, tokenized: list[TokenizedPair], report: Advance) -> WithTokens:
        """Changes of some pairs, and of their tokens."""
        began = time.monotonic()
        compared = self.comparer.compare(tokenized, report)
        rows, budget = to_rows(compared.frame, schema_of(self._config)), budget_facts(self.streams)
        return note_making(rows, compared.problems, compared.run, began, budget), compared.tokens


def compare_shards(folder: RunFolder, plan: Shards, tokens: TokenShards, workers: Workers[WithTokens]) -> list[Shard]:
    """Changes of every pair; those of tokens are written beside them."""
    budget = workers.keep_budget(folder)
    return plan.complete(workers.maker(plan.block), tokens.keep, budget=budget, doing="comparing")


def measure_steps(
    folder: RunFolder, config: DisplacementConfig, data: Dataset, before: PairScorer, steps: Sequence[tuple[int, Path]]
) -> tuple[dict[int, pd.DataFrame], list[dict[str, Any]]]:
    """Likelihoods of every pair under every readable checkpoint, by its step; and what is wrong with the others."""
    likelihoods_of, broken = {}, []
    for step, path in steps:
        try:
            likelihoods_of[step] = measure_step(folder, config, data, before, step, path)
        except ProbingError as error:
            broken.append(note_broken_step(step, path, error))
    return likelihoods_of, broken


def measure_step(
    folder: RunFolder, config: DisplacementConfig, data: Dataset, before: PairScorer, step: int, path: Path
) -> pd.DataFrame:
    """Compute the likelihoods of every pair under one checkpoint.

    Raises:
        SourceMismatch: the checkpoint does not belong to the reference. NotFinite: the checkpoint gives no pair a
            finite likelihood.
    """
    policy = load_policy(config, before.language_model, str(path))
    scorer = PairScorer(
        policy,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        columns=LIKELIHOOD_COLUMNS,
        compile=config.compile,
    )
    check_same_head(before, scorer)

    plan = Shards(folder.shards, data, COURSE_SCHEMA, prefix=f"step_{step:09d}_")

    def prepare(number: int) -> list[TokenizedPair]:
        block = plan.block(number)
        tokenized = scorer.tokenize(block.rows, block.where)
        check_same_tokens(before.tokenize(block.rows, block.where), tokenized, policy, block.where)
        return [pair for pair in tokenized if pair.problem is None]

    def make(number: int, tokenized: list[TokenizedPair], report: Advance) -> Shard:
        block, values = data.blocks[number], measure_likelihoods(scorer, tokenized)
        nothing = (float("nan"), float("nan"))
        rows = [(pair.id, *values.get(pair.id, nothing)) for pair in data.of(block)]
        report(len(block), sum(len(pair.chosen) + len(pair.rejected) for pair in tokenized))
        return Shard(to_rows(pd.DataFrame(rows, columns=COURSE_SCHEMA.names), COURSE_SCHEMA), {})

    shards = plan.complete(make_with_next_prepared(prepare, make), keep_shard, doing=f"step {step}")
    frame = pa.concat_tables([shard.rows for shard in shards]).to_pandas()
    if len(frame) and not frame["chosen_logprob"].notna().any():
        raise NotFinite("it gives no pair a finite likelihood")
    return frame


def read_report(folder: RunFolder, config: DisplacementConfig, inputs: Inputs) -> Report:
    """The tables of a finished run.

    Raises:
        StoreCorrupt: a file of the run is missing or changed.
        SourceMismatch: the run is of rows with other ids.
    """
    facts = folder.facts()
    check_files(folder, facts["sha256"])
    refuse_if_none(facts, "no pair could be compared", folder.path / PAIRS_FILE)
    tables: dict[str, pd.DataFrame | None] = dict.fromkeys((PAIRS_FILE, COURSE_FILE))
    for name in (PAIRS_FILE, COURSE_FILE):
        if name in facts["sha256"]:
            tables[name] = pd.read_parquet(folder.path / name)
    frame, course = tables[PAIRS_FILE], tables[COURSE_FILE]
    assert frame is not None
    check_ids(folder.path / PAIRS_FILE, frame["id"], inputs.pairs)
    if not len(frame):
        empty = {"Pairs by status": counts({}, "status")}
        return report_of(folder, empty, facts, [*facts["sha256"], RUN_FILE])
    notes = [f"Step {entry['step']} ({entry['folder']}) is left out: {entry['why']}" for entry in facts["broken_steps"]]
    wrote = [*facts["sha256"], RUN_FILE]
    # Earlier versions drew the course without a hash of it, and only with plotly.
    if course is not None and len(course) and not (folder.path / COURSE_PLOT).is_file():
        notes.append("The course is not drawn: the version that made this run drew it only where plotly was installed")
    results = Results(frame, course, folder.path / TOKENS_FILE if TOKENS_FILE in facts["sha256"] else None)
    made = make_tables(results, config, inputs, facts, notes)
    return report_of(folder, made, facts, wrote)
