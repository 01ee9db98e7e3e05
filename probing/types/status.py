"""The status of every row of a dataset: the words, and what each means. A new status is added here, and nowhere else.

A row is "ok", or it has a ``Problem``: one of the other words, and a detail in plain language. The words are written
into files, so they are never renamed. The tables of them in ``docs/`` are these sentences, compared by a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

PairStatus = Literal[
    "ok",
    "identical",
    "empty_response",
    "empty_prompt",
    "extra_bos",
    "refused",
    "prompt_too_long",
    "truncated",
    "not_finite",
]
"""Status of a preference pair, in ``probing score`` and ``probing displacement``."""
RolloutStatus = Literal[
    "ok",
    "one_response",
    "no_reward",
    "none_correct",
    "all_correct",
    "empty_response",
    "empty_prompt",
    "extra_bos",
    "refused",
    "prompt_too_long",
    "truncated",
    "not_finite",
]
"""Status of a group of responses with rewards, in ``probing rollouts``."""
WITHOUT_CONTRAST = ("none_correct", "all_correct")
"""Statuses of groups that are as they should be, and have no rate by its definition."""
TextStatus = Literal[
    "ok",
    "empty_text",
    "empty_response",
    "too_long",
    "no_response",
    "no_span",
    "no_template",
    "span_not_found",
    "span_not_unique",
    "refused",
    "two_bos",
    "nothing_left",
    "not_finite",
]
"""Status of a text whose states are read, in ``probing capture`` and every job that uses its states."""
LabelStatus = Literal["no_label", "not_fresh", "other_label"]
"""Further statuses of a labelled text, in ``probing probe`` and ``probing clusters``."""
StatementStatus = Literal["same_state"]
"""Further statuses of a statement with its opposite, in ``probing ccs``."""
Status = Literal[PairStatus, RolloutStatus, TextStatus, LabelStatus, StatementStatus]

STATUS_MEANINGS: Mapping[Status, str] = {
    "ok": "the row has its numbers, and they can be trusted",
    "identical": "both responses have the same tokens",
    "empty_response": "a response holds nothing but white space",
    "empty_prompt": "there is no prompt: none is given (is its column called `prompt`?), or the responses begin "
    "differently",
    "extra_bos": "the row's own text holds the BOS token where none belongs (one that the chat template writes is "
    "right), or the sequence begins with two",
    "prompt_too_long": "the prompt alone fills `--max-length` (by default the model's number of positions)",
    "one_response": "the group has a single response, so that there is nothing to compare it with",
    "no_reward": "a response of the group has no reward: it is missing, NaN or infinite",
    "none_correct": "no response of the group is correct, so that none can fall",
    "all_correct": "all responses of the group are correct, so that none pulls them down",
    "truncated": "a prompt with its response is longer than `--max-length` or than the model has positions for; it is "
    "not cut, and not scored",
    "not_finite": "states or log-probabilities are NaN or infinite; the detail of the first such row names the layer, "
    "or the token",
    "empty_text": "the text holds nothing but white space, or no token is left of it",
    "too_long": "the text is longer than `--max-length` or than the model has positions for; it is not cut",
    "no_response": "`--over response` is asked for, and the row has no response",
    "no_span": "`--over span` is asked for, and the row names no span",
    "no_template": "`--over template` is asked for, and no chat template stands around the text, or it writes nothing "
    "after an instruction",
    "span_not_found": "the substring or the characters of the span are not in the text, or no token covers them",
    "span_not_unique": "the substring of the span occurs more than once in the text",
    "refused": "the chat template does not take the conversation, or its prompt cannot be told from its response; the "
    "detail says why",
    "two_bos": "the sequence begins with two BOS tokens, where the text or the chat template brings one of its own",
    "nothing_left": "no token counts, for instance in a text of special tokens only",
    "no_label": "the row has no label",
    "not_fresh": "a row of `--fresh` has the same text as a row of the data",
    "other_label": "the row has a label that is not compared",
    "same_state": "the yes form and the no form of the statement or of its opposite have the same state everywhere",
}
PAIR_STATUSES: tuple[PairStatus, ...] = get_args(PairStatus)
ROLLOUT_STATUSES: tuple[RolloutStatus, ...] = get_args(RolloutStatus)
TEXT_STATUSES: tuple[TextStatus, ...] = get_args(TextStatus)
LABEL_STATUSES: tuple[LabelStatus, ...] = get_args(LabelStatus)
STATEMENT_STATUSES: tuple[StatementStatus, ...] = get_args(StatementStatus)
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row has no numbers.

    Attributes:
        id: id of the row.
        status: any but "ok".
        detail: description of what is wrong with this row.
    """

    id: str
    status: Status
    detail: str
