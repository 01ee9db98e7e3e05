"""Attention over packed sequences and trees, registered with transformers under a name of its own.

A packed sequence has no padding: ``prompt | chosen | rejected | prompt | ...``, a response attending to its own prompt
and to itself. The library's attention functions cannot do this: an all-ones mask lets packed sequences see each other
without a word, and its detector of packed sequences takes the second response for a new sequence.

The library's mask functions tell which positions a layer looks at (all earlier ones, a sliding window, a chunk, later
ones too), in the coordinates of one sequence. They are kept as they are and applied to each sequence by itself, so
that windows, chunks and encoders need no special case here.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from probing.data.batches import PAD_TO
from probing.engine.trees import Path

NAME = "probing_paths"
Seen = Literal["causal", "all", "other"]
NOT_UNDERSTOOD = ("position_bias", "cache", "block_indices")


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which positions of one sequence see which: what the library made its mask from, in place of the mask."""

    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    known: dict[int, Seen] = field(default_factory=dict)

    def mask(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[row column], true where the position ``rows[i]`` sees ``columns[j]``."""
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=rows.device)
        seen = self.function(zero, zero, rows[None, None, :, None], columns[None, None, None, :])
        return seen.expand(1, 1, len(rows), len(columns))[0, 0]

    def seen(self, length: int) -> Seen:
        """Whether every position sees all up to itself ("causal"), "all" others, or something "other"."""
        if length not in self.known:
            self.known[length] = self._look(length)
        return self.known[length]

    def _look(self, length: int) -> Seen:
        try:
            return self._look_on(length, torch.device("cpu"))
        except RuntimeError:  # some of the library's functions hold tensors on the card
            return self._look_on(length, torch.device("cuda"))

    def _look_on(self, length: int, device: torch.device) -> Seen:
        positions = torch.arange(length, device=device)
        last = bool(self.mask(positions[-1:], positions).all())
        ahead = self.mask(positions[:1], positions)[0, 1:]
        if last and length == 1:
            return "causal"
        if last and not ahead.any() and not self._next(positions).any():
            return "causal"
        return "all" if last and bool(ahead.all()) else "other"

    def _next(self, positions: Tensor) -> Tensor:
        """Whether each position sees the one after it."""
        zero = torch.zeros(len(positions) - 1, dtype=torch.long, device=positions.device)
        return self.function(zero, zero, positions[:-1], positions[1:])


@dataclass(eq=False)
class Layout:
    """How the packed tokens of one pass hang together; also holds what every layer needs again.

    Attributes:
        paths: in the order of the tokens, covering all of them.
        varlen: whether torch's attention over sequences of varying length is used (CUDA, half precision).
    """

    paths: tuple[Path, ...]
    varlen: bool = False
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    indices: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(path.offset + path.stop - path.start for path in self.paths)

    def mask(self, pattern: Pattern, path: Path, like: Tensor) -> Tensor:
        """Additive mask [query key] of one path; the layers share it."""
        length = path.stop - path.start
        key = (pattern, path.start, like.dtype, like.device)
        if key not in self.masks:
            columns = torch.arange(path.offset + length, device=like.device)
            seen = pattern.mask(columns[path.offset :], columns)
            self.masks[key] = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
                ~seen, float("-inf")
            )
        return self.masks[key]

    def ragged(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of the queries and of the keys of each path, and which packed token each key is."""
        if device not in self.indices:
            keys = [torch.cat([torch.arange(*path.before), torch.arange(path.start, path.stop)]) for path in self.paths]
            lengths = [[path.stop - path.start for path in self.paths], [len(key) for key in keys]]
            bounds = [F.pad(torch.tensor(values).cumsum(0), (1, 0)).to(device, torch.int32) for values in lengths]
            self.indices[device] = (bounds[0], bounds[1], torch.cat(keys).to(device))
        return self.indices[device]


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def packed_attention(configs: Sequence[Any], layout: Layout) -> Iterator[None]:
    """A model that attends along ``layout``; its config is as it was after."""
    before = [config._attn_implementation for config in configs]
    token = _layout.set(layout)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _layout.reset(token)


def configs_of(module: nn.Module) -> list[Any]:
    """The configs that a model's parts ask for the attention to use, outer ones first."""
    found: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        for entry in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
            if hasattr(entry, "_attn_implementation"):
                found.setdefault(id(entry), entry)
    return list(found.values())


def _pattern(*, mask_function: Callable[..., Tensor], **_: Any) -> Pattern:
    """In place of a mask: the function that it would be made from."""
    return Pattern(mask_function)


@torch.compiler.disable
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Pattern | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of every path to itself and to what it continues; [1 head token width] to [1 token head width]."""
    layout = _layout.get()
    if layout is None or not isinstance(attention_mask, Pattern) or query.shape[0] != 1:
        raise NotImplementedError(f"{type(module).__name__} does not hand over what packed attention needs")
    strange = [name for name in NOT_UNDERSTOOD if options.get(name) is not None]
    if strange or (dropout and module.training) or query.shape[2] != key.shape[2]:
        raise NotImplementedError(f"{type(module).__name__} uses {', '.join(strange) or 'a cache or dropout'}")
    pattern = attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    spelled_out = softcap is not None or s_aux is not None
    if layout.varlen and not spelled_out and pattern.seen(layout.longest) != "other":
        return _varlen(query, key, value, layout, scale, pattern.seen(layout.longest) == "causal"), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for path in layout.paths:
        own, before = slice(path.start, path.stop), slice(*path.before)
        q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
        if path.offset:
            k, v = torch.cat([key[:, :, before], k], dim=2), torch.cat([value[:, :, before], v], dim=2)
        seen = pattern.seen(k.shape[2])
        # With fewer keys and no mask, torch 2.13 turns NaN queries into finite numbers on the CPU.
        unmasked = (seen == "all" or (seen == "causal" and not path.offset)) and k.shape[2] >= PAD_TO
        if spelled_out:
            states = _spelled_out(q, k, v, layout.mask(pattern, path, q), scale, softcap, s_aux)
        elif unmasked:
            states = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=seen == "causal")
        else:
            states = F.scaled_dot_product_attention(q, k, v, layout.mask(pattern, path, q), scale=scale)
        out[:, own] = states.transpose(1, 2)
    return out, None


def _spelled_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention whose logits are capped (Gemma 2) or share the softmax with a sink of each head (gpt-oss)."""
    logits = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits + mask
    if sinks is not None:
        logits = torch.cat([logits, sinks.reshape(1, -1, 1, 1).expand(1, -1, logits.shape[2], 1).to(logits)], dim=-1)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, causal: bool) -> Tensor:
    """All paths in one launch. A path's keys are gathered: those it continues, then its own, aligned at the end."""
    from torch.nn.attention.varlen import varlen_attn

    query_bounds, key_bounds, keys = layout.ragged(query.device)
    states = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1)[keys],
        value[0].transpose(0, 1)[keys],
        query_bounds,
        key_bounds,
        max(path.stop - path.start for path in layout.paths),
        layout.longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(states, Tensor)
    return states[None]


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _pattern)
