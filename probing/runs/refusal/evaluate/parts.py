"""The parts of ``probing refusal evaluate``: answers under each condition in blocks of prompts, and scores."""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import NotFinite
from probing.instruments.answers import Generator as AnswerGenerator
from probing.instruments.answers import LogitReader, diverge, mean_by_row, measure_cross_entropy, predict_answer
from probing.instruments.directions import score_states
from probing.instruments.reading import Advance
from probing.kernels.output_head import Unembedding
from probing.models.language_model import LanguageModel
from probing.report.progress import Progress
from probing.runs.common.makers import Made, Maker
from probing.runs.common.parts import Shard, Spread, complete_parts, find_shard
from probing.runs.refusal.common.answers import PART_ROWS
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.rows import AFTER, Condition, Rows
from probing.store.shards import shard_path, write_shard

FORCED_TOKENS = 32
"""Tokens of the model's own answer over which the edited model is compared with it."""
ANSWERS = pa.schema(
    [("condition", pa.string()), ("id", pa.string()), ("tokens", pa.list_(pa.int64())), ("ended", pa.bool_())]
)
SCORES = pa.schema(
    [
        ("condition", pa.string()),
        ("id", pa.string()),
        ("log_odds", pa.float64()),
        ("kl_first", pa.float64()),
        ("kl_answer", pa.float64()),
    ]
)
Columns = dict[str, list[Any]]
TEXTS = pa.schema([("condition", pa.string()), ("nats", pa.float64()), ("tokens", pa.int64())])


@dataclass(eq=False)
class Instruments:
    """What generates with a model and reads it, made once for each model, while no edit is on it."""

    config: EvaluateConfig
    readers: dict[int, LogitReader] = field(default_factory=dict)
    generators: dict[int, AnswerGenerator] = field(default_factory=dict)

    def add(self, model: LanguageModel) -> None:
        """Make the instruments of a model."""
        self.readers[id(model)] = LogitReader.open(model, self.config.batch_tokens)
        self.generators[id(model)] = AnswerGenerator(model, self.config.new_tokens, self.config.batch_tokens)

    def reader(self, model: LanguageModel) -> LogitReader:
        """What reads a model."""
        return self.readers[id(model)]

    def generator(self, model: LanguageModel) -> AnswerGenerator:
        """What generates with a model."""
        return self.generators[id(model)]


def _make_in_turn(
    conditions: Sequence[Condition], each: Sequence[int], make: Callable[[LanguageModel, int, Advance], Made]
) -> Maker[Made]:
    """Make one part after the other; the edit of a condition stays on from its first missing part to its last.

    Args:
        conditions: all conditions.
        each: number of the condition of every part.
        make: makes a part with the model that its condition gives.
    """

    def make_all(missing: Sequence[int], report: Advance) -> Generator[Made, None, None]:
        for condition, numbers in itertools.groupby(missing, key=lambda number: each[number]):
            with conditions[condition].edit() as model:
                for number in numbers:
                    yield make(model, number, report)

    return make_all


@dataclass(frozen=True, eq=False)
class PartRunner:
    """Runs prompts under conditions, in parts that are saved and known again after a restart.

    Attributes:
        folder: folder of the parts.
        rows: the prompts.
        instruments: what generates with the models and reads them.
    """

    folder: Path
    rows: Rows
    instruments: Instruments

    def answer(self, conditions: Sequence[Condition]) -> dict[str, pa.Table]:
        """Answers of the model under every condition, by the key of the condition."""
        blocks = [
            (at, condition.rows[start : start + PART_ROWS])
            for at, condition in enumerate(conditions)
            for start in range(0, len(condition.rows), PART_ROWS)
        ]

        def make(model: LanguageModel, number: int, report: Advance) -> Shard:
            at, block = blocks[number]
            prompts = [self.rows.ids[conditions[at].thinking][row] for row in block]
            written = self.instruments.generator(model).write(prompts, report)
            columns = self._name(conditions[at], block)
            columns |= {"tokens": [each.ids for each in written], "ended": [each.ended for each in written]}
            return Shard(pa.table(columns, schema=ANSWERS), {"rows": len(block)})

        columns = [self._name(conditions[at], block) for at, block in blocks]
        each = [at for at, _ in blocks]
        shards = self._complete(Kind("answers_", ANSWERS, "answering"), columns, _make_in_turn(conditions, each, make))
        tables: dict[str, list[pa.Table]] = {condition.key: [] for condition in conditions}
        for (at, _), shard in zip(blocks, shards, strict=True):
            tables[conditions[at].key].append(shard.rows)
        return {key: pa.concat_tables(parts) for key, parts in tables.items()}

    def score(
        self,
        conditions: Sequence[Condition],
        tokens: Sequence[int],
        before: LogitReader,
        own: Mapping[str, list[list[int]]],
    ) -> dict[str, pa.Table]:
        """First-token log-odds of refusal under every condition, and how far harmless answers change.

        Args:
            conditions: the conditions.
            tokens: refusal tokens.
            before: reads the model before the edit.
            own: the model's own answers before the edit, by way of thinking.

        Raises:
            NotFinite: a score is NaN; names the condition.
        """
        bases: dict[str, _Base] = {}

        def make_all(missing: Sequence[int], report: Advance) -> Generator[Shard, None, None]:
            # Read while no edit is on.
            for mode in dict.fromkeys(conditions[number].thinking for number in missing):
                bases[mode] = _read_base(before, self.rows, mode, own[mode])
            yield from _make_in_turn(conditions, range(len(conditions)), make)(missing, report)

        def make(model: LanguageModel, number: int, report: Advance) -> Shard:
            condition = conditions[number]
            reader, base = self.instruments.reader(model), bases[condition.thinking]
            values = _measure(condition, self.rows, reader, tokens, base, report)
            columns = self._name(condition, condition.rows) | values
            return Shard(pa.table(columns, schema=SCORES), {"rows": len(condition.rows)})

        columns = [self._name(condition, condition.rows) for condition in conditions]
        shards = self._complete(Kind("scores_", SCORES, "scoring"), columns, make_all)
        return {condition.key: shard.rows for condition, shard in zip(conditions, shards, strict=True)}

    def read_text(self, conditions: Sequence[Condition], windows: Sequence[Sequence[int]]) -> dict[str, pa.Table]:
        """Cross-entropy of every window of a text under every condition.

        Raises:
            NotFinite: it is NaN under one of them.
        """

        def make(model: LanguageModel, number: int, report: Advance) -> Shard:
            sums, counts = measure_cross_entropy(self.instruments.reader(model), windows, report)
            if not np.isfinite(sums).all():
                raise NotFinite(f"the cross-entropy of the text is not finite {conditions[number].name} the edit")
            columns = {"condition": [conditions[number].key] * len(sums), "nats": sums, "tokens": counts}
            return Shard(pa.table(columns, schema=TEXTS), {"rows": len(sums)})

        columns: list[Columns] = [{"condition": [condition.key] * len(windows)} for condition in conditions]
        maker = _make_in_turn(conditions, range(len(conditions)), make)
        shards = self._complete(Kind("text_", TEXTS, "reading the text"), columns, maker)
        return {condition.key: shard.rows for condition, shard in zip(conditions, shards, strict=True)}

    def _name(self, condition: Condition, numbers: NDArray[np.int64]) -> Columns:
        return {
            "condition": [condition.key] * len(numbers),
            "id": [self.rows.prompts[row].id for row in numbers],
        }

    def _complete(self, kind: "Kind", columns: Sequence[Columns], maker: Maker[Shard]) -> list[Shard]:
        def write(number: int, shard: Shard) -> Shard:
            write_shard(shard_path(self.folder, number, kind.prefix), shard.rows, shard.facts)
            return shard

        def find(number: int) -> Shard | None:
            return find_shard(shard_path(self.folder, number, kind.prefix), kind.schema, columns[number])

        known = [find(number) for number in range(len(columns))]
        sizes = [len(own["condition"]) for own in columns]
        done = sum(size for size, shard in zip(sizes, known, strict=True) if shard is not None)
        bar, spread = Progress(sum(sizes), done, unit="rows", doing=kind.doing), Spread(find, lambda: sizes)
        return complete_parts(known, maker, write, bar, spread=spread)


@dataclass(frozen=True)
class Kind:
    """A kind of parts: the prefix of their files, their columns, and the word for their making."""

    prefix: str
    schema: pa.Schema
    doing: str


@dataclass(frozen=True, eq=False)
class _Base:
    """What the model says before the edit.

    Attributes:
        answers: the beginning of its own answer to every harmless prompt; nothing for harmful ones.
        states: states that predict the first token and that beginning, row after row.
        offsets: where the states of each row begin, [row + 1].
        head: its output head.
    """

    answers: list[list[int]]
    states: Tensor
    offsets: NDArray[np.int64]
    head: Unembedding

    def of(self, row: int, whole: bool) -> Tensor:
        """States of one prompt: all, or that of the first token."""
        start = self.offsets[row]
        return self.states[start : self.offsets[row + 1] if whole else start + 1]


def _read_base(reader: LogitReader, rows: Rows, thinking: str, own: Sequence[Sequence[int]]) -> _Base:
    answers = [
        [] if harmful else list(answer[:FORCED_TOKENS]) for answer, harmful in zip(own, rows.harmful, strict=True)
    ]
    segments = [predict_answer(ids, answer) for ids, answer in zip(rows.ids[thinking], answers, strict=True)]
    counts = [segment.stop - segment.start for segment in segments]
    return _Base(answers, reader.read(segments), np.concatenate([[0], np.cumsum(counts)]), reader.head)


def _measure(
    condition: Condition, rows: Rows, reader: LogitReader, tokens: Sequence[int], base: _Base, report: Advance
) -> dict[str, list[float]]:
    """Scores of the prompts of a condition; whole answers are compared where the edit itself is on, not of controls."""
    whole = condition.name == AFTER
    answers = [base.answers[row] if whole else [] for row in condition.rows]
    coded = [rows.ids[condition.thinking][row] for row in condition.rows]
    segments = [predict_answer(ids, answer) for ids, answer in zip(coded, answers, strict=True)]
    states = reader.read(segments, report)
    counts = [segment.stop - segment.start for segment in segments]
    parts = states.split(counts)
    log_odds = score_states(torch.stack([part[0] for part in parts]), reader.head, tokens).tolist()
    harmless = [at for at, row in enumerate(condition.rows) if not rows.harmful[row]]
    kl_first, kl_answer = (np.full(len(parts), np.nan) for _ in range(2))
    if harmless:
        own = torch.cat([base.of(condition.rows[at], whole) for at in harmless])
        apart = diverge(own, base.head, torch.cat([parts[at] for at in harmless]), reader.head)
        sizes = [counts[at] for at in harmless]
        kl_first[harmless] = [float(part[0]) for part in apart.split(sizes)]
        if whole:
            kl_answer[harmless] = mean_by_row(apart, sizes)
    wrong = int((~np.isfinite(log_odds)).sum()) + int((~np.isfinite(kl_first[harmless])).sum())
    if wrong:
        raise NotFinite(
            f"{wrong} scores are not finite under the condition '{condition.name}': the edit, or the model, makes "
            f"states that are NaN or infinite; try another --mode or --coefficient, or float32"
        )
    return {"log_odds": log_odds, "kl_first": kl_first.tolist(), "kl_answer": kl_answer.tolist()}
