"""The number of tokens a batch that a run keeps, however often it is interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from probing.engine.budget import TokenBudget
from probing.engine.stream import Stream
from probing.store.manifest import RunFolder


class KeptBudget:
    """The budget of a folder's run, in the streams that it is run with.

    The budget for a card depends on its free memory at that moment. A continued run therefore takes the budget it began
    with, or the smaller one that it had reached when memory ran out, which every part records; so it ends in the same
    bytes.

    Args:
        folder: folder of the run; its record gets the budget when the run begins.
        streams: streams of the run, which all get the same budget, the least of those that they found.
    """

    def __init__(self, folder: RunFolder, streams: Sequence[Stream]) -> None:
        self._streams = streams
        facts = folder.facts()
        self._put(self.facts() if "batch_tokens" not in facts else facts["batch_tokens"])
        if "batch_tokens" not in facts:
            folder.write({**facts, "batch_tokens": self.facts()})

    def facts(self) -> dict[str, Any]:
        """The current budget for the record."""
        return asdict(min((stream.budget for stream in self._streams), key=lambda budget: budget.tokens))

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Go on with the budget after a part, whose facts are these."""
        self._put(facts["batch_tokens"])

    def _put(self, facts: Mapping[str, Any]) -> None:
        for stream in self._streams:
            stream.budget = TokenBudget(**facts)
