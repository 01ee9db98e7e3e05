"""Contrast-consistent search: a probe without labels for every layer.

Burns et al. 2022 (arXiv 2212.03827). The states are those of the yes and the no form of statements; a probe is a
direction whose probabilities of both forms of a statement add up to one and are not both a half.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import Centering, Normalization, centers_of, logits_of, normalize, predict_probabilities
from probing.probes.ccs_training import train_probes
from probing.shown import Shown, list_some


@dataclass(frozen=True, eq=False, repr=False)
class CCSProbe(Shown):
    """A trained probe a layer, with everything that it needs to read states as it was trained.

    Attributes:
        weight: [layer width].
        bias: [layer].
        centers: centres of the yes and of the no forms, [layer 2 width].
        normalization: "l2" or "none".
        oriented: whether a high score means true: known only if labels were given.
        loss: loss on the rows that the probe was trained on, [layer].
    """

    weight: Tensor
    bias: Tensor
    centers: Tensor
    normalization: Normalization
    oriented: bool
    loss: Tensor

    def shown_facts(self) -> Mapping[str, object]:
        """Size and kind, and the losses."""
        losses = list_some([f"{loss:.3g}" for loss in self.loss.tolist()])
        kind = {"normalization": self.normalization, "oriented": self.oriented, "loss": losses}
        return {"layers": self.weight.shape[0], "width": self.weight.shape[1], **kind}

    def probabilities(
        self, yes: Float[Tensor, "pair layer width"], no: Float[Tensor, "pair layer width"]
    ) -> tuple[Float[Tensor, "pair layer"], Float[Tensor, "pair layer"]]:
        """Probability of the yes and of the no form.

        Raises:
            ValueError: states of other layers or another width.
        """
        _check_states(yes, no)
        if tuple(yes.shape[1:]) != tuple(self.weight.shape):
            raise ValueError(
                f"the states have {yes.shape[1]} layers of width {yes.shape[2]}; the probe was trained on "
                f"{self.weight.shape[0]} layers of width {self.weight.shape[1]}"
            )
        p, q = (
            predict_probabilities(states, self.normalization, self.centers[:, form], self.weight, self.bias)
            for form, states in enumerate((yes, no))
        )
        return p, q

    def score(
        self, yes: Float[Tensor, "pair layer width"], no: Float[Tensor, "pair layer width"]
    ) -> Float[Tensor, "pair layer"]:
        """``(p(yes) + 1 - p(no)) / 2``, in [0, 1]; above a half is "true" if the probe is oriented."""
        p, q = self.probabilities(yes, no)
        return (p + 1 - q) / 2


def fit_ccs(
    yes: Float[Tensor, "pair layer width"],
    no: Float[Tensor, "pair layer width"],
    seed: int = 0,
    *,
    labels: Bool[Tensor, " pair"] | None = None,
    normalization: Normalization = "l2",
    centering: Centering = "median",
    options: CCSOptions | None = None,
) -> CCSProbe:
    """Train a contrast-consistent probe for every layer, all layers and restarts at once.

    Evaluate it on other pairs than those it was trained on, and next to random probes: with many features and few
    pairs almost any direction can be made consistent.

    Args:
        yes: states of the yes forms.
        no: states of the no forms.
        seed: seed of the starting points.
        labels: whether each statement is true: to orient the probe (or with ``options.supervision``, to train it).
        normalization: "l2" divides every state by its length; "none" takes them as they are.
        centering: statistic that is taken off the yes and the no forms, separately.
        options: losses, optimiser, restarts; ``seed`` wins over theirs.

    Raises:
        ValueError: shapes that do not belong together, fewer than two pairs, states that are not finite, the same
            state throughout, or supervision without labels.
        NotFinite: training diverged.
    """
    options = replace(options or CCSOptions(), seed=seed)
    _check_states(yes, no)
    _check_training(yes, no, labels, options)
    states = torch.stack([normalize(side, normalization).transpose(0, 1) for side in (yes, no)], dim=1).contiguous()
    everything = torch.ones(len(yes), 1, dtype=torch.bool, device=yes.device)
    centers = centers_of(states, everything, centering)
    trained = train_probes(states, centers, everything, options, labels)
    weight, bias = trained.best()
    if labels is not None:
        p, q = torch.sigmoid(logits_of(states, centers, weight, bias))[..., 0].unbind(dim=1)
        right = (((p + 1 - q) / 2 - 0.5) * (2.0 * labels - 1)).sign().sum(dim=1)
        sign = torch.where(right < 0, -1.0, 1.0).to(weight)
        weight, bias = weight * sign[:, None, None], bias * sign[:, None]
    loss = trained.loss.nan_to_num(nan=float("inf")).amin(dim=2)[:, 0]
    return CCSProbe(weight[..., 0], bias[..., 0], centers[:, :, 0], normalization, labels is not None, loss)


def _check_states(yes: Tensor, no: Tensor) -> None:
    if yes.shape != no.shape or yes.ndim != 3:
        raise ValueError(
            f"states must be [pair layer width] for both forms; they are {tuple(yes.shape)} and {tuple(no.shape)}"
        )


def _check_training(yes: Tensor, no: Tensor, labels: Tensor | None, options: CCSOptions) -> None:
    if len(yes) < 2:
        raise ValueError(f"a probe needs at least two pairs, not {len(yes)}")
    if not (torch.isfinite(yes).all() and torch.isfinite(no).all()):
        raise ValueError("the states are not all finite")
    constant = ((yes == yes[:1]).all(dim=2) & (no == no[:1]).all(dim=2)).all(dim=0).nonzero()
    if len(constant):
        raise ValueError(f"layer {int(constant[0])}: the states of all pairs are the same")
    if labels is not None and tuple(labels.shape) != (len(yes),):
        raise ValueError(f"{len(labels)} labels for {len(yes)} pairs")
    if options.supervision and labels is None:
        raise ValueError("supervision needs labels")
