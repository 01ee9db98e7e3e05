"""The loss that options name."""

from probing.metrics.preference_losses import PreferenceLoss
from probing.runs.common.options import LossOptions
from probing.types import find_loss


def make_loss(config: LossOptions) -> PreferenceLoss:
    """The loss with its coefficients."""
    return PreferenceLoss(
        find_loss(config.loss),
        beta=config.beta,
        gamma=config.gamma,
        label_smoothing=config.label_smoothing,
        sft_weight=config.sft_weight,
    )
