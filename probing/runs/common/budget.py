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
        put_budget(streams, self.facts() if "batch_tokens" not in facts else facts["batch_tokens"])
        if "batch_tokens" not in facts:
            folder.write({**facts, "batch_tokens": self.facts()})

    def facts(self) -> dict[str, Any]:
        """The current budget for the record."""
        return budget_facts(self._streams)

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Go on with the budget after a part, whose facts are these."""
        put_budget(self._streams, facts["batch_tokens"])


class RecordedBudget:
    """The budget of a run whose models are in other processes, each of which goes on with its own.

    Args:
        folder: folder of the run; its record gets the budget when the run begins.
        facts: the budget that the first of these processes found.
    """

    def __init__(self, folder: RunFolder, facts: Mapping[str, Any]) -> None:
        known = folder.facts()
        if "batch_tokens" not in known:
            folder.write({**known, "batch_tokens": dict(facts)})

    def adopt(self, facts: Mapping[str, Any]) -> None:
        """Nothing: a part that another process made does not change the budget of this one."""


def budget_facts(streams: Sequence[Stream]) -> dict[str, Any]:
    """The least budget of some streams, for the record."""
    return asdict(min((stream.budget for stream in streams), key=lambda budget: budget.tokens))


def put_budget(streams: Sequence[Stream], facts: Mapping[str, Any]) -> None:
    """Give some streams the budget that a record holds."""
    for stream in streams:
        stream.budget = TokenBudget(**facts)
