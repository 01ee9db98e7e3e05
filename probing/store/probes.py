"""Trained probes on disk: with the centres they were trained with, bound to the model and the places they read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.probes.ccs_states import Normalization, predict_probabilities
from probing.shown import Shown, list_some
from probing.store.activations import tensor_sha256
from probing.store.checks import check_object, is_hash, is_list, is_one_of, is_place, is_text
from probing.store.described import read_described, write_described
from probing.store.records import check_seal, is_source
from probing.types import Activations, Place, Source

FORMAT = "probing-probes-1"
HASHES = ("weights_sha256", "config_sha256", "tokenizer_sha256", "adapter_sha256")
"""Hashes of a source that have to be the same. The chat template does not change what a model is."""
TENSORS = ("weight", "bias", "centers")
WHAT = "probes of 'probing ccs' or 'probing probe'"
"""What a file of this format holds."""
_DESCRIBED = check_object(
    {
        "sha256": check_object(dict.fromkeys(TENSORS, is_hash), closed=True),
        "source": is_source,
        "places": is_list(is_place),
        "names": is_list(is_text),
        "normalization": is_one_of(*get_args(Normalization)),
    }
)


@dataclass(frozen=True, eq=False, repr=False)
class SavedProbes(Shown):
    """Linear probes of several places of one model; made by ``open_probes``.

    Attributes:
        names: names of the probes at every place.
        places: places that the probes read.
        weight: [place probe width].
        bias: [place probe].
        centers: centres that are taken off the normalised states first: [place form width]; one form, or the yes and
            the no form of a statement.
        source: the model.
        facts: normalisation, what token was read, and what else was noted.
    """

    names: tuple[str, ...]
    places: tuple[Place, ...]
    weight: Tensor
    bias: Tensor
    centers: Tensor
    source: Source
    facts: Mapping[str, Any]

    def shown_facts(self) -> Mapping[str, object]:
        """Names, places and model."""
        size = {"places": list_some(self.places), "width": self.weight.shape[-1]}
        return {"model": self.source.model, "names": ", ".join(self.names), **size}

    def probabilities(self, acts: Activations, name: str, form: int = 0) -> Tensor:
        """Probability of every row at every place of the probes, [row place].

        Args:
            acts: activations of the same model, with (at least) the same places.
            name: name of the probe.
            form: form of the states, for probes of statements: 0 for yes forms, 1 for no forms.

        Raises:
            SourceMismatch: states of another model, without the places, or of another width.
            UsageError: there is no such probe or form.
        """
        if name not in self.names:
            raise UsageError(f"there is no probe '{name}'; there are {', '.join(self.names)}")
        if not 0 <= form < self.centers.shape[1]:
            raise UsageError(f"there is no form {form}; these probes read {self.centers.shape[1]}")
        self.check(acts)
        states = torch.stack([acts.at(place) for place in self.places], dim=1)
        at = self.names.index(name)
        return predict_probabilities(
            states, self.facts["normalization"], self.centers[:, form], self.weight[:, at], self.bias[:, at]
        )

    def score(self, yes: Activations, no: Activations, name: str = "ccs") -> Tensor:
        """``(p(yes) + 1 - p(no)) / 2`` of statements by their forms, [row place]; above a half is "true".

        Raises:
            SourceMismatch: see ``probabilities``, or forms of other rows.
            UsageError: these are no probes of statements.
        """
        if yes.ids != no.ids:
            raise SourceMismatch("the yes and the no forms must be of the same rows, in the same order")
        return (self.probabilities(yes, name, 0) + 1 - self.probabilities(no, name, 1)) / 2

    def check(self, acts: Activations) -> None:
        """Raise unless these probes were trained on such states.

        Raises:
            SourceMismatch: the states are of another kind; names each difference.
        """
        wrong = [
            f"{field} is {str(theirs)[:12]}, of the probes {str(own)[:12]}"
            for field in HASHES
            if (theirs := getattr(acts.source, field)) != (own := getattr(self.source, field))
        ]
        if acts.source.weights_sha256 is None:
            wrong = ["the model was handed over in memory, so it cannot be told which it is"]
        if wrong:
            raise SourceMismatch(
                f"the probes were trained on {self.source.model}, the states are of {acts.source.model}: "
                f"{'; '.join(wrong)}"
            )
        lacking = [str(place) for place in self.places if place not in acts.places]
        if lacking:
            raise SourceMismatch(
                f"the probes read {', '.join(lacking)}, which the states do not have; they have "
                f"{', '.join(map(str, acts.places))}"
            )
        if acts.values.shape[-1] != self.weight.shape[-1]:
            raise SourceMismatch(f"the states have width {acts.values.shape[-1]}, the probes {self.weight.shape[-1]}")


def save_probes(
    path: Path,
    source: Source,
    places: Sequence[str],
    names: Sequence[str],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    centers: NDArray[np.float64],
    facts: Mapping[str, Any],
) -> None:
    """Write probes as float64 safetensors; shapes as in ``SavedProbes``."""
    tensors = {"weight": weight, "bias": bias, "centers": centers}
    described = {"source": asdict(source), "places": list(places), "names": list(names), **facts}
    arrays = {name: torch.from_numpy(np.ascontiguousarray(array, np.float64)) for name, array in tensors.items()}
    write_described(path, FORMAT, arrays, described)


def open_probes(path: str | Path) -> SavedProbes:
    """Probes that ``probing ccs`` or ``probing probe`` wrote.

    Raises:
        SourceMismatch: the file does not hold such probes.
        StoreCorrupt: the file is damaged.
    """
    file = Path(path).expanduser()
    known, tensors = read_described(file, FORMAT, WHAT)
    if set(tensors) != set(TENSORS):
        raise SourceMismatch(f"{file}: holds no {WHAT}")
    try:
        _DESCRIBED(known, "")
        check_seal(known)
    except ValueError as error:
        raise StoreCorrupt(f"{file}: damaged, or written by another version ({error})") from error
    changed = [name for name, tensor in tensors.items() if tensor_sha256(tensor) != known["sha256"][name]]
    if changed:
        raise StoreCorrupt(f"{file}: {', '.join(changed)} in it changed since it was written")
    shape = (len(known["places"]), len(known["names"]))
    if tensors["weight"].shape[:2] != shape or tensors["bias"].shape != shape or len(tensors["centers"]) != shape[0]:
        raise StoreCorrupt(f"{file}: the names and places in it are not those of its numbers")
    source, places = Source(**known["source"]), tuple(map(Place.parse, known["places"]))
    return SavedProbes(names=tuple(known["names"]), places=places, source=source, facts=known, **tensors)
