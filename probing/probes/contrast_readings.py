"""Readings of the pairs by the probes of one layer, as the part file of a run stores them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from probing.probes.evaluate import Array

UNSUPERVISED = ("ccs", "crc_tpc", "vinc")
SUPERVISED = ("mass_mean", "logistic")
PROBES = (*UNSUPERVISED, *SUPERVISED)
NULLS = ("random", "mass_mean_labels", "logistic_labels", "pairings")
"""Random directions, supervised probes that were fitted to permuted labels, and the shuffled-pair control."""


@dataclass(frozen=True, eq=False)
class NullDraws:
    """Probes that are drawn from a null distribution, and what they say of the pairs.

    Attributes:
        forms: held-out probabilities, oriented on the training pairs, [draw 4 pair].
        inner: how good the layer is for each fold, judged on the other folds, [draw fold].
    """

    forms: Array
    inner: Array


@dataclass(frozen=True, eq=False)
class DistractorReadings:
    """Readings of contrast-consistent probes that were trained with a word appended to half of the pairs.

    Attributes:
        forms: held-out probabilities, not oriented, [4 pair].
        credits: how right every split is about the truth, [pair split]; splits are those of ``Splits.without_pairs``.
        follows: how right every split is about the word, [pair split].
        cosines: cosines of the probes' direction with the directions of the word and of truth, [2].
    """

    forms: Array
    credits: Array
    follows: Array
    cosines: Array


@dataclass(frozen=True, eq=False)
class StatementReadings:
    """Readings of the pairs by every probe of a layer.

    Attributes:
        forms: held-out probabilities, not oriented, [probe 4 pair].
        credits: how right every split is on every pair, [probe pair split]: see ``evaluate.credit``, times the truth.
        nulls: draws of each of ``NULLS``.
        weight: weight vectors of the probes that were trained on every pair, oriented, [probe width].
        bias: biases of the same probes, [probe].
        centers: centres that these probes take off the yes and the no forms, [2 width].
        cosines: cosines between the directions of these probes, [probe probe].
        restart_loss: loss of the restarts of the contrast-consistent probe that was trained on every pair, [restart].
        restart_agreement: share of the statements that each two restarts answer alike, [restart restart].
        marker: probabilities of the held-out probes where a word is replaced, [probe 4 pair]; NaN for pairs without the
            word. None without that control.
        distractor: readings of the distractor test; None without it.
    """

    forms: Array
    credits: Array
    nulls: Mapping[str, NullDraws]
    weight: Array
    bias: Array
    centers: Array
    cosines: Array
    restart_loss: Array
    restart_agreement: Array
    marker: Array | None = None
    distractor: DistractorReadings | None = None

    def to_arrays(self) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        arrays = {name: getattr(self, name) for name in PLAIN}
        for name, null in self.nulls.items():
            arrays |= {f"{name}.forms": null.forms, f"{name}.inner": null.inner}
        if self.marker is not None:
            arrays["marker.forms"] = self.marker
        if self.distractor is not None:
            arrays |= {f"distractor.{name}": value for name, value in vars(self.distractor).items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "StatementReadings":
        """Readings from the arrays of a part file."""
        distractor = None
        if "distractor.forms" in arrays:
            distractor = DistractorReadings(
                **{e.name: arrays[f"distractor.{e.name}"] for e in fields(DistractorReadings)}
            )
        return cls(
            **{name: arrays[name] for name in PLAIN},
            nulls={name: NullDraws(arrays[f"{name}.forms"], arrays[f"{name}.inner"]) for name in NULLS},
            marker=arrays.get("marker.forms"),
            distractor=distractor,
        )


PLAIN = ("forms", "credits", "weight", "bias", "centers", "cosines", "restart_loss", "restart_agreement")
"""Attributes of ``StatementReadings`` that are one array each, under their own names."""
