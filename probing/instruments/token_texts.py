"""Texts of single tokens, for tables with a row a token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TokenTexts:
    """Looks up the text of each token by itself, once.

    Args:
        tokenizer: a transformers tokenizer.
    """

    tokenizer: Any
    _known: dict[int, str] = field(init=False, default_factory=dict)

    def of(self, ids: Sequence[int]) -> list[str]:
        """The text of each of these tokens."""
        for id in set(ids) - self._known.keys():
            self._known[id] = str(self.tokenizer.decode([id]))
        return [self._known[id] for id in ids]
