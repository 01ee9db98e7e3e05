"""Which tokens of a pass an edit is for: all, the last of each row, or those of the response."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probing.errors import UsageError

Tokens = Literal["all", "last", "response"]
TOKENS: tuple[Tokens, ...] = ("all", "last", "response")


@dataclass
class EditedTokens:
    """Finds out, at the start of each pass, which tokens are edited and by which direction.

    Attributes:
        tokens: "all"; "last": the last token of each row in every pass, so that in generation with a cache the last
            token of the prompt and then each generated one are edited; "response": those from position
            ``prompt_tokens`` on, counted without padding.
        prompt_tokens: length of each row's prompt, or of all; where it is None, the first pass of a generation with a
            cache is taken for the prompt, and all that follows for the response.
        rows: index of the direction of each row of a batch, -1 for none; None where there is one direction for all.
    """

    tokens: Tokens = "all"
    prompt_tokens: int | Sequence[int] | None = None
    rows: Tensor | None = None
    shape: tuple[int, int] | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens not in TOKENS:
            raise UsageError(f"tokens is one of {', '.join(TOKENS)}, not {self.tokens!r}")

    @property
    def everywhere(self) -> bool:
        """Whether all tokens of all passes are treated alike, so that nothing has to be known of a pass."""
        return self.tokens == "all" and self.rows is None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at what a model is called with.

        Raises:
            UsageError: it does not tell which tokens are meant, or a batch of another size than there are directions.
        """
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids = given.get("input_ids")
        states = ids if ids is not None else given.get("inputs_embeds")
        if states is None:
            raise UsageError("a pass without input_ids or inputs_embeds: which tokens are meant cannot be known")
        self.shape = (int(states.shape[0]), int(states.shape[1]))
        if self.rows is not None and len(self.rows) != self.shape[0]:
            raise UsageError(
                f"directions are given for {len(self.rows)} rows, and a batch of {self.shape[0]} came (packed "
                f"sequences are one row); call assign(rows) before each pass of another size"
            )
        self.mask = None if self.tokens == "all" else self._find_mask(given, states.device)

    def _find_mask(self, given: Mapping[str, Any], device: torch.device) -> Tensor:
        """Which tokens are edited, [row token]."""
        assert self.shape is not None
        cache = given.get("past_key_values", given.get("cache_params"))
        past, begun = _read_cache(cache)
        every = torch.ones(self.shape, dtype=torch.bool, device=device)
        if self.shape[1] == 1 and begun and self.prompt_tokens is None:
            # One more token of a generation: it is the last, and belongs to the response.
            return every
        real, positions = self._find_positions(given, every, past if past or not begun else None)
        if self.tokens == "last":
            return real & (positions == positions.masked_fill(~real, -1).amax(dim=1, keepdim=True))
        if self.prompt_tokens is not None:
            return real & (positions >= torch.as_tensor(self.prompt_tokens, device=device).reshape(-1, 1))
        if cache is None and not given.get("use_cache", False):
            raise UsageError("tokens='response' needs prompt_tokens where a pass has no cache to tell the prompt by")
        return real & begun

    def _find_positions(self, given: Mapping[str, Any], every: Tensor, past: int | None) -> tuple[Tensor, Tensor]:
        """Which tokens of a pass are no padding, and how many of its row stand before each, both [row token]."""
        tokens = every.shape[1]
        mask, told = given.get("attention_mask"), given.get("position_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real, positions = mask[:, -tokens:].bool(), (mask.long().cumsum(dim=1) - 1)[:, -tokens:]
        # Generation leaves out a mask without padding, and gives positions or a cache in its place.
        elif mask is None and isinstance(told, Tensor) and told.ndim == 2:
            real, positions = every, told.expand(every.shape)
        elif mask is None and past is not None and ("past_key_values" in given or "cache_params" in given):
            real, positions = every, past + every.long().cumsum(dim=1) - 1
        else:
            raise UsageError(
                f"tokens={self.tokens!r} needs an attention_mask of [row token] with each pass, to tell tokens from "
                f"padding"
            )
        if isinstance(told, Tensor) and told.ndim == 2:
            steps, both = told.diff(dim=1), real[:, 1:] & real[:, :-1]
            if bool(((steps != 1) & both).any()):
                raise UsageError(f"tokens={self.tokens!r} cannot be told in packed sequences; run them one a row")
        return real, positions

    def flatten(self, states: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """States as [token width], with the direction of each token and whether it is edited (None: all are).

        States that all rows share, such as embeddings of positions, are repeated for each row.

        Raises:
            UsageError: states of another number of tokens than the pass has.
        """
        width = states.shape[-1]
        if self.everywhere or self.shape is None:
            return states.reshape(-1, width), None, None
        rows, tokens = self.shape
        if states.numel() == tokens * width and rows > 1:
            states = states.reshape(1, tokens, width).expand(rows, tokens, width)
        flat = states.reshape(-1, width)
        if len(flat) != rows * tokens:
            raise UsageError(
                f"a module returns states of {len(flat)} tokens in a pass of {rows} rows of {tokens} tokens"
            )
        own = None if self.rows is None else self.rows.to(states.device).repeat_interleave(tokens)
        return flat, own, None if self.mask is None else self.mask.to(states.device).reshape(-1)

    def shape_like(self, flat: Tensor, states: Tensor) -> Tensor:
        """Edited states in the shape that they had, or, where all rows shared them, with one for each row."""
        if flat.numel() == states.numel() or self.shape is None:
            return flat.reshape(states.shape)
        return flat.reshape(*self.shape, flat.shape[-1])


def _read_cache(cache: Any) -> tuple[int, bool]:
    """Tokens that a cache holds, as far as it counts them, and whether it holds any."""
    try:
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    except ValueError:
        # A cache of a state-space model counts no tokens.
        past = 0
    if past or cache is None:
        return past, past > 0
    try:
        return 0, bool(cache.has_previous_state())
    except (AttributeError, TypeError, ValueError):
        # It holds no states of a state-space model.
        return 0, False
