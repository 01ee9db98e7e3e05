"""Which way the likelihoods of both responses went: the four regimes of preference training."""

from enum import IntEnum

from probing.types import Estimate


class Regime(IntEnum):
    """Where the mean log-probabilities of chosen and rejected responses went."""

    BOTH_UP = 0
    CHOSEN_UP_REJECTED_DOWN = 1
    BOTH_DOWN = 2
    CHOSEN_DOWN_REJECTED_UP = 3

    @property
    def words(self) -> str:
        """The regime as it is written in tables and messages."""
        return WORDS[self]


WORDS = {
    Regime.BOTH_UP: "both up",
    Regime.CHOSEN_UP_REJECTED_DOWN: "chosen up, rejected down",
    Regime.BOTH_DOWN: "both down",
    Regime.CHOSEN_DOWN_REJECTED_UP: "chosen down, rejected up",
}
MEANINGS = {
    Regime.BOTH_UP: "training makes both responses more likely, as supervised training on either would",
    Regime.CHOSEN_UP_REJECTED_DOWN: "training moves probability from rejected to chosen responses, as it is meant to",
    Regime.BOTH_DOWN: (
        "likelihood displacement: the probability that rejected responses lose does not go to the chosen ones, which "
        "lose it, too"
    ),
    Regime.CHOSEN_DOWN_REJECTED_UP: "training moves probability the wrong way, from chosen to rejected responses",
}


def find_regime(chosen_change: float, rejected_change: float) -> Regime:
    """The regime of two changes of ln p, by their signs; a change of 0 counts as up.

    Raises:
        ValueError: a change that is NaN.
    """
    if chosen_change != chosen_change or rejected_change != rejected_change:
        raise ValueError(f"changes of {chosen_change} and {rejected_change} have no regime")
    if chosen_change >= 0:
        return Regime.BOTH_UP if rejected_change >= 0 else Regime.CHOSEN_UP_REJECTED_DOWN
    return Regime.CHOSEN_DOWN_REJECTED_UP if rejected_change >= 0 else Regime.BOTH_DOWN


def describe_regime(chosen: Estimate, rejected: Estimate) -> str:
    """One sentence on the regime: the mean changes of ln p in nats, what they mean, and how certain that is.

    Args:
        chosen: mean change of ln p of the chosen responses, with its interval over pairs.
        rejected: the same of the rejected responses.
    """
    regime = find_regime(chosen.value, rejected.value)
    numbers = f"chosen {_show(chosen)}, rejected {_show(rejected)} nats"
    unclear = [name for name, own in (("chosen", chosen), ("rejected", rejected)) if not _is_clear(own)]
    if not unclear:
        return f"{regime.words} ({numbers}): {MEANINGS[regime]}"
    return (
        f"{regime.words} ({numbers}), but the interval of the {' and of the '.join(unclear)} change holds 0: too few "
        f"pairs, or too early, to tell the direction"
    )


def _is_clear(change: Estimate) -> bool:
    return change.low > 0 or change.high < 0


def _show(change: Estimate) -> str:
    if change.low != change.low:
        return f"{change.value:+.3g}"
    return f"{change.value:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
