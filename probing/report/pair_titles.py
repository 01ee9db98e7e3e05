"""What the columns of a table of preference pairs hold, with their units."""

import pandas as pd

_SIDES = ("chosen", "rejected")
_TIMES = ("before", "after")
STATE_SUMS = ("ches", "ches_normalized")
"""Scores that are exactly 0 for responses of one token each, whatever the pair: both sums are the same state."""
_SIMILARITIES = (*STATE_SUMS, "last_state_similarity", "edit_similarity")
_LIKELIHOODS = {
    **{f"{side}_logprob": f"ln p({side}), nats" for side in _SIDES},
    **{f"{side}_logprob_per_token": f"ln p({side}) per token, nats" for side in _SIDES},
    "ranking_difficulty": "ln p(rejected) - ln p(chosen), nats",
    **{f"{side}_mean_rank": f"mean rank of the tokens of the {side} response" for side in _SIDES},
    **{f"{side}_rank_surprisal": f"rank-surprisal ratio of the {side} response, 1/nats" for side in _SIDES},
}
_RATES = ("displacement_rate", "displacement_rate_exact")
_OF_REGIMES = {
    "rejected_rate": "below 0: training on the pair pushes ln p(rejected) down",
    "entanglement": "cosine of the gradients of ln p(chosen) and ln p(rejected)",
    "gradient_ratio": "length of the gradient of ln p(rejected) over that of ln p(chosen)",
    "least_sft_weight": "weight of the mean NLL of the chosen response from which ln p(chosen) does not fall at first",
}
SCORED = (*_SIMILARITIES, *_LIKELIHOODS, *_RATES, *(f"{name}{end}" for end in ("", "_exact") for name in _OF_REGIMES))
"""Columns of numbers that a scoring computes, in their order."""
TITLES = {
    "status": "status",
    **{name: f"{name} (higher: the responses look more alike to the model)" for name in _SIMILARITIES},
    **_LIKELIHOODS,
    **{name: f"{name} (below 0: training on the pair pushes ln p(chosen) down)" for name in _RATES},
    **{f"{name}{end}": f"{name}{end} ({what})" for end in ("", "_exact") for name, what in _OF_REGIMES.items()},
    **{f"regime{end}": f"regime{end}: what training on the pair does to both responses" for end in ("", "_exact")},
    "ranking_correct": "ln p(chosen) is at least ln p(rejected)",
    "prompt_tokens": "tokens of the prompt",
    **{f"{side}_tokens": f"tokens of the {side} response" for side in _SIDES},
    **{f"{side}_logprob_{time}": f"ln p({side}) {time}, nats" for side in _SIDES for time in _TIMES},
    **{f"{side}_change": f"change of ln p({side}), nats" for side in _SIDES},
    **{f"{side}_change_per_token": f"change of ln p({side}) per token, nats" for side in _SIDES},
    **{f"margin_{time}": f"ln p(chosen) - ln p(rejected) {time}, nats" for time in _TIMES},
    "margin_change": "change of ln p(chosen) - ln p(rejected), nats",
    "displaced": "displaced: ln p(chosen) fell while the margin rose",
    **{f"ranking_correct_{time}": f"ln p(chosen) is at least ln p(rejected), {time}" for time in _TIMES},
    "target_chosen": "change of ln p(chosen) along the gradient of the target, per unit of it",
    "target_rejected": "change of ln p(rejected) along the gradient of the target, per unit of it",
    "influence": "influence: change of the target per unit learning rate of a step on the pair, nats",
    "joint_rate": "change of ln p(chosen) per unit learning rate of a step on all pairs, nats",
    "joint_rejected_rate": "change of ln p(rejected) per unit learning rate of a step on all pairs, nats",
    "pilot_influence": "influence averaged over the points of the pilot, nats per unit learning rate",
    "pilot_change": "change of ln p(chosen) in the pilot, nats",
    "pilot_rejected_change": "change of ln p(rejected) in the pilot, nats",
    "row": "row of the dataset",
    "file": "file of the dataset",
    "group": "group",
}
"""What each column holds, by its name in the files."""


def mask_one_token(frame: pd.DataFrame) -> pd.DataFrame:
    """The table without the CHES of pairs that it cannot rank."""
    short = has_one_token(frame)
    return frame.assign(**{name: frame[name].mask(short) for name in STATE_SUMS if name in frame})


def has_one_token(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Pairs whose responses are one token each."""
    return (frame["status"] == "ok") & (frame["chosen_tokens"] == 1) & (frame["rejected_tokens"] == 1)
