"""The writers of a model: every module that adds to the residual stream, and where its write can be edited."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from probing.errors import EditRefused
from probing.models.hooks import Tap, tap_modules
from probing.models.norms import Norm, could_be_norm, find_norm
from probing.models.passes import TRIAL_STARTS, run_backbone, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.stack import Stack
from probing.models.writes import Part, find_terms

WriterKind = Literal["embedding", "attention", "mlp"]
WRITER_KINDS: tuple[WriterKind, ...] = ("embedding", "attention", "mlp")


@dataclass(frozen=True, eq=False)
class Writer:
    """One module that writes to the residual stream.

    Attributes:
        kind: "embedding" (of words and of positions), "attention" (or another mixer of tokens), or "mlp".
        layer: the block; None for an embedding.
        name: path of ``module`` within the model.
        module: what it returns, times ``factor``, is added to the residual stream.
        factor: of the write.
        norm: a norm between what is edited and what is written, if there is one.
        before: modules whose outputs, each times a factor, add up to what the norm takes; empty without a norm.
    """

    kind: WriterKind
    layer: int | None
    name: str
    module: nn.Module
    factor: float = 1.0
    norm: Norm | None = None
    before: tuple[Part, ...] = ()

    @property
    def edited(self) -> tuple[tuple[str, nn.Module], ...]:
        """Name and module of each output that an edit changes: the write itself, or what goes into the norm."""
        if self.norm is None:
            return ((self.name, self.module),)
        return tuple((part.name, part.module) for part in self.before)

    @property
    def parameters(self) -> int:
        """Number of parameters in the modules that compute the write."""
        modules = [self.module, *(module for _, module in self.edited)]
        return sum({id(each): each.numel() for module in modules for each in module.parameters()}.values())

    def describe(self) -> str:
        """The writer in words."""
        behind = "" if self.norm is None else f" (edited before it: {', '.join(name for name, _ in self.edited)})"
        return f"{self.name}{behind}"


@dataclass
class Writers:
    """Account of an edit: which writers were found, which of them edited, and which proved.

    Attributes:
        found: every writer of the model.
        edited: those that were edited.
        proved: those whose writes were measured after the edit, and hold nothing of the direction any more.
        notes: what else has to be said of the edit.
    """

    found: tuple[Writer, ...]
    edited: tuple[Writer, ...] = ()
    proved: tuple[Writer, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Parameters of the edited writers over those of all."""
        return _count_parameters(self.edited) / max(_count_parameters(self.found), 1)

    def describe(self) -> str:
        """Writers found, edited and proved, by kind and by share of parameters, in one line."""
        found, edited, proved = (
            Counter(each.kind for each in group) for group in (self.found, self.edited, self.proved)
        )
        kinds = [f"{kind} {found[kind]}/{edited[kind]}/{proved[kind]}" for kind in WRITER_KINDS if found[kind]]
        line = f"writers found/edited/proved: {', '.join(kinds)}; {self.share:.1%} of their parameters are edited"
        return "; ".join([line, *self.notes])


def _count_parameters(writers: Sequence[Writer]) -> int:
    modules = [module for writer in writers for module in (writer.module, *(module for _, module in writer.edited))]
    return sum({id(each): each.numel() for module in modules for each in module.parameters()}.values())


def find_writers(stack: Stack, kinds: Collection[WriterKind] = WRITER_KINDS) -> tuple[Writer, ...]:
    """Every module that writes to the residual stream, in order.

    The writers of a block are the modules whose outputs were proved to add up to what the block adds; those of the
    embedding are the modules outside of the blocks whose outputs add up to what the first block takes. Where a norm
    stands behind a write, what goes into the norm is found too. What was found of a model is remembered by its
    structure (see ``probing.models.proofs``), and only the numbers of norms are read again.

    Args:
        stack: the model.
        kinds: kinds of writers to look for; what is not asked for need not be understood.

    Raises:
        EditRefused: a write that is not understood; names the layer or the module.
    """
    wanted = [kind for kind in WRITER_KINDS if kind in kinds]
    model, name = stack.language_model.model, f"writers: {', '.join(wanted)}"
    known = recall(model, name)
    found = None if known is None else _attach(known, stack)
    if found is None:
        found = _search(stack, wanted)
        remember(model, name, [_Known.detach(writer) for writer in found])
    return found


def _search(stack: Stack, wanted: Sequence[WriterKind]) -> tuple[Writer, ...]:
    blocks = [layer for layer in range(len(stack.blocks)) if any(kind != "embedding" for kind in wanted)]
    if blocks:
        _check_forms(stack)
    groups = {layer: _list_block(stack, layer) for layer in blocks}
    outside = _list_outside(stack) if "embedding" in wanted else {}
    seen, first = _record(stack, [outside, *groups.values()])
    found = list(_find_embedding(stack, seen[0], first)) if outside else []
    for (layer, _), own in zip(groups.items(), seen[1:], strict=True):
        found += _find_in_block(stack, layer, own, wanted)
    return tuple(found)


@dataclass(frozen=True)
class _Known:
    """A writer by the names of its modules, which holds no part of the model; parts with their factors."""

    kind: WriterKind
    layer: int | None
    name: str
    factor: float
    norm: str | None
    before: tuple[tuple[str, float], ...]

    @classmethod
    def detach(cls, writer: Writer) -> "_Known":
        """The writer by names."""
        before = tuple((part.name, part.factor) for part in writer.before)
        norm = None if writer.norm is None else writer.norm.name
        return cls(writer.kind, writer.layer, writer.name, writer.factor, norm, before)


def _attach(known: Sequence[_Known], stack: Stack) -> tuple[Writer, ...] | None:
    """The writers of the model from which they came; None where a norm is none any more."""
    part = stack.language_model.model.get_submodule
    found = []
    for each in known:
        # Its numbers are read anew, since training changes them.
        norm = None if each.norm is None else find_norm(each.norm, part(each.norm), stack.width)
        if norm is None and each.norm is not None:
            return None
        before = tuple(Part(name, part(name), factor) for name, factor in each.before)
        found.append(Writer(each.kind, each.layer, each.name, part(each.name), each.factor, norm=norm, before=before))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Input and output of a module in one pass."""

    name: str
    module: nn.Module
    given: Tensor | None
    returned: Tensor | None


def _list_outside(stack: Stack) -> dict[str, nn.Module]:
    """Modules of the backbone that are in no block and hold none (those return states of later layers)."""
    prefix = stack.name_of(stack.backbone)
    holding = {id(module) for block in stack.blocks for module in block.modules()}
    return {
        _join(prefix, name): module
        for name, module in stack.backbone.named_modules()
        if name and id(module) not in holding and not any(id(inner) in holding for inner in module.modules())
    }


def _list_block(stack: Stack, layer: int) -> dict[str, nn.Module]:
    prefix = stack.name_of(stack.blocks[layer])
    return {_join(prefix, name): module for name, module in stack.blocks[layer].named_modules() if name}


def _check_forms(stack: Stack) -> None:
    """Raise unless every block adds what its parts return to what it takes."""
    for layer, written in enumerate(stack.writes):
        if written.form != "sum":
            why = (
                "a norm stands behind each sum of what is carried on and what is written, so that no edit of a write "
                "alone decides what the residual stream holds"
                if written.form == "norm after each sum"
                else written.explain(layer)
            )
            raise EditRefused(f"{stack.family} cannot be edited at its writes: {why} (layer {layer})")


def _find_embedding(stack: Stack, seen: Sequence[_Seen], first: Tensor | None) -> Iterator[Writer]:
    if first is None:
        raise EditRefused(f"the first block of {stack.family} takes no tensor of states")
    # Dropout passes on what others wrote.
    changing = [each for each in seen if each.given is None or not _equal(each.given, each.returned)]
    terms = find_terms(
        first, [(each.name, each.module, each.returned) for each in changing if each.returned is not None]
    )
    if not terms:
        raise EditRefused(
            f"the embedding of {stack.family} is not understood: no modules outside of its blocks add up to what its "
            f"first block takes (looked at: {', '.join(each.name for each in seen) or 'none'})"
        )
    for part in terms:
        yield _look_behind(stack, "embedding", None, part, seen)


def _find_in_block(stack: Stack, layer: int, seen: Sequence[_Seen], kinds: Collection[WriterKind]) -> Iterator[Writer]:
    written, names = stack.writes[layer], {id(each.module): each.name for each in seen}
    groups: tuple[tuple[WriterKind, tuple[Part, ...]], ...] = (("attention", written.attention), ("mlp", written.mlp))
    for kind, parts in groups:
        for part in parts if kind in kinds else ():
            yield _look_behind(stack, kind, layer, replace(part, name=names[id(part.module)]), seen)


def _look_behind(stack: Stack, kind: WriterKind, layer: int | None, part: Part, seen: Sequence[_Seen]) -> Writer:
    """The writer of a part of a sum, with the norm that its output comes from, if it comes from one."""
    written = next(each.returned for each in seen if each.module is part.module)
    assert written is not None
    plain = Writer(kind, layer, part.name, part.module, part.factor)
    inside = set(part.module.modules())
    for call in reversed(seen):
        if call.module not in inside or not _changes_channels(call, written, stack.width):
            continue
        norm = find_norm(call.name, call.module, stack.width)
        if norm is None:
            continue
        assert call.given is not None
        others = [
            (each.name, each.module, each.returned)
            for each in seen
            if each.returned is not None and call.module not in set(each.module.modules())
        ]
        before = find_terms(call.given, others)
        if not before:
            raise EditRefused(
                f"{call.name} of {stack.family} is a norm behind a write, and what goes into it is returned by no "
                f"module (looked at: {', '.join(name for name, _, _ in others)})"
            )
        return Writer(kind, layer, part.name, part.module, part.factor, norm=norm, before=tuple(before))
    return plain


def _changes_channels(call: _Seen, written: Tensor, width: int) -> bool:
    """Whether a module without parts returned just what is written, and took other states of the same shape."""
    if call.given is None or call.returned is None or not could_be_norm(call.module, width):
        return False
    same = call.returned.numel() == written.numel() and torch.equal(call.returned.reshape(written.shape), written)
    return same and call.given.shape == call.returned.shape and not torch.equal(call.given, call.returned)


def _record(stack: Stack, groups: Sequence[Mapping[str, nn.Module]]) -> tuple[list[list[_Seen]], Tensor | None]:
    """What passed some modules in a pass of a few tokens, group by group in the order in which they ended.

    Returns with it what the first block took. A module that ran more than once is left out; so is what has not the
    width of the residual stream.
    """
    named = [(group, name, module) for group, each in enumerate(groups) for name, module in each.items()]
    taps = [Tap(module, before) for _, _, module in named for before in (True, False)]
    passed: list[tuple[int, Tensor | None]] = []

    def receive(index: int, tensor: Tensor | None) -> None:
        fits = tensor is not None and tensor.is_floating_point() and tensor.shape[-1:] == (stack.width,)
        # Copied, since some blocks add to their input in place.
        passed.append((index, tensor.clone() if fits and tensor is not None else None))

    ids, taps = trial_ids(stack.language_model, TRIAL_STARTS[0]), [*taps, Tap(stack.blocks[0], before=True)]
    with torch.inference_mode(), use_eval_mode(stack.language_model.model), tap_modules(taps, receive):
        run_backbone(stack.backbone, ids)
    times = Counter(index for index, _ in passed)
    kept = {index: tensor for index, tensor in passed if times[index] == 1}
    seen: list[list[_Seen]] = [[] for _ in groups]
    for index in [index for index in kept if index % 2 and index < len(taps) - 1]:
        group, name, module = named[index // 2]
        seen[group].append(_Seen(name, module, kept.get(index - 1), kept[index]))
    return seen, kept.get(len(taps) - 1)


def _equal(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape and torch.equal(tensor, other)


def _join(prefix: str, name: str) -> str:
    return ".".join(filter(None, (prefix, name)))
