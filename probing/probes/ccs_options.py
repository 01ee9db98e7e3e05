"""How contrast-consistent probes are trained."""

from dataclasses import dataclass
from typing import Literal

from probing.kernels.ccs_step import LOSSES, Loss

Optimizer = Literal["adamw", "lbfgs"]


@dataclass(frozen=True)
class CCSOptions:
    """How probes are trained.

    Attributes:
        loss: "original" or "symmetric".
        restarts: probes from different starting points; the one of least loss is kept.
        epochs: steps over all rows.
        optimizer: "adamw", or "lbfgs" for at most so many iterations.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        supervision: weight of a cross-entropy with the labels; 0 trains without them.
        seed: seed of the starting points.

    Raises:
        ValueError: a number out of range, or an unknown word.
    """

    loss: Loss = "original"
    restarts: int = 10
    epochs: int = 1500
    optimizer: Optimizer = "adamw"
    learning_rate: float = 0.015
    weight_decay: float = 0.01
    supervision: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.optimizer not in ("adamw", "lbfgs"):
            raise ValueError(f"the optimizer is adamw or lbfgs, not {self.optimizer!r}")
        for name, least in (("restarts", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "supervision"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, not {getattr(self, name)}")
