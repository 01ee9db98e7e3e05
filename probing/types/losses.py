"""Names of the losses of preference training."""

from typing import Literal, get_args

LossName = Literal[
    "margin",
    "dpo",
    "ipo",
    "hinge",
    "slic",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "cpo",
    "simpo",
    "orpo",
]
"""Losses of preference training; see ``metrics/preference_losses.py``."""
LOSSES: tuple[LossName, ...] = get_args(LossName)
WITHOUT_REFERENCE = ("cpo", "simpo", "orpo")
"""Losses of the log-probabilities themselves, which no reference is compared with."""
KNOWN_LATER = ("margin", "dpo", "sigmoid_norm", "hinge", "slic", "ipo", "robust", *WITHOUT_REFERENCE)
"""Losses whose slopes are known at any moment of a training, and not at its start alone."""
_SORTED = (
    "sorts the log-ratios of a batch, so that a pair has no loss of its own; at the very first step its slopes are "
    "those of dpo"
)
REFUSED_LOSSES = {
    "aot": _SORTED,
    "aot_unpaired": _SORTED,
    "sft": "has no rejected response; give its weight beside a preference loss as --sft-weight",
    "sigmoid": "is called dpo here",
    "alphapo": "has a reward of another shape, which is not computed here",
    "kto": "compares single responses with the mean of a batch, so that a pair has no loss of its own",
}
"""Losses that trainers know and that have no slope of a pair here, and why."""


def find_loss(name: str) -> LossName:
    """The loss of this name.

    Raises:
        ValueError: there is none; says why where a trainer knows it.
    """
    for known in LOSSES:
        if known == name:
            return known
    why = f"{name} {REFUSED_LOSSES[name]}" if name in REFUSED_LOSSES else f"there is no loss '{name[:60]}'"
    raise ValueError(f"loss: {why}; there are {', '.join(LOSSES)}")


def check_label_smoothing(loss: LossName, label_smoothing: float) -> None:
    """Raise ``ValueError`` where the loss is infinite without label smoothing, and there is none."""
    if loss == "exo_pair" and not label_smoothing > 0:
        raise ValueError("exo_pair needs a label_smoothing above 0; its paper recommends 0.001")


def check_known_later(loss: str) -> None:
    """Raise ``ValueError`` unless the slopes of a loss are known after the start of training."""
    if loss not in KNOWN_LATER:
        raise ValueError(
            f"the slopes of {loss} are known at the start of training only; a pilot trains by {', '.join(KNOWN_LATER)}"
        )
