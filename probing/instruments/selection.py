"""The measurements by which a direction is selected on a model, and the selection as one function."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.cosmic import choose_cosmic_layers
from probing.directions.measurements import Measure, Measured, Score
from probing.directions.refusal_score import first_token_divergence
from probing.engine.ablation import ablate
from probing.engine.suffix import Recording, apply_final_norm, find_why_not, record, repeat_states, run_from
from probing.errors import DataInvalid, OutOfMemory, UsageError
from probing.instruments.capture import Capturer
from probing.instruments.directions import FEWEST, KINDS, LAST_STATE, first_token_head, score_states
from probing.instruments.reading import set_up
from probing.kernels.output_head import Unembedding, logit_chunks
from probing.models.hooks import Tap, tap_modules
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.models.passes import last_hidden_state, use_eval_mode
from probing.models.stack import Stack
from probing.store.directions import check_model
from probing.tokens.padding import padded_length
from probing.types import Capture, Direction, Directions, LabelledPrompt, Place

log = logging.getLogger(__name__)

BLOCK_PROMPTS = 8
"""Prompts that are measured together; after each such block a candidate may be given up."""
HARMFUL, HARMLESS = KINDS
Side = Literal["resid_pre", "resid_post"]
Run = Callable[[Sequence[int], "PromptBlock"], tuple[Tensor, Tensor | None]]
"""States of the last tokens of some rows on a block of prompts: those that the head multiplies, and COSMIC's."""


@dataclass(frozen=True, eq=False)
class PromptBlock:
    """Prompts of one padded length that run together.

    Attributes:
        ids: [prompt token], filled up on the right.
        last: index of the last token of each prompt.
    """

    ids: Tensor
    last: Tensor


@dataclass(frozen=True, eq=False)
class Base:
    """What the unedited model makes of one block of prompts.

    Attributes:
        last: what the output head multiplies at the last token, [prompt width].
        ends: states behind every block at the last token, on the host, [prompt layer width].
        recording: what the blocks were called with; None where whole passes are run.
    """

    last: Tensor
    ends: Tensor
    recording: Recording | None


@dataclass(eq=False)
class ModelMeasurements:
    """Scores of directions, measured on the model that they are of: ``probing.directions.measurements.Measurements``.

    bypass: mean refusal score of harmful prompts with the direction ablated at every write to the residual stream.
    induce: mean refusal score of harmless prompts with the direction added at its place, at all tokens.
    kl: mean KL(base || ablated) of the first token of harmless prompts. All candidates of a layer run as rows of the
    same batches, each edited by its own direction. Prompts of one length (padded to a multiple of 16) run together, so
    that no number depends on which others there are.

    Args:
        model: the model.
        directions: its directions.
        harmful: harmful prompts.
        harmless: harmless prompts.
        tokens: ids of the refusal tokens.
        batch_tokens: tokens in a batch; found by itself when None.
        max_length: longest prompt; by default what the model has positions for.
        whole_passes: run every pass through the whole model, also where the blocks below a direction change nothing.
        cosmic: whether the states that COSMIC looks at are read.

    Raises:
        DataInvalid: too few prompts can be read.
        UsageError: directions that cannot be added to the residual stream.
        SourceMismatch: directions of another model.
    """

    model: LanguageModel
    directions: Directions
    harmful: Sequence[LabelledPrompt]
    harmless: Sequence[LabelledPrompt]
    tokens: Sequence[int]
    batch_tokens: int | None = None
    max_length: int | None = None
    whole_passes: bool = False
    cosmic: bool = True
    candidates: NDArray[np.bool_] = field(init=False)
    targets: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(init=False, default=None)
    cosmic_layers: list[int] = field(init=False, default_factory=list)
    how: str = field(init=False)

    def __post_init__(self) -> None:
        with set_up(self.model):
            self.stack: Stack = find_backbone(self.model)
            self.head: Unembedding = first_token_head(self.model)
            self.kind = check_directions(self.directions, self.model, self.stack)
            self.candidates = self._find_candidates()
            self.prompts = {HARMFUL: self._make_blocks(self.harmful), HARMLESS: self._make_blocks(self.harmless)}
            why_not = "" if self.whole_passes else find_why_not(self.stack)
            self._shares = not self.whole_passes and not why_not
            self.how = "directions are added to states that were read once" if self._shares else "whole passes"
            if why_not:
                family = self.stack.family
                self.how += f", because {why_not}"
                log.warning(
                    "%s: every direction is added in a pass through the whole model, because %s", family, why_not
                )
            with self._passes():
                self._bases = {kind: [self._run_base(kind, each) for each in own] for kind, own in self.prompts.items()}
            if self.cosmic:
                self._look_for_cosmic()

    @property
    def base_scores(self) -> dict[str, float]:
        """Mean refusal score of the unedited model by kind of prompt."""
        means = {}
        for kind, bases in self._bases.items():
            scores = torch.cat([score_states(base.last, self.head, self.tokens) for base in bases])
            means[kind] = float(scores.mean())
        return means

    def blocks(self, score: Score) -> Sequence[int]:
        """Number of prompts in each block."""
        return [len(block.ids) for block in self.prompts[_kind_of(score)]]

    def depth(self, score: Score, layer: int) -> int:
        """Number of blocks of the model that one prompt runs through."""
        return len(self.stack.blocks) - (self._start(layer) if score == "induce" and self._shares else 0)

    @contextlib.contextmanager
    def open(self, score: Score, layer: int, rows: Sequence[int]) -> Iterator[Measure]:
        """Prepare the measurement of some rows of a layer: the edit is put on, and proved."""
        with self._passes():
            if score == "induce" and self._shares:
                yield lambda left, block: self._add_to_states(layer, left, block)
                return
            chosen = [self.direction(row, layer) for row in rows]
            with ablate(self.model, chosen, "add" if score == "induce" else "project") as edit:
                at = {row: index for index, row in enumerate(rows)}

                def run(left: Sequence[int], block: PromptBlock) -> tuple[Tensor, Tensor | None]:
                    own = torch.tensor([at[row] for row in left])
                    edit.assign(own.repeat_interleave(len(block.ids)))
                    return self._run(block.ids.repeat(len(left), 1), block.last.repeat(len(left)))

                yield lambda left, block: self._measure(score, left, block, run)

    def direction(self, row: int, layer: int) -> Direction:
        """The direction of a candidate."""
        return self.directions.at(Place(self.kind, layer), self.directions.positions[row])

    def _find_candidates(self) -> NDArray[np.bool_]:
        found = np.zeros((len(self.directions.positions), len(self.stack.blocks)), dtype=bool)
        finite = self.directions.vectors.isfinite().flatten(2).all(dim=-1).numpy()
        for place, own in zip(self.directions.places, finite, strict=True):
            found[:, place.layer] = own
        if not found.any():
            raise DataInvalid("there is no direction: all prompts look the same at every place")
        return found

    def _make_blocks(self, prompts: Sequence[LabelledPrompt]) -> list[PromptBlock]:
        """Prompts by padded length, a few together.

        Raises:
            DataInvalid: too few can be read.
        """
        place = LAST_STATE if self.stack.normed else Place("resid_post", -1)
        capturer = Capturer(
            self.model,
            Capture((place,), "last", "prompt", chat=True),
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
        )
        self.budget = capturer.stream.budget
        tokenized = capturer.tokenize(list(prompts))
        read = [row.ids[: row.stop] for row in tokenized if row.problem is None]
        if len(read) < FEWEST:
            first = next((f"; the first: {row.id}, {row.problem.detail}" for row in tokenized if row.problem), "")
            raise DataInvalid(f"{len(read)} prompts of a kind can be read, and {FEWEST} are needed{first}")
        by_length: dict[int, list[list[int]]] = {}
        for ids in read:
            by_length.setdefault(padded_length(len(ids), self.model.max_positions), []).append(ids)
        blocks = []
        for length, own in sorted(by_length.items()):
            # As many as are run together in a batch at all.
            size = max(1, min(BLOCK_PROMPTS, self.budget.tokens // length))
            blocks += [_pad(own[at : at + size], length, self.model.device) for at in range(0, len(own), size)]
        return blocks

    def _run_base(self, kind: str, block: PromptBlock) -> Base:
        recording = None
        taps = [Tap(each) for each in self.stack.blocks]
        with self._gather(taps, block.last) as ends:
            if self._shares and kind == HARMLESS:
                recording = record(self.stack, block.ids)
                states = recording.last
            else:
                states = last_hidden_state(self.stack.backbone, block.ids)
        return Base(_pick(states, block.last), torch.stack(ends, dim=1), recording)

    def _look_for_cosmic(self) -> None:
        """The layers that COSMIC looks at, and the mean states of both kinds there."""
        means = {kind: torch.cat([base.ends for base in own]).mean(dim=0).numpy() for kind, own in self._bases.items()}
        self.cosmic_layers = choose_cosmic_layers(means[HARMFUL], means[HARMLESS])
        self.targets = (means[HARMFUL][self.cosmic_layers], means[HARMLESS][self.cosmic_layers])

    def _start(self, layer: int) -> int:
        """The first block above a direction."""
        return layer + (self.kind == "resid_post")

    def _add_to_states(self, layer: int, rows: Sequence[int], number: int) -> Measured:
        """Run the blocks above a layer on recorded states to which directions are added."""
        start, base = self._start(layer), self._bases[HARMLESS][number]
        recording = base.recording
        assert recording is not None
        states = recording.states[start].to(self.model.device)
        taps = [Tap(self.stack.blocks[at]) for at in self.cosmic_layers if at >= start]
        below = base.ends[:, [at for at in self.cosmic_layers if at < start]]

        def run(left: Sequence[int], block: PromptBlock) -> tuple[Tensor, Tensor | None]:
            shifts = [self.direction(row, layer).vector.reshape(-1) for row in left]
            last = block.last.repeat(len(left))
            with self._gather(taps, last) as above:
                ended = run_from(self.stack, recording, start, repeat_states(states, shifts), len(left))
            # The norm is of each token by itself.
            normed = apply_final_norm(self.stack, _pick(ended, last)[:, None])[:, 0]
            if not self.cosmic_layers:
                return normed, None
            return normed, torch.cat([below.repeat(len(left), 1, 1), *(each[:, None] for each in above)], dim=1)

        return self._measure("induce", rows, number, run)

    def _run(self, ids: Tensor, last: Tensor) -> tuple[Tensor, Tensor | None]:
        """States that the head multiplies at the last token, and those that COSMIC looks at."""
        with self._gather([Tap(self.stack.blocks[at]) for at in self.cosmic_layers], last) as ends:
            states = last_hidden_state(self.stack.backbone, ids)
        return _pick(states, last), torch.stack(ends, dim=1) if ends else None

    def _measure(self, score: Score, rows: Sequence[int], number: int, run: Run) -> Measured:
        """Numbers of some rows on one block of prompts, in batches that fit into memory."""
        block, base = self.prompts[_kind_of(score)][number], self._bases[_kind_of(score)][number]
        scores, ends, at = [], [], 0
        while at < len(rows):
            part = rows[at : at + max(1, self.budget.tokens // block.ids.numel())]
            try:
                states, own = run(part, block)
                found = self._score(score, states, base).reshape(len(part), len(block.ids))
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise OutOfMemory(
                        f"{block.ids.numel()} tokens do not fit into memory; lower batch_tokens"
                    ) from error
                self.budget.shrink(len(part) * block.ids.numel())
                continue
            scores.append(found)
            ends += [] if own is None else [own.reshape(len(part), len(block.ids), *own.shape[1:]).sum(dim=1)]
            at += len(part)
        return Measured(torch.cat(scores).numpy(), torch.cat(ends).numpy() if ends else None)

    def _score(self, score: Score, states: Tensor, base: Base) -> Float[Tensor, " row"]:
        if score != "kl":
            return score_states(states, self.head, self.tokens)
        own = torch.cat(
            [logits.clone() for _, logits in logit_chunks(base.last.to(self.head.weight.device), self.head)]
        )
        found = []
        for rows, logits in logit_chunks(states.to(self.head.weight.device), self.head):
            which = torch.arange(rows.start, rows.stop, device=own.device) % len(own)
            found.append(first_token_divergence(own[which], logits).cpu())
        return torch.cat(found)

    @contextlib.contextmanager
    def _passes(self) -> Iterator[None]:
        with set_up(self.model), torch.inference_mode(), use_eval_mode(self.model.model):
            yield

    @contextlib.contextmanager
    def _gather(self, taps: Sequence[Tap], last: Tensor) -> Iterator[list[Tensor]]:
        """Collect states of the last tokens that pass some taps, in float64 on the host, in the order of the taps."""
        found: list[Tensor] = []

        def receive(index: int, tensor: Tensor | None) -> None:
            assert tensor is not None
            found.append(_pick(tensor, last).double().cpu())

        with tap_modules(taps, receive):
            yield found


def _kind_of(score: Score) -> str:
    """Which prompts a score is measured on."""
    return HARMFUL if score == "bypass" else HARMLESS


def _pad(rows: Sequence[Sequence[int]], length: int, device: torch.device) -> PromptBlock:
    """Rows filled up with their own last token: the state of a foreign one might be NaN."""
    ids = torch.tensor([[*row, *[row[-1]] * (length - len(row))] for row in rows])
    return PromptBlock(ids.to(device), torch.tensor([len(row) - 1 for row in rows]))


def _pick(states: Float[Tensor, "row token width"], last: Tensor) -> Float[Tensor, "row width"]:
    """States of the last tokens."""
    return states[torch.arange(len(states), device=states.device), last.to(states.device)]


def check_directions(directions: Directions, model: LanguageModel, stack: Stack) -> Side:
    """The side of the blocks at which directions were read.

    Raises:
        UsageError: they cannot be added to the residual stream.
        SourceMismatch: they are of another model.
    """
    kinds = {place.kind for place in directions.places}
    if len(kinds) > 1 or not kinds <= set(get_args(Side)):
        raise UsageError(
            f"directions are selected at the input or at the output of blocks, and these were read at "
            f"{', '.join(sorted(kinds))}: extract them at places of one kind, resid_pre or resid_post"
        )
    if directions.vectors.ndim == 4 and directions.vectors.shape[2] > 1:
        raise UsageError(
            f"subspaces of rank {directions.vectors.shape[2]} have no length, so that they cannot be added: extract "
            f"directions of rank 1"
        )
    vector = directions.vectors.new_ones(directions.vectors.shape[-1])
    for place in directions.places:
        check_model(Direction(vector, place, -1, directions.source), model.source, stack.width, len(stack.blocks))
    return "resid_post" if "resid_post" in kinds else "resid_pre"
