"""A fixed set of preference pairs, measured again and again while a model is trained."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.columns import column_values
from probing.data.memory import table_from_memory
from probing.data.pair_columns import PairColumns
from probing.data.pair_units import pair_units
from probing.data.pairs import pairs_from_table
from probing.data.tables import read_table
from probing.errors import DataInvalid, NotFinite
from probing.instruments.pair_scores import Measured, PairScorer
from probing.kernels.output_head import Unembedding, logit_chunks
from probing.models.language_model import LanguageModel
from probing.tokens.encoding import closing_ids
from probing.tokens.pairs import TokenizedPair
from probing.training.processes import gather_all, take_own_rows
from probing.types import PreferencePair

SIDES = ("chosen", "rejected")
MASS = "mass"
LEAST_LOGPROB = -1e4
"""Stands for ln 0, which times 0 is 0."""
SCORED = ("ches", "ches_normalized", "chosen_logprob", "rejected_logprob")


@dataclass(frozen=True)
class PairSet:
    """Preference pairs and how they belong together.

    Attributes:
        pairs: the pairs.
        units: number for each pair, equal for those that share a prompt or a text.
        groups: value of the column by which numbers are repeated, of each pair; None where there is none.
        name: where they came from.
    """

    pairs: Sequence[PreferencePair]
    units: NDArray[np.int64]
    groups: list[str] | None
    name: str

    @classmethod
    def read(cls, given: Any, by: str | None = None, columns: PairColumns | None = None) -> "PairSet":
        """Pairs from whatever a caller has them in.

        Args:
            given: a path, a hub id or "bundled"; a ``datasets.Dataset``, a ``pandas.DataFrame``, a list of mappings or
                of ``PreferencePair``.
            by: column by whose values numbers are repeated.
            columns: the columns of prompts and responses, where they are none of the known layouts.

        Raises:
            DataInvalid: no rows, an invalid row, or one without a value in ``by``; names the row.
            TypeError: it holds no rows.
        """
        if isinstance(given, str | Path):
            table = read_table(str(bundled_data("pairs")) if given == BUNDLED else str(given))
        else:
            table = table_from_memory(given, "the pairs of the callback")
        pairs = pairs_from_table(table, columns=columns or PairColumns())
        groups = None if by is None else [str(value) for value in column_values(table, by)]
        return cls(pairs, pair_units(pairs), groups, table.path)


@dataclass(frozen=True)
class PairValues:
    """What a model says of the pairs at one moment.

    Attributes:
        frame: one row a pair, in order: id, and in nats ``{side}_logprob`` (summed over the response), ``{side}_end``
            (of its end of turn; NaN where it has none); ``{side}_tokens``; ``entropy`` (mean over the tokens of the
            chosen response), ``ches``, ``ches_normalized``.
        mass: mean probability of every token of the vocabulary over the positions of all chosen responses.
    """

    frame: pd.DataFrame
    mass: NDArray[np.float64]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The numbers by name, float64."""
        columns = self.frame.drop(columns="id")
        return {str(name): torch.tensor(columns[name].to_numpy(dtype=np.float64)) for name in columns} | {
            MASS: torch.from_numpy(self.mass)
        }

    @classmethod
    def of(cls, ids: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> "PairValues":
        """The values whose numbers ``tensors`` gave."""
        columns = {name: tensor.numpy() for name, tensor in tensors.items() if name != MASS}
        return cls(pd.DataFrame({"id": list(ids), **columns}), tensors[MASS].numpy())


def tokenize_set(model: LanguageModel, pairs: PairSet, max_length: int | None) -> list[TokenizedPair]:
    """The pairs as this model sees them.

    Raises:
        DataInvalid: a pair cannot be scored, such as one that is too long; names it and how many more there are.
    """
    tokenized = PairScorer(model, columns=SCORED, max_length=max_length).tokenize(pairs.pairs)
    problems = [row.problem for row in tokenized if row.problem is not None]
    if problems:
        more = f", and {len(problems) - 1} more such pairs" if len(problems) > 1 else ""
        raise DataInvalid(
            f"{pairs.name}: the pair '{problems[0].id}' cannot be scored: {problems[0].detail}{more}; a probe set is "
            f"measured as a whole, so leave such pairs out of it"
        )
    return tokenized


def hash_tokens(tokenized: Sequence[TokenizedPair]) -> str:
    """A hash of ids and tokens of all pairs, in order: it differs for other pairs, another tokenizer or template."""
    digest = hashlib.sha256()
    for pair in tokenized:
        digest.update(json.dumps([pair.id, pair.prompt_tokens, pair.chosen, pair.rejected]).encode())
    return digest.hexdigest()


def measure_pairs(
    model: LanguageModel, tokenized: Sequence[TokenizedPair], batch_tokens: int | None = None
) -> PairValues:
    """What a model says of the pairs now; in a distributed run each process runs its share, and all know all.

    Args:
        model: the model, the same in every process.
        tokenized: all pairs, as ``tokenize_set`` returned them.
        batch_tokens: padded tokens a batch; found by itself when None.

    Raises:
        NotFinite: a number of a pair is not finite; names the pair and where.
        ProcessFailed: another process could not measure its share.
    """
    own = take_own_rows(tokenized)
    shares = gather_all(lambda: _measure(model, own, batch_tokens) if own else None)
    known = [share for share in shares if share is not None]
    order = {pair.id: number for number, pair in enumerate(tokenized)}
    frame = pd.concat([values for values, _, _ in known])
    frame = frame.sort_values("id", key=lambda ids: ids.map(order)).reset_index(drop=True)
    positions = sum(count for _, _, count in known)
    return PairValues(frame, np.sum([mass for _, mass, _ in known], axis=0) / positions)


def _measure(
    model: LanguageModel, pairs: Sequence[TokenizedPair], batch_tokens: int | None
) -> tuple[pd.DataFrame, NDArray[np.float64], int]:
    """Values of some pairs, summed probabilities of tokens, and the number of positions."""
    scorer = PairScorer(model, columns=SCORED, batch_tokens=batch_tokens, keep_states=True)
    closing = closing_ids(model.tokenizer)
    frames, mass, positions = [], np.zeros(len(scorer.head.weight)), 0
    for group in scorer.groups(pairs):
        measured = scorer.measure(group)
        for pair, trouble in zip(group, scorer.find_troubles(group, measured), strict=True):
            if trouble is not None:
                raise NotFinite(f"pair '{pair.id}': {trouble}")
        values, own_mass, own_positions = _read_tokens(scorer, group, measured, closing)
        frames.append(values)
        mass += own_mass
        positions += own_positions
    return pd.concat(frames), mass, positions


def _read_tokens(
    scorer: PairScorer, pairs: Sequence[TokenizedPair], measured: Measured, closing: frozenset[int]
) -> tuple[pd.DataFrame, NDArray[np.float64], int]:
    """Numbers of each pair, and the summed distributions at the positions of their chosen responses."""
    assert measured.stats is not None and measured.states is not None  # noqa: PT018 (for the type checker)
    lengths = [getattr(pair, f"{side}_tokens") for pair in pairs for side in SIDES]
    logprobs = measured.stats[:, 0].double().split(lengths)
    chosen = torch.cat(measured.states.split(lengths)[::2])
    entropies, mass = _read_distributions(chosen, scorer.head)
    values: dict[str, list[Any]] = {"id": [pair.id for pair in pairs]}
    values |= {name: list(measured.columns[name]) for name in SCORED}
    for number, side in enumerate(SIDES):
        values[f"{side}_tokens"] = lengths[number::2]
        values[f"{side}_end"] = [
            _end_logprob(getattr(pair, side)[pair.prompt_tokens :], own, closing)
            for pair, own in zip(pairs, logprobs[number::2], strict=True)
        ]
    values["entropy"] = [float(own.mean()) for own in entropies.split(lengths[::2])]
    return pd.DataFrame(values), mass.numpy(), len(chosen)


def _read_distributions(states: torch.Tensor, head: Unembedding) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of the next token behind each state, in nats, and the sum of all these distributions; on the CPU."""
    entropies, mass = [], torch.zeros(len(head.weight), dtype=torch.float64)
    with torch.inference_mode():
        for _, logits in logit_chunks(states.to(head.weight.device), head):
            logprobs = logits.log_softmax(dim=1)
            shares = logprobs.exp()
            entropies.append(-torch.linalg.vecdot(shares, logprobs.clamp_min(LEAST_LOGPROB)).double().cpu())
            mass += shares.sum(dim=0).double().cpu()
    return torch.cat(entropies), mass


def _end_logprob(ids: Sequence[int], logprobs: torch.Tensor, closing: frozenset[int]) -> float:
    """ln p of the last token that ends a turn; NaN where there is none."""
    ends = [index for index, id in enumerate(ids) if id in closing]
    return float(logprobs[ends[-1]]) if ends else float("nan")
