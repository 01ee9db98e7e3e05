"""Attention over packed sequences and trees, registered with transformers under a name of its own.

A packed sequence has no padding: ``prompt | chosen | rejected | prompt | ...``, a response attending to its own prompt
and to itself. The library's attention functions cannot do this: an all-ones mask lets packed sequences see each other
without a word, and its detector of packed sequences takes the second response for a new sequence.

The library's mask functions tell which positions a layer looks at (all earlier ones, a sliding window, a chunk, later
ones too), in the coordinates of one sequence. They are kept as they are and applied to each sequence by itself, so
that windows, chunks and encoders need no special case here.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from probing.engine.transfer import upload
from probing.engine.trees import Path
from probing.tokens.padding import PAD_TO

NAME = "probing_paths"
Seen = Literal["causal", "all", "other"]
CAPPED = "attention logits are capped or share their softmax with a sink"
NOT_UNDERSTOOD = ("position_bias", "cache", "block_indices")


@dataclass(frozen=True, eq=False)
class Pattern:
    """The positions of one sequence that see each other: the function that the library makes its mask from."""

    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    known: dict[int, tuple[Seen, int | None]] = field(default_factory=dict)

    def mask(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[row column], true where the position ``rows[i]`` sees ``columns[j]``."""
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=rows.device)
        seen = self.function(zero, zero, rows[None, None, :, None], columns[None, None, None, :])
        return seen.expand(1, 1, len(rows), len(columns))[0, 0]

    def seen(self, length: int) -> Seen:
        """Whether every position sees all up to itself ("causal"), "all" others, or something "other"."""
        return self._find_pattern(length)[0]

    def window(self, length: int) -> int | None:
        """Earlier positions that each one sees besides itself, where that is a sliding window; otherwise None."""
        return self._find_pattern(length)[1]

    def _find_pattern(self, length: int) -> tuple[Seen, int | None]:
        if length not in self.known:
            try:
                self.known[length] = self._look(torch.arange(length))
            except RuntimeError:
                # Some of the library's functions hold tensors on the card, which do not go with those on the CPU.
                self.known[length] = self._look(torch.arange(length, device="cuda"))
        return self.known[length]

    def _look(self, positions: Tensor) -> tuple[Seen, int | None]:
        last = self.mask(positions[-1:], positions)[0]
        ahead = self.mask(positions[:1], positions)[0, 1:]
        nothing_next = not self._sees(positions[:-1], positions[1:]).any()
        if last.all() and (len(positions) == 1 or (not ahead.any() and nothing_next)):
            return "causal", None
        if last.all() and ahead.all():
            return "all", None
        return "other", self._sliding(positions, last) if nothing_next and not ahead.any() else None

    def _sliding(self, positions: Tensor, last: Tensor) -> int | None:
        """The window, if every position sees so many before it and none before these."""
        window = int(last.sum()) - 1
        if not 0 <= window < len(positions) - 1 or not last[-window - 1 :].all():
            return None
        full = self._sees(positions[window:], positions[window:] - window).all()
        beyond = self._sees(positions[window + 1 :], positions[window + 1 :] - window - 1).any()
        early = self._sees(positions[:window], torch.zeros_like(positions[:window])).all()
        return window if full and early and not beyond else None

    def _sees(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether each position ``rows[i]`` sees ``columns[i]``."""
        zero = torch.zeros_like(rows)
        return self.function(zero, zero, rows, columns)


@dataclass(eq=False)
class Layout:
    """The paths that the packed tokens of one pass belong to, and what every layer needs again.

    Attributes:
        paths: paths of the pass in the order of their tokens, covering all tokens.
        varlen: whether torch's attention over sequences of varying length is used (CUDA, half precision).
        loops: why a layer's attention ran sequence by sequence all the same; filled during the pass.
    """

    paths: tuple[Path, ...]
    varlen: bool = False
    loops: set[str] = field(default_factory=set)
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

    def find_ragged_bounds(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of the queries and of the keys of each path, and which packed token each key is; int32."""
        if device not in self.indices:
            keys = [np.r_[slice(*path.before), path.start : path.stop] for path in self.paths]
            own = np.cumsum([0, *(path.stop - path.start for path in self.paths)])
            seen = np.cumsum([0, *map(len, keys)])
            parts = upload([own, seen, np.concatenate(keys)], device)
            self.indices[device] = (parts[0], parts[1], parts[2])
        return self.indices[device]


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextlib.contextmanager
def use_packed_attention(configs: Sequence[Any], layout: Layout) -> Iterator[None]:
    """Have a model attend along ``layout``; afterwards its config is as it was."""
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
    configs: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        for entry in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
            if hasattr(entry, "_attn_implementation"):
                configs.setdefault(id(entry), entry)
    return list(configs.values())


def _pattern(*, mask_function: Callable[..., Tensor], **_: Any) -> Pattern:
    """The function that a mask would be made from, in place of the mask."""
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
    if layout.varlen:
        obstacle = CAPPED if spelled_out else find_varlen_obstacle(pattern, layout.longest, scale, query.shape[-1])
        if obstacle is None:
            return _varlen(query, key, value, layout, pattern, scale), None
        layout.loops.add(obstacle)
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
            states = _attend_by_parts(q, k, v, layout.mask(pattern, path, q), scale=scale, softcap=softcap, sinks=s_aux)
        elif unmasked:
            states = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=seen == "causal")
        else:
            states = F.scaled_dot_product_attention(q, k, v, layout.mask(pattern, path, q), scale=scale)
        out[:, own] = states.transpose(1, 2)
    return out, None


def _attend_by_parts(
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


def find_varlen_obstacle(pattern: Pattern, length: int, scale: float, width: int) -> str | None:
    """Why torch's attention over sequences of varying length cannot do what a layer asks for; None where it can.

    Args:
        pattern: the pattern of positions that see each other.
        length: length of the longest sequence.
        scale: scale of the attention logits.
        width: width of an attention head.
    """
    known = _known_arguments(_varlen_function())
    windowed = pattern.window(length) is not None
    if pattern.seen(length) == "other" and not windowed:
        return "a layer attends neither causally nor in a sliding window"
    if windowed and "window_size" not in known:
        return f"varlen_attn of torch {torch.__version__} has no sliding windows"
    if scale != width**-0.5 and "scale" not in known:
        return f"varlen_attn of torch {torch.__version__} has no scale of its own"
    return None


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, pattern: Pattern, scale: float) -> Tensor:
    """All paths in one launch. A path's keys are gathered: those it continues, then its own, aligned at the end."""
    query_bounds, key_bounds, keys = layout.find_ragged_bounds(query.device)
    function = _varlen_function()
    states = function(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).index_select(0, keys),
        value[0].transpose(0, 1).index_select(0, keys),
        query_bounds,
        key_bounds,
        max(path.stop - path.start for path in layout.paths),
        layout.longest,
        **_varlen_options(function, pattern, layout.longest, scale, query.shape[1] != key.shape[1]),
    )
    assert isinstance(states, Tensor)
    return states[None]


def _varlen_options(
    function: Callable[..., Any], pattern: Pattern, length: int, scale: float, grouped: bool
) -> dict[str, Any]:
    """Keywords that the function's signature knows.

    torch 2.10 knows ``is_causal``; 2.11 ``scale`` and ``window_size`` in its place; 2.12 ``enable_gqa``, before which
    fewer key heads are taken as they are; 2.13 ``num_splits``: with one split, a sequence has the same bits whatever
    else is in the batch.
    """
    window, causal = pattern.window(length), pattern.seen(length) != "all"
    wanted = {
        "scale": scale,
        "window_size": (-1 if window is None else window, 0 if causal else -1),
        "enable_gqa": grouped,
        "num_splits": 1,
        "is_causal": causal,
    }
    known = _known_arguments(function)
    # PyTorch for ROCm knows this option and refuses it.
    if torch.version.hip is not None:
        known = known - {"num_splits"}
    return {name: value for name, value in wanted.items() if name in known}


def _varlen_function() -> Callable[..., Any]:
    # This module is new in torch 2.10.
    from torch.nn.attention import varlen

    return varlen.varlen_attn


@functools.lru_cache(maxsize=8)
def _known_arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _pattern)
