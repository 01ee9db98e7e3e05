"""Tensors of the size of the parameters, kept while a run is on, so that an interrupted one goes on from the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from probing.errors import StoreCorrupt
from probing.instruments.influence import Report, training_gradient
from probing.instruments.parameter_gradients import ParameterGradients
from probing.metrics.preference_losses import PreferenceLoss
from probing.ranks import current_ranks
from probing.store.activations import find_fault, write_states
from probing.store.shards import read_shard, write_shard
from probing.tokens.pairs import TokenizedPair

SCHEMA = pa.schema([("name", pa.string())])


class Kept(NamedTuple):
    """Tensors that were kept, and what is known of them."""

    tensors: list[Tensor]
    facts: dict[str, Any]


def keep_tensors(folder: Path, name: str, tensors: Sequence[Tensor], facts: Mapping[str, Any]) -> None:
    """Keep tensors under a name of letters, digits and underscores; what the name stood for before is replaced."""
    states = {f"{number:06d}": tensor.detach().cpu() for number, tensor in enumerate(tensors)}
    written = write_states(folder / f"{name}.safetensors", states)
    write_shard(_facts_path(folder, name), pa.table({"name": [name]}, schema=SCHEMA), {"file": written, **facts})


def find_tensors(folder: Path, name: str, like: Sequence[Tensor]) -> Kept | None:
    """Tensors that were kept, on the devices of others of the same shapes; None unless they are there and whole."""
    read = read_shard(_facts_path(folder, name), SCHEMA)
    path = folder / f"{name}.safetensors"
    if read is None or find_fault(path, read[1]["file"], deep=True) is not None:
        return None
    loaded = load_file(path)
    tensors = [loaded[f"{number:06d}"].to(other.device) for number, other in enumerate(like)]
    return Kept(tensors, {key: value for key, value in read[1].items() if key != "file"})


def complete_tensors(folder: Path, name: str, like: Sequence[Tensor], make: Callable[[], Kept | None]) -> Kept | None:
    """Tensors that an earlier run kept, or that are made now and kept; None where ``make`` answers None.

    Of the processes of one launch the first makes them, and the others read what it kept.

    Args:
        folder: folder of the parts.
        name: see ``keep_tensors``.
        like: tensors of the same shapes, on the devices on which they are wanted.
        make: makes the tensors and what is to be known of them.

    Raises:
        StoreCorrupt: what another process kept cannot be read.
    """
    found: list[Kept | None] = []

    def find_or_make() -> bool:
        known = find_tensors(folder, name, like)
        if known is None:
            known = make()
            if known is not None:
                keep_tensors(folder, name, known.tensors, known.facts)
        found.append(known)
        return known is not None

    if current_ranks().share(find_or_make) and not found:
        found.append(find_tensors(folder, name, like))
        if found[0] is None:
            raise StoreCorrupt(f"{folder}: what another process wrote cannot be read; run the same command again")
    return found[0] if found else None


def drop_tensors(folder: Path, name: str) -> None:
    """Remove tensors that are not needed any more."""
    for path in (_facts_path(folder, name), folder / f"{name}.safetensors"):
        path.unlink(missing_ok=True)


def _facts_path(folder: Path, name: str) -> Path:
    return folder / f"{name}_kept.parquet"


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every entry is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@dataclass(eq=False)
class TrainingSums:
    """Sums of gradients of a training's loss over blocks of pairs.

    Attributes:
        gradients: the model and the parameters.
        loss: the loss.
        with_mean: whether the gradient over all pairs is wanted.
        batch_pairs: pairs of a batch, for the mean square of the gradients of batches; None leaves it out.
        counts: numbers of rows that were read, of pairs and of batches that were added.
        sums: the gradients, and then the squares, as far as they are wanted.
    """

    gradients: ParameterGradients
    loss: PreferenceLoss
    with_mean: bool
    batch_pairs: int | None
    counts: dict[str, int] = field(default_factory=lambda: {"rows": 0, "pairs": 0, "batches": 0})
    sums: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = [torch.zeros_like(each) for each in self.like]

    @property
    def like(self) -> list[Tensor]:
        """Tensors of the shapes of the sums."""
        return [*self.gradients.parameters] * (self.with_mean + (self.batch_pairs is not None))

    def add(self, pairs: Sequence[TokenizedPair], report: Report) -> None:
        """Add a block of pairs; its last batch may have fewer than the others."""
        found = training_gradient(self.gradients, pairs, self.loss, self.batch_pairs, report)
        batches = -(-len(pairs) // self.batch_pairs) if self.batch_pairs else 0
        added = [each.mul_(len(pairs)) for each in found.mean] if self.with_mean else []
        added += [each.mul_(batches) for each in found.mean_square or ()]
        for total, each in zip(self.sums, added, strict=True):
            total += each
        self.counts["pairs"] += len(pairs)
        self.counts["batches"] += batches

    def means(self) -> list[Tensor]:
        """The mean gradient over pairs, and the mean square over batches."""
        count = len(self.gradients.parameters) if self.with_mean else 0
        return [each.div_(self.counts["pairs"]) for each in self.sums[:count]] + [
            each.div_(self.counts["batches"]) for each in self.sums[count:]
        ]

    def keep(self, folder: Path, name: str) -> None:
        """Keep the sums, so that another process can go on from them."""
        keep_tensors(folder, name, self.sums, {"counts": self.counts, "batch_tokens": self.gradients.batch_tokens})

    def go_on(self, folder: Path, name: str) -> None:
        """Go on from sums that were kept, if there are any."""
        known = find_tensors(folder, name, self.like)
        if known is not None:
            self.sums, self.counts = known.tensors, known.facts["counts"]
            self.gradients.batch_tokens = known.facts["batch_tokens"]
