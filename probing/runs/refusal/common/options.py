"""The options that jobs on refusal share."""

from dataclasses import dataclass
from pathlib import Path

from probing.data.bundled import BUNDLED
from probing.runs.common.options import MOST_ROWS, HubOptions, Options, PromptOptions, RunOptions, option

LEAST = 4
"""Prompts of each kind without which nothing can be held out."""
HARMFUL, HARMLESS = "harmful", "harmless"
MOST_DIRECTIONS = 1000


@dataclass(frozen=True, kw_only=True)
class KindPromptOptions(PromptOptions, RunOptions):
    """Harmful and harmless prompts.

    Args:
        data: prompts with labels; two files as --data harmful=FILE --data harmless=FILE; or "bundled".
        harmful_label: label of the prompts that the model should refuse.
        harmless_label: label of the prompts that it should answer; rows with other labels are left out.
        per_kind: number of prompts of each kind; where there are more, so many are drawn at random, always the same
            ones. All by default.
        refusal_tokens: tokens that the model begins its refusals with, separated by commas: ids, or texts of one token
            each, in which a space counts; found from the prompts where they are not given.
    """

    data: str | list[str] = option(BUNDLED, identity=False, repeatable=True)
    harmful_label: str = HARMFUL
    harmless_label: str = HARMLESS
    per_kind: int | None = option(None, least=LEAST, most=MOST_ROWS)
    refusal_tokens: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harmful_label == self.harmless_label:
            raise ValueError(f"harmful_label and harmless_label are both '{self.harmful_label}'")
        if self.refusal_tokens is not None and not all(self.refusal_tokens.split(",")):
            raise ValueError(f"refusal_tokens must be tokens separated by commas, not {self.refusal_tokens!r}")

    @property
    def tokens(self) -> list[int | str] | None:
        """The refusal tokens that were given, as ids or texts."""
        if self.refusal_tokens is None:
            return None
        return [int(token) if token.isdecimal() else token for token in self.refusal_tokens.split(",")]


@dataclass(frozen=True, kw_only=True)
class KindOptions(KindPromptOptions, HubOptions):
    """The model that is to tell harmful and harmless prompts apart.

    Args:
        model: folder or hub id of a chat model, or "bundled" for the one in this package.
    """

    model: str = option(identity=False)


@dataclass(frozen=True, kw_only=True)
class OneDirectionOptions(Options):
    """Which direction of several, and the random ones beside it.

    Args:
        place: place of the direction in a folder of 'probing refusal extract', such as resid_pre:22.
        position: token at which that direction was read, counted from the end of the prompt.
        random_directions: number of random directions of the same length that make the band; 'probing refusal evaluate'
            draws as many with the covariance of the states, where it knows a folder of 'probing refusal extract'.
    """

    place: str | None = None
    position: int = option(-1, most=-1)
    random_directions: int = option(10, least=0, most=MOST_DIRECTIONS)


@dataclass(frozen=True, kw_only=True)
class RefusalOptions(KindOptions):
    """Which prompts directions are found from.

    Args:
        filter_by_sign: leave out harmful prompts that the model does not refuse, and harmless ones that it does.
    """

    filter_by_sign: bool = True


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(KindPromptOptions):
    """How prompts are answered, and answers judged.

    Args:
        new_tokens: length of an answer at which it is cut.
        phrases: file of phrases by which answers are judged, in place of the one in this package.
    """

    new_tokens: int = option(100, least=1, most=100_000)
    phrases: Path | None = option(None, identity=False)
