"""What a trace reads of a model: heads and log-odds at a place, projections of tokens, refusal tokens, answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.data.surface import scale_surface
from probing.directions.refusal_score import FoundToken
from probing.directions.surrogate import Decisions, HeadPlan, fit_heads, plan_heads
from probing.engine.stream import Stream
from probing.engine.suffix import apply_final_norm
from probing.engine.trees import Segment
from probing.errors import DataInvalid, NotFinite, UsageError
from probing.instruments.capture import BLOCK_ROWS, Capturer
from probing.instruments.directions import (
    KINDS,
    LAST_STATE,
    choose_tokens,
    mean_first_token,
    resolve_tokens,
    score_states,
)
from probing.instruments.reading import Advance, open_stream, read_blocks, report_tokens, set_up
from probing.instruments.trace_tables import TracedText
from probing.kernels.output_head import Unembedding
from probing.models.differences import channelwise_difference
from probing.models.layers import find_stack
from probing.models.load import LanguageModel
from probing.models.stack import Stack
from probing.probes.controls import draw_directions
from probing.report.progress import Progress
from probing.store.directions import check_model
from probing.types import Capture, Direction, LabelledPrompt, Place, Problem

SURFACE = "surface"
"""Stands among the places for the heads that read lengths and punctuation only."""
LENS_KIND: Literal["resid_post"] = "resid_post"
"""The places at which the log-odds are read."""
FAITHFUL = {torch.float32: 1e-4, torch.float64: 1e-8}
FAITHFUL_HALF = 1e-2
"""How far the final norm on the last block's output may be from what the backbone returns."""
LEAST = 4
"""Prompts of each kind that have to be readable."""


@dataclass(frozen=True, eq=False)
class Lens:
    """Reads the refusal log-odds from the output of any block, as if the model ended there.

    Attributes:
        stack: the model, of which the final norm is used.
        head: the output head, proved; its scale and soft cap are part of it.
        tokens: ids of the refusal tokens.
    """

    stack: Stack
    head: Unembedding
    tokens: Sequence[int]

    def score(self, states: Float[Tensor, "row width"]) -> Float[Tensor, " row"]:
        """Refusal log-odds by the final norm and the output head, float64.

        Args:
            states: behind a block, at the last token before the answer.
        """
        model = self.stack.language_model
        with torch.inference_mode(), set_up(model):
            there = states.to(self.head.weight.device, model.dtype)
            return score_states(apply_final_norm(self.stack, there), self.head, self.tokens)

    def find_why_not(self, states: Float[Tensor, "row width"], ended: Float[Tensor, "row width"]) -> str:
        """Why block outputs cannot be read in this way; empty where the last block's give what the model itself says.

        Args:
            states: behind the last block.
            ended: what the backbone returns for the same prompts.
        """
        if self.stack.normed and self.stack.final_norm is None:
            return "what stands between the last block and the output head is not a single module"
        model = self.stack.language_model
        with torch.inference_mode(), set_up(model):
            own = apply_final_norm(self.stack, states.to(self.head.weight.device, model.dtype))
        off = channelwise_difference(own, ended.to(own))
        allowed = FAITHFUL.get(model.dtype, FAITHFUL_HALF)
        return "" if off <= allowed else f"the final norm on the last block's output is off by {off:.1e}"


@dataclass(frozen=True, eq=False)
class ProjectionReader:
    """Reads the projection of every token of a text on a direction and on random ones, all of length 1.

    Attributes:
        model: the model.
        stream: reads the states at the direction's place.
        vectors: the direction, then the random ones, [direction width].
    """

    model: LanguageModel
    stream: Stream
    vectors: Float[Tensor, "direction width"]

    @staticmethod
    def open(
        model: LanguageModel, direction: Direction, count: int, seed: int, batch_tokens: int | None = None
    ) -> "ProjectionReader":
        """A reader of a model along a direction of it.

        Raises:
            SourceMismatch: the direction is of another model. UsageError: it is a subspace.
        """
        if direction.rank > 1:
            raise UsageError(f"a subspace of rank {direction.rank}; the projection on one vector is traced")
        with set_up(model):
            stack = find_stack(model)
            check_model(direction, model.source, stack.width, len(stack.blocks))
            stream = open_stream(stack, stack.sites([direction.place]), ("tokens",), batch_tokens)
        own = direction.vector.double().reshape(1, -1)
        random = torch.from_numpy(draw_directions(stack.width, count, seed)).T
        return ProjectionReader(model, stream, torch.cat([own / own.norm(), random]))

    def read(self, texts: Sequence[TracedText], report: Advance | None = None) -> list[NDArray[np.float64]]:
        """Projections of every text's tokens but the first, [token direction] each, in float64.

        Raises:
            NotFinite: a state is NaN or infinite; names the text.
        """
        segments = [Segment(text.ids, 1, len(text.ids), text.prompt_tokens) for text in texts]
        tokens = sum(segment.stop for segment in segments)
        with set_up(self.model):
            readings = self.stream.read(segments, report_tokens(report, len(segments), tokens))
        parts = readings.values["tokens"][0].split(readings.counts.tolist())
        for text, states in zip(texts, parts, strict=True):
            if not bool(torch.isfinite(states).all()):
                raise NotFinite(f"row '{text.id}': states are NaN or infinite; try float32")
        return [(states.double().cpu() @ self.vectors.T).numpy() for states in parts]


def trace_place(
    place: str,
    states: Float[Tensor, "row width"],
    plan: HeadPlan | None,
    decided: NDArray[np.bool_],
    lens: Lens | None,
) -> dict[str, NDArray[np.float64]]:
    """What is read at one place: logits of the heads, and the refusal log-odds behind a block.

    Args:
        place: the place, or ``SURFACE`` for features of the texts.
        states: at the last token before the answer, of all prompts.
        plan: the heads; None where none are fitted there.
        decided: prompts of which the decision is known, on which heads are fitted.
        lens: reads log-odds; None where they cannot be read.
    """
    arrays = {} if plan is None else fit_heads(states[torch.from_numpy(decided)], plan)
    if lens is not None and place.startswith(LENS_KIND):
        arrays["lens"] = lens.score(states).numpy()
    return arrays


def surface_states(prompts: Sequence[LabelledPrompt]) -> Float[Tensor, "row feature"]:
    """Lengths and punctuation of prompts, for heads that know no more."""
    return torch.from_numpy(scale_surface(prompts)[0])


def append_answer(
    tokenizer: Any, prompt: Sequence[int], answer: str, thought: str | None = None, tag: str = ""
) -> tuple[list[int], int]:
    """Token ids of a prompt with an answer behind it, and the number of the answer's first token.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: token ids up to the answer.
        answer: the answer.
        thought: what the model thought first; None where it did not.
        tag: the tag that ends thoughts.
    """

    def encode(text: str) -> list[int]:
        coded: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return coded

    begun = list(prompt) if thought is None else [*prompt, *encode(f"{thought}\n{tag}\n\n")]
    return [*begun, *encode(answer)], len(begun)


@dataclass(frozen=True, eq=False)
class PromptEnds:
    """States of prompts at the last token before the answer.

    Attributes:
        prompts: those that could be read.
        harmful: whether each is harmful.
        ids: token ids of each.
        places: places in the model.
        values: states at each of them.
        problems: the prompts that could not be read.
    """

    prompts: list[LabelledPrompt]
    harmful: NDArray[np.bool_]
    ids: list[list[int]]
    places: tuple[Place, ...]
    values: list[Tensor]
    problems: list[Problem]

    def at(self, place: Place) -> Float[Tensor, "row width"]:
        """States at a place."""
        return self.values[self.places.index(place)]


def check_prompts_left(harmful: NDArray[np.bool_], problems: Sequence[Problem]) -> None:
    """Raise unless enough prompts of both kinds could be read.

    Raises:
        NotFinite: the states of all others are NaN or infinite. DataInvalid: they cannot be read for another reason.
    """
    for kind, name in zip((True, False), KINDS, strict=True):
        count = int((harmful == kind).sum())
        if count < LEAST:
            broken = bool(problems) and all(problem.status == "not_finite" for problem in problems)
            first = f"; the first that cannot: {problems[0].id}, {problems[0].detail}" if problems else ""
            raise (NotFinite if broken else DataInvalid)(
                f"{count} {name} prompts can be read, and {LEAST} are needed{first}"
            )


def read_ends(
    model: LanguageModel, harmful: Sequence[LabelledPrompt], harmless: Sequence[LabelledPrompt], places: Sequence[Place]
) -> PromptEnds:
    prompts = [*harmful, *harmless]
    capturer = Capturer(model, Capture(tuple(places), "last", "prompt", chat=True))
    bar = Progress(len(prompts), unit="prompts", doing="reading prompts")
    blocks = read_blocks(prompts, BLOCK_ROWS, capturer.tokenize, capturer.read, bar)
    problems = {id: problem for block in blocks for id, problem in block.problems.items()}
    kept = [at for at, prompt in enumerate(prompts) if prompt.id not in problems]
    ids = [row.ids for block in blocks for row in block.tokenized if row.id not in problems]
    return PromptEnds(
        [prompts[at] for at in kept],
        np.array([at < len(harmful) for at in kept], dtype=bool),
        ids,
        places=capturer.places,
        values=[torch.cat(parts) for parts in zip(*(block.values for block in blocks), strict=True)],
        problems=list(problems.values()),
    )


def list_lens_places(stack: Stack) -> tuple[list[Place], Place]:
    """The output of every block, and what the output head multiplies."""
    blocks = [Place(LENS_KIND, layer) for layer in range(len(stack.blocks))]
    return blocks, LAST_STATE if stack.normed else blocks[-1]


def find_refusal_words(
    model: LanguageModel,
    ended: Float[Tensor, "row width"],
    head: Unembedding,
    harmful: NDArray[np.bool_],
    known: Sequence[int | str] | None,
) -> list[FoundToken]:
    """Refusal tokens, those that are known or found from the prompts, with their mean probabilities.

    Raises:
        DataInvalid: none is known, and the model begins its answers to both kinds alike.
        UsageError: see ``resolve_tokens``.
    """
    masses = [mean_first_token(ended[torch.from_numpy(harmful == kind)], head) for kind in (True, False)]
    return choose_tokens(masses, None if known is None else resolve_tokens(model, known))


def plan_or_refuse(decisions: Decisions, folds: int, refits: int, seed: int, inverse_penalty: float = 1.0) -> HeadPlan:
    """The heads that are fitted.

    Raises:
        DataInvalid: the model refuses too few or too many of the prompts, or there are too few.
    """
    try:
        plan = plan_heads(decisions, folds, refits=refits, seed=seed, inverse_penalty=inverse_penalty)
        for name in plan.tasks:
            plan.labelings(name)
    except ValueError as error:
        raise DataInvalid(
            f"the model's decision cannot be told by a head: {error}. Give other prompts or refusal tokens, or leave "
            f"the classifier out (--no-classifier): the other measurements need no difference in decisions"
        ) from error
    return plan
