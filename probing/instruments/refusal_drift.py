"""What became of refusal between two models: how much each refuses, and how far the direction moved."""

from collections.abc import Sequence
from dataclasses import dataclass

from probing.directions.extract import cosine
from probing.directions.refusal_score import FoundToken
from probing.errors import DataInvalid
from probing.instruments.directions import extract_directions, read_refusals
from probing.models.load import LanguageModel
from probing.types import Directions, LabelledPrompt, Problem


@dataclass(frozen=True, eq=False)
class RefusalChange:
    """How much two models refuse the same prompts, by the same tokens.

    Attributes:
        tokens: the refusal tokens, with their mean probabilities in the model that they were found in.
        found_in: "reference", "policy", or "given"; "neither" where both begin answers to both kinds alike.
        before: refusal log-odds in the reference, by the id of each prompt that both models can read.
        after: the same in the policy.
        problems: prompts that one of them cannot read.
    """

    tokens: tuple[FoundToken, ...]
    found_in: str
    before: dict[str, float]
    after: dict[str, float]
    problems: tuple[Problem, ...] = ()


def compare_refusals(
    reference: LanguageModel,
    policy: LanguageModel,
    harmful: Sequence[LabelledPrompt],
    harmless: Sequence[LabelledPrompt],
    tokens: Sequence[int | str] | None = None,
) -> RefusalChange:
    """Refusal log-odds of the prompts in both models, by tokens that are given or found.

    They are found in the reference; where it refuses nothing, in the policy, since training may have taught it.

    Raises:
        DataInvalid: no prompt of a kind can be read. UsageError: a token that there is not.
    """
    models = {"reference": reference, "policy": policy}
    found_in, wanted = "given", tokens
    if wanted is None:
        # What is no refusal token in one model may be one in the other, so that not finding any is no error here.
        for name, model in models.items():
            try:
                found = read_refusals(model, harmful, harmless).tokens
            except DataInvalid as error:
                if "no refusal token" not in str(error):
                    raise
                continue
            found_in, wanted = name, [token.id for token in found]
            break
    if wanted is None:
        return RefusalChange((), "neither", {}, {})
    readings = {name: read_refusals(model, harmful, harmless, wanted) for name, model in models.items()}
    both = readings["reference"].scores.keys() & readings["policy"].scores.keys()
    before, after = (
        {id: score for id, score in readings[name].scores.items() if id in both} for name in ("reference", "policy")
    )
    problems = {problem.id: problem for reading in readings.values() for problem in reading.problems}
    listed = tuple(readings["policy" if found_in == "policy" else "reference"].tokens)
    return RefusalChange(listed, found_in, before, after, tuple(problems.values()))


@dataclass(frozen=True)
class Drift:
    """The direction at one place and position in two models.

    Attributes:
        place: the place.
        position: the token, counted from the end of the prompt.
        cosine: between the directions of both models; NaN where one has none.
        length: of the policy's direction over that of the reference's.
    """

    place: str
    position: int
    cosine: float
    length: float


def measure_drift(
    reference: LanguageModel,
    policy: LanguageModel,
    harmful: Sequence[LabelledPrompt],
    harmless: Sequence[LabelledPrompt],
) -> list[Drift]:
    """How far the difference in means moved, at every block input and every token that ends the prompt.

    The prompts are the same in both models, whether these refuse them or not.

    Raises:
        DataInvalid: fewer than two prompts of a kind can be read.
    """
    before, after = (
        extract_directions(model, harmful, harmless, filter_by_sign=False) for model in (reference, policy)
    )
    return _compare_directions(before, after)


def _compare_directions(before: Directions, after: Directions) -> list[Drift]:
    rows = []
    # Templates that write ends of different length share the last positions.
    for position in sorted(set(before.positions) & set(after.positions)):
        for at, place in enumerate(before.places):
            own, other = (each.vectors[at, each.positions.index(position)] for each in (before, after))
            length = float(other.norm() / own.norm())
            rows.append(Drift(str(place), position, float(cosine(own, other)), length))
    return rows
