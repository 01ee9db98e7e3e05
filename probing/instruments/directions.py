"""Refusal directions of a model: which tokens it refuses with, which prompts it refuses, and where the kinds differ."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probing.data.places import expand_places
from probing.directions.extract import Method, find_at_positions, project_off
from probing.directions.refusal_score import FoundToken, find_refusal_tokens
from probing.directions.refusal_score import refusal_log_odds as log_odds_of_logits
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import DataInvalid, UsageError
from probing.instruments.capture import BLOCK_ROWS, Capturer, as_prompts
from probing.instruments.reading import read_blocks, set_up
from probing.kernels.output_head import Unembedding, logit_chunks
from probing.models.heads import find_head
from probing.models.in_memory import as_language_model
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.report.progress import Progress
from probing.types import Capture, Directions, LabelledPrompt, Place, Problem

log = logging.getLogger(__name__)

DEFAULT_PLACES = "resid_pre:all"
KINDS = ("harmful", "harmless")
LAST_STATE = Place("final_norm")
FEWEST = 2
"""Prompts of each kind that have to be left."""


def first_token_head(model: LanguageModel) -> Unembedding:
    """The output head of a causal language model, proved; see ``find_head``."""
    with set_up(model):
        return find_head(find_backbone(model))


def read_last_states(model: LanguageModel, prompts: Sequence[LabelledPrompt]) -> tuple[Tensor, list[Problem]]:
    """States that the output head multiplies at the last token before the answer, of the prompts that can be read.

    Returns:
        [prompt width] of the prompts without problems, in order; the problems of the others.
    """
    with set_up(model):
        normed = find_backbone(model).normed
    place = LAST_STATE if normed else Place("resid_post", -1)
    capturer = Capturer(model, Capture((place,), "last", "prompt", chat=True))
    bar = Progress(len(prompts), unit="prompts", doing="reading first tokens")
    blocks = read_blocks(prompts, BLOCK_ROWS, capturer.tokenize, capturer.read, bar)
    problems = [problem for block in blocks for problem in block.problems.values()]
    return torch.cat([block.values[0] for block in blocks]), problems


def mean_first_token(states: Float[Tensor, "prompt width"], head: Unembedding) -> Float[Tensor, " vocabulary"]:
    """Mean probability of every token to come first, over prompts, in float64.

    Args:
        states: at the last token before the answer, as the head multiplies them.
        head: the output head.
    """
    total = torch.zeros(len(head.weight), dtype=torch.float64)
    for _, logits in logit_chunks(states.to(head.weight.device), head):
        total += logits.double().softmax(dim=1).sum(dim=0).cpu()
    return total / len(states)


def score_states(
    states: Float[Tensor, "prompt width"], head: Unembedding, tokens: Sequence[int]
) -> Float[Tensor, " prompt"]:
    """Refusal log-odds of prompts by their states at the last token before the answer, in float64."""
    chunks = logit_chunks(states.to(head.weight.device), head)
    return torch.cat([log_odds_of_logits(logits, tokens).cpu() for _, logits in chunks])


def refusal_log_odds(model: Any, prompts: Any, tokens: Sequence[int | str]) -> Float[Tensor, " prompt"]:
    """Log-odds that a model begins its answer with a refusal token, for each prompt.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer.
        prompts: strings, which become a user's turn of the chat template, or whatever ``capture`` takes.
        tokens: ids of the refusal tokens, or texts of one token each (" I" and "I" are two). ``extract_directions``
            finds and lists those of a model.

    Returns:
        ``ln(P + 1e-8) - ln(1 - P + 1e-8)``, float64, in the order of the prompts; NaN where a prompt cannot be read.

    Raises:
        UsageError: no token, or a text that is not one token.
    """
    language_model, rows = as_language_model(model), as_prompts(prompts)
    ids = resolve_tokens(language_model, tokens)
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        head = first_token_head(language_model)
        states, problems = read_last_states(language_model, rows)
        scores = score_states(states, head, ids) if len(states) else torch.empty(0, dtype=torch.float64)
    unread = {problem.id for problem in problems}
    values = torch.full((len(rows),), float("nan"), dtype=torch.float64)
    values[torch.tensor([row.id not in unread for row in rows])] = scores
    return values


def resolve_tokens(model: LanguageModel, tokens: Sequence[int | str]) -> list[int]:
    """Ids of refusal tokens that are given as ids or as texts.

    Raises:
        UsageError: no token, one twice, an id outside the vocabulary, or a text that is not one token.
    """
    size = len(model.tokenizer)
    ids = [token if isinstance(token, int) else _find_token(model, token) for token in tokens]
    if not ids or len(set(ids)) < len(ids):
        raise UsageError("give at least one refusal token, and none twice")
    outside = [id for id in ids if not 0 <= id < size]
    if outside:
        raise UsageError(f"the tokenizer of {model.source.model} has no token {outside[0]}; it has {size}")
    return ids


def _find_token(model: LanguageModel, text: str) -> int:
    coded = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(coded) != 1:
        raise UsageError(
            f"the refusal token {text!r} is {len(coded)} tokens of {model.source.model}; give a text of one token, or "
            f"its id"
        )
    return int(coded[0])


def choose_tokens(masses: Sequence[Float[Tensor, " vocabulary"]], known: Sequence[int] | None) -> list[FoundToken]:
    """Refusal tokens, those that are known or those that are found, with their mean probabilities.

    Args:
        masses: mean probability of every first token after harmful and after harmless prompts.
        known: ids of the tokens; None to find them.

    Raises:
        DataInvalid: none is known, and the model begins its answers to both kinds alike.
    """
    if known is not None:
        return [FoundToken(id, float(masses[0][id]), float(masses[1][id])) for id in known]
    found = find_refusal_tokens(*masses)
    if not found:
        raise DataInvalid(
            "the model begins its answers to harmful and to harmless prompts alike, so no refusal token can be found: "
            "it may not refuse at all. Give the tokens that it refuses with (--refusal-tokens), or other prompts"
        )
    return found


def describe_scores(scores: Iterable[float], harmful: Iterable[bool]) -> str:
    """How the refusal scores of both kinds lie, as a sentence."""
    told = []
    known = [(float(score), bool(flag)) for score, flag in zip(scores, harmful, strict=True)]
    for kind, name in zip((True, False), KINDS, strict=True):
        own = torch.tensor([score for score, flag in known if flag is kind], dtype=torch.float64)
        low, middle, high = torch.quantile(own, torch.tensor([0.0, 0.5, 1.0]).double()).tolist()
        told.append(f"of {name} prompts from {low:.1f} to {high:.1f}, median {middle:.1f}")
    return f"The scores are {' and '.join(told)}."


@dataclass(frozen=True, eq=False)
class RefusalReading:
    """What a model's first tokens say of harmful and harmless prompts.

    Attributes:
        tokens: refusal tokens with their mean probabilities; of tokens that were given, these are measured as well.
        scores: refusal log-odds of the prompts that could be read, by id.
        problems: the prompts that could not.
    """

    tokens: list[FoundToken]
    scores: dict[str, float]
    problems: list[Problem]

    def passes(self, prompt: LabelledPrompt, harmful: bool) -> bool:
        """Whether a prompt could be read and the model refuses it exactly if it is harmful."""
        score = self.scores.get(prompt.id)
        return score is not None and (score > 0 if harmful else score < 0)


def read_refusals(
    model: LanguageModel,
    harmful: Sequence[LabelledPrompt],
    harmless: Sequence[LabelledPrompt],
    tokens: Sequence[int | str] | None = None,
) -> RefusalReading:
    """Find the tokens that a model refuses with, unless they are given, and score every prompt by them.

    Raises:
        DataInvalid: no prompt of a kind can be read, or the model begins answers to both kinds alike.
        UsageError: see ``resolve_tokens``.
    """
    head = first_token_head(model)
    sides = [read_last_states(model, prompts) for prompts in (harmful, harmless)]
    for name, (states, problems) in zip(KINDS, sides, strict=True):
        if not len(states):
            raise DataInvalid(f"no {name} prompt can be read; the first: {problems[0].id}, {problems[0].detail}")
    masses = [mean_first_token(states, head) for states, _ in sides]
    found = choose_tokens(masses, None if tokens is None else resolve_tokens(model, tokens))
    scores: dict[str, float] = {}
    for prompts, (states, problems) in zip((harmful, harmless), sides, strict=True):
        unread = {problem.id for problem in problems}
        read = [prompt.id for prompt in prompts if prompt.id not in unread]
        scores |= dict(zip(read, score_states(states, head, [each.id for each in found]).tolist(), strict=True))
    return RefusalReading(found, scores, [problem for _, problems in sides for problem in problems])


def keep_by_sign(
    reading: RefusalReading, harmful: Sequence[LabelledPrompt], harmless: Sequence[LabelledPrompt]
) -> tuple[list[LabelledPrompt], list[LabelledPrompt]]:
    """The harmful prompts that the model refuses, and the harmless ones that it does not.

    Raises:
        DataInvalid: too few are left of a kind; says how the scores lie.
    """
    kept = (
        [prompt for prompt in harmful if reading.passes(prompt, harmful=True)],
        [prompt for prompt in harmless if reading.passes(prompt, harmful=False)],
    )
    for name, all_of, left in zip(KINDS, (harmful, harmless), kept, strict=True):
        if len(left) < FEWEST:
            wanted = "above" if name == KINDS[0] else "below"
            read = [prompt.id for side in (harmful, harmless) for prompt in side if prompt.id in reading.scores]
            known = {prompt.id for prompt in harmful}
            told = describe_scores([reading.scores[id] for id in read], [id in known for id in read])
            raise DataInvalid(
                f"of {len(all_of)} {name} prompts {len(left)} have a refusal score {wanted} 0, and {FEWEST} are "
                f"needed. {told} Other refusal tokens may fit, or the filter by the sign can be switched off"
            )
    return kept


def extract_directions(
    model: Any,
    harmful: Any,
    harmless: Any,
    *,
    places: str | Sequence[str] = DEFAULT_PLACES,
    method: Method = "difference_in_means",
    rank: int = 1,
    off_harmless_mean: bool = False,
    winsorized: float = 0.0,
    refusal_tokens: Sequence[int | str] | None = None,
    filter_by_sign: bool = True,
) -> Directions:
    """Directions from harmless to harmful prompts, at every place and every token that ends the prompt.

    States are read at the last token of the instruction, where harmfulness is represented, and at every token that the
    chat template writes after it, where refusal is. The first token of the sequence never counts.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer.
        harmful: prompts that the model should refuse: strings, or whatever ``capture`` takes.
        harmless: prompts that it should answer.
        places: places in the model, as ``probing capture`` takes them.
        method: see ``find_direction``.
        rank: number of vectors, for "paired_svd".
        off_harmless_mean: take the component along the harmless mean off every direction.
        winsorized: share of rows whose values are limited on either side, in every dimension; 0 limits none.
        refusal_tokens: ids or texts of the tokens that the model refuses with; found by itself when None.
        filter_by_sign: leave out harmful prompts that the model does not refuse, and harmless ones that it does.

    Returns:
        All directions; ``.at(place, position)`` gives one.

    Raises:
        DataInvalid: too few prompts that can be read, or that pass the filter; no refusal token.
        LayerNotFound: a place that the model does not have. UsageError: options out of range.
    """
    language_model = as_language_model(model)
    rows = (name_rows(as_prompts(harmful), KINDS[0]), name_rows(as_prompts(harmless), KINDS[1]))
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        reading = None
        if filter_by_sign or refusal_tokens is not None:
            reading = read_refusals(language_model, *rows, tokens=refusal_tokens)
        kept = rows if reading is None or not filter_by_sign else keep_by_sign(reading, *rows)
        expanded = expand_places(places, language_model.layers)
        capturer = Capturer(language_model, Capture(expanded, "tokens", "instruction_end", chat=True))
        by_kind = [list(_read_ends(capturer, prompts, kind)) for prompts, kind in zip(kept, KINDS, strict=True)]
    # Vectors are found place by place, on whole columns of rows.
    vectors, means = [], []
    for at in range(len(capturer.places)):
        sides = [torch.cat([block[at] for block in blocks]) for blocks in by_kind]
        try:
            vectors.append(find_at_positions(*sides, method=method, rank=rank, winsorized=winsorized))
        except ValueError as error:
            raise DataInvalid(f"{capturer.places[at]}: {error}") from error
        means.append([_mean(side) for side in sides])
    harmful_mean, harmless_mean = (torch.stack([pair[number] for pair in means]) for number in range(2))
    found = torch.stack(vectors)
    if off_harmless_mean:
        found = project_off(found, harmless_mean if found.ndim == 3 else harmless_mean[:, :, None])
    positions = tuple(range(-found.shape[1], 0))
    counts = {kind: len(prompts) for kind, prompts in zip(KINDS, kept, strict=True)}
    facts: dict[str, Any] = {"prompts": counts, "filtered_by_sign": filter_by_sign}
    if reading is not None:
        facts["refusal_tokens"] = [token.id for token in reading.tokens]
    name = describe_method(method, rank, off_harmless_mean, winsorized)
    return Directions(
        vectors=found,
        harmful_mean=harmful_mean,
        harmless_mean=harmless_mean,
        places=capturer.places,
        positions=positions,
        source=language_model.source,
        method=name,
        facts=facts,
    )


def describe_method(method: Method, rank: int = 1, off_harmless_mean: bool = False, winsorized: float = 0.0) -> str:
    """How directions were found, in words."""
    words = [method.replace("_", " ")]
    words += [f"rank {rank}"] if rank > 1 else []
    words += [f"winsorized at {winsorized:g}"] if winsorized else []
    words += ["off the harmless mean"] if off_harmless_mean else []
    return ", ".join(words)


def name_rows(prompts: Sequence[LabelledPrompt], kind: str) -> list[LabelledPrompt]:
    """Rows whose ids differ between the kinds."""
    return [replace(prompt, id=f"{kind} {prompt.id}") for prompt in prompts]


def _read_ends(capturer: Capturer, prompts: Sequence[LabelledPrompt], kind: str) -> Iterator[list[Tensor]]:
    """States of some rows at the end of the prompt, one tensor [row position width] a place.

    Raises:
        DataInvalid: fewer rows than needed can be read.
    """
    bar = Progress(len(prompts), unit="prompts", doing=f"reading {kind} prompts")
    blocks = read_blocks(prompts, BLOCK_ROWS, capturer.tokenize, capturer.read, bar)
    problems = [problem for block in blocks for problem in block.problems.values()]
    if len(prompts) - len(problems) < FEWEST:
        first = f"; the first: {problems[0].id}, {problems[0].detail}" if problems else ""
        raise DataInvalid(f"of {len(prompts)} {kind} prompts fewer than {FEWEST} can be read{first}")
    if problems:
        log.warning("%d of %d %s prompts cannot be read: %s", len(problems), len(prompts), kind, problems[0].detail)
    for block in blocks:
        if len(block.counts):
            yield [split_positions(values, block.counts) for values in block.values]


def split_positions(values: Float[Tensor, "token width"], counts: Tensor) -> Float[Tensor, "row position width"]:
    """Tokens of rows that have as many each, by row.

    Raises:
        DataInvalid: rows have different numbers of tokens.
    """
    if len(counts.unique()) > 1:
        raise DataInvalid("the chat template writes ends of different length after the instructions of these prompts")
    return values.reshape(len(counts), int(counts[0]), values.shape[1])


def _mean(states: Tensor) -> Tensor:
    return states.double().sum(dim=0) / len(states)
