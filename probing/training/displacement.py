"""The callback that says whether preference training displaces likelihood, and what to do about it."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.data.pair_columns import PairColumns
from probing.errors import UsageError
from probing.metrics.regime import describe_regime, find_regime
from probing.models.in_memory import as_language_model
from probing.models.language_model import LanguageModel
from probing.models.load import load
from probing.statistics.bootstrap import bootstrap_mean, estimate_share
from probing.tokens.pairs import TokenizedPair
from probing.training.alarms import OnAlarm
from probing.training.baselines import open_baseline, save_baseline
from probing.training.callback import AlarmEvent, Measurement, MeasuringCallback
from probing.training.pair_set import SIDES, PairSet, PairValues, hash_tokens, measure_pairs, tokenize_set
from probing.training.processes import find_rank, gather_all
from probing.training.refusal import open_probe
from probing.types import Estimate

SHARES = ("share_displaced", "share_halved", "ranking_accuracy")
MEANS = (
    "chosen_change",
    "rejected_change",
    "chosen_change_per_token",
    "rejected_change_per_token",
    "chosen_end_change",
    "rejected_end_change",
    "margin",
    "margin_change",
    "entropy",
    "entropy_change",
    "ches",
    "ches_normalized",
)
COLUMNS = dict.fromkeys((*MEANS, *SHARES), True) | {"regime": False}
BY_GROUP = ("chosen_change", "rejected_change", "share_displaced", "share_halved")
TOP = 10
"""Tokens that gained and that lost most probability which are named."""


class DisplacementCallback(MeasuringCallback):
    """Watches likelihood displacement on a fixed set of preference pairs while a model is trained.

    For ``transformers.Trainer`` and the trainers of TRL. At some steps the model is measured on the pairs and compared
    with what it said when training began. Logged under ``probing/``: means over pairs of ``chosen_change`` and
    ``rejected_change`` (ln p of the response, summed over its tokens, in nats), the same ``_per_token`` and of the end
    of turn alone (``_end_change``), ``margin`` (ln p of chosen less rejected) and ``margin_change``,
    ``share_displaced`` (pairs whose margin grows while ln p of the chosen response falls, however little),
    ``share_halved`` (of these, pairs whose chosen response is less than half as likely as before),
    ``ranking_accuracy``,
    ``entropy`` (of the next token, over the chosen responses), ``ches`` and ``ches_normalized`` of the model as it is,
    each with the ends of its 95 % interval over pairs; ``regime`` (0 both up; 1 chosen up, rejected down; 2 both down;
    3 chosen down, rejected up), and a sentence, ``verdict``.

    The training is left as it is: with the callback and without it ends with the same weights, bit for bit.

    Args:
        pairs: the pairs, which should not be trained on where generalisation is asked for: a path, a hub id or
            "bundled"; a ``datasets.Dataset``, ``pandas.DataFrame`` or list of rows in any of TRL's formats.
        every: N for every N-th step; a number between 0 and 1 for a share of the run; or a list of steps. The last step
            is always measured.
        by: column by whose values ``chosen_change``, ``rejected_change`` and ``share_displaced`` are logged again.
        reference: what is compared with: None for the model as training begins; "adapter off" for the model without
            its adapter; or a reference model (a path, a hub id, or a model in memory with its tokenizer).
        alarms: such as ``{"share_displaced": "> 0.2"}``; an alarm goes off when the whole interval is beyond it.
        on_alarm: "warn", "stop" (ends the training), "save" (saves a checkpoint), or a function of the ``AlarmEvent``.
        strict: whether an error of the callback ends the training.
        name: name of the callback, where a trainer has several: numbers are then logged as ``probing/NAME/...``.
        tokenizer: the tokenizer, where the trainer has none (as its ``processing_class``).
        max_length: longest sequence in tokens; a longer pair is an error.
        batch_tokens: padded tokens a batch; found by itself when None.
        columns: columns of prompts and responses, where they are none of the known layouts.
        prompts: prompts on which ``directions`` and refusals are watched besides, in any form that ``capture`` takes,
            a path, "bundled", or a mapping from labels (as "harmful", "harmless") to these: ``projection/NAME`` (of
            the state on the direction's unit vector) and ``refusal_log_odds``, means over prompts with their
            intervals, and for each label again.
        directions: a direction, or the path of its file or of a folder of 'probing refusal select'; a list of these,
            or a mapping from names.
        refusal_tokens: ids or texts of the tokens that the model refuses with; by default those that a direction
            knows.

    Attributes:
        history: a ``Measurement`` of every step that was measured.

    Raises:
        UsageError, DataInvalid, TypeError: options or pairs that cannot be used.
    """

    kind = "displacement"

    def __init__(
        self,
        pairs: Any,
        every: int | float | Collection[int] = 50,
        *,
        by: str | None = None,
        reference: Any = None,
        alarms: Mapping[str, str] | None = None,
        on_alarm: OnAlarm | Callable[[AlarmEvent], None] = "warn",
        strict: bool = False,
        name: str | None = None,
        tokenizer: Any = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        columns: PairColumns | None = None,
        prompts: Any = None,
        directions: Any = (),
        refusal_tokens: Sequence[int | str] | None = None,
    ) -> None:
        self._probe = open_probe(prompts, directions, refusal_tokens)
        further = [] if self._probe is None else self._probe.columns()
        super().__init__(
            every=every,
            alarms=alarms,
            on_alarm=on_alarm,
            strict=strict,
            columns=COLUMNS | dict.fromkeys(further, True),
            name=name,
            tokenizer=tokenizer,
        )
        self.pairs = PairSet.read(pairs, by, columns)
        self.by, self.reference, self.max_length, self.batch_tokens = by, reference, max_length, batch_tokens
        self._tokenized: list[TokenizedPair] = []
        self._before: PairValues | None = None
        self._tokenizer: Any = None

    def count_rows(self) -> int:
        """Number of groups of pairs that share a prompt or a text."""
        return len(np.unique(self.pairs.units))

    def is_share(self, column: str) -> bool:
        """Whether a number is a share of the pairs."""
        return column in SHARES

    def begin(self, model: LanguageModel, logged: list[dict[str, Any]] | None) -> None:
        """Measure the reference, or read what it said when the run began."""
        gather_all(lambda: self._prepare(model))
        if logged is not None and self.reference is None:
            kept = open_baseline(self._folder, self._identity())
            self._before = PairValues.of([pair.id for pair in self._tokenized], kept)
            return
        self._before = self._measure_reference(model)
        if find_rank() == 0:
            save_baseline(self._folder, self._before.tensors(), self._identity())

    def _identity(self) -> dict[str, str]:
        return {"pairs, tokenizer or chat template": hash_tokens(self._tokenized)}

    def _prepare(self, model: LanguageModel) -> None:
        self._tokenized, self._tokenizer = tokenize_set(model, self.pairs, self.max_length), model.tokenizer
        if self._probe is not None:
            self._probe.prepare(model)

    def _measure_reference(self, model: LanguageModel) -> PairValues:
        if self.reference is None:
            return measure_pairs(model, self._tokenized, self.batch_tokens)
        if self.reference == "adapter off":
            if model.peft is None:
                raise UsageError(f"reference is 'adapter off', and the {type(model.model).__name__} has no adapter")
            with model.peft.disable_adapter():
                return measure_pairs(model, self._tokenized, self.batch_tokens)
        named = isinstance(self.reference, str)
        reference = load(self.reference) if named else as_language_model(self.reference, model.tokenizer)
        return measure_pairs(reference, self._tokenized, self.batch_tokens)

    def measure(self, model: LanguageModel, step: int) -> Measurement:
        """Measure the pairs, and write what each of them and the tokens did."""
        assert self._before is not None
        after = measure_pairs(model, self._tokenized, self.batch_tokens)
        changes = compare(self._before.frame, after.frame)
        estimates = estimate_changes(changes, self.pairs.units)
        regime = find_regime(estimates["chosen_change"].value, estimates["rejected_change"].value)
        further: dict[str, float] = {"regime": float(regime)}
        for group in sorted(set(self.pairs.groups or [])):
            own = changes[np.array(self.pairs.groups) == group]
            further |= {f"{self.by}={group}/{name}": float(own[COLUMN_OF.get(name, name)].mean()) for name in BY_GROUP}
        if self._probe is not None:
            estimates |= self._probe.estimate(self._probe.read(model)[0])
        verdict = describe_regime(estimates["chosen_change"], estimates["rejected_change"])
        tokens = name_moved_tokens(self._tokenizer, after.mass - self._before.mass)
        if find_rank() == 0:
            self._write_tables(step, changes, tokens)
        return Measurement(step, estimates, verdict, further, {"tokens": tokens})

    def _write_tables(self, step: int, changes: pd.DataFrame, tokens: pd.DataFrame) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        changes.to_parquet(self._folder / f"pairs-{step:08d}.parquet", index=False)
        tokens.to_parquet(self._folder / f"tokens-{step:08d}.parquet", index=False)


COLUMN_OF = {"share_displaced": "displaced", "share_halved": "halved", "ranking_accuracy": "ranking_correct"}


def compare(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Changes of each pair; see ``PairValues`` for the columns of both."""
    changes = pd.DataFrame({"id": after["id"]})
    for side in SIDES:
        changes[f"{side}_change"] = after[f"{side}_logprob"] - before[f"{side}_logprob"]
        changes[f"{side}_change_per_token"] = changes[f"{side}_change"] / after[f"{side}_tokens"]
        changes[f"{side}_end_change"] = after[f"{side}_end"] - before[f"{side}_end"]
    changes["margin"] = after["chosen_logprob"] - after["rejected_logprob"]
    changes["margin_change"] = changes["chosen_change"] - changes["rejected_change"]
    changes["displaced"] = (changes["chosen_change"] < 0) & (changes["margin_change"] > 0)
    changes["halved"] = changes["displaced"] & (changes["chosen_change"] < -math.log(2))
    changes["ranking_correct"] = changes["margin"] >= 0
    changes["entropy"] = after["entropy"]
    changes["entropy_change"] = after["entropy"] - before["entropy"]
    for name in ("ches", "ches_normalized"):
        changes[name] = after[name]
    return changes


def estimate_changes(changes: pd.DataFrame, units: Sequence[int] | NDArray[np.int64]) -> dict[str, Estimate]:
    """Means and shares over pairs, with intervals over the groups that they form.

    Args:
        changes: as ``compare`` makes them.
        units: group of each pair.
    """
    groups, estimates = np.asarray(units), {}
    for name in (*MEANS, *SHARES):
        values = changes[COLUMN_OF.get(name, name)].to_numpy(dtype=np.float64)
        known = np.isfinite(values)
        average = estimate_share if name in SHARES else bootstrap_mean
        if known.any():
            estimates[name] = average(values[known], groups=groups[known])
        else:
            estimates[name] = Estimate(float("nan"), float("nan"), float("nan"), 0)
    return estimates


def name_moved_tokens(tokenizer: Any, moved: NDArray[np.float64]) -> pd.DataFrame:
    """The tokens whose mean probability over the positions of chosen responses rose and fell most.

    Args:
        tokenizer: names the tokens.
        moved: change of the probability of every token.

    Returns:
        token_id, token, change; the largest gain first, the largest loss last.
    """
    order = np.argsort(-moved, kind="stable")
    ids = [*order[:TOP], *order[max(TOP, len(order) - TOP) :]]
    names = [tokenizer.decode([int(id)]) for id in ids]
    return pd.DataFrame({"token_id": [int(id) for id in ids], "token": names, "change": moved[ids]})
