"""The processes that one command was launched in, by torchrun or alike: what they tell one another.

Each runs the same command. The first leads: it alone locks the output folder, writes the record and the results, and
prints them; the others make their share of the parts and leave. What they tell one another goes through the key-value
store that the launcher provides, so that no collective operation of a backend is needed. Only where they hold one model
together (tensor parallel) is there a process group, through which the passes of the model go; then all run the same
rows in the same order.
"""

import contextlib
import heapq
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

log = logging.getLogger(__name__)

FOREVER = timedelta(days=100)
"""How long a process waits for another: the launcher ends all of them when one fails."""
SILENCE_SECONDS = 60.0
POLL_SECONDS = 0.2
SILENT_SECONDS = 10.0
"""How long a process that does not lead keeps an error to itself, which the leader most likely tells as well."""
GROUP_TIMEOUT = timedelta(hours=2)
"""How long a pass of a model waits for another process: one may read its share of the weights from a slow disk."""
BEGUN, DONE, LEFT, CHECKED = "begun", "done", "left", "checked"


class Left(BaseException):
    """Raised in a process that does not lead when its share is done; not an error."""


@dataclass(eq=False)
class Ranks:
    """The processes of one launch, as one of them sees them.

    Attributes:
        rank: number of this process, from 0; the first leads.
        size: number of processes.
        local_rank: number of this process among those on its machine.
        store: through which they tell one another; None where there is one process.
        share_model: whether they hold one model together, so that each of them runs all rows.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: "Store | None" = None
    share_model: bool = False
    _shared: int = field(default=0, init=False)
    _gathered: int = field(default=0, init=False)
    _topics: int = field(default=0, init=False)

    @property
    def leads(self) -> bool:
        """Whether this process locks, writes and prints."""
        return self.rank == 0

    def open_group(self, backend: str, device: "torch.device | None" = None) -> None:
        """Open the process group that passes of a shared model go through; all processes have to call this.

        The others begin their work now: the leader has found nothing wrong with its inputs.

        Args:
            backend: of torch.distributed, such as "gloo".
            device: card of this process, where the backend wants to know it.
        """
        from torch import distributed

        if distributed.is_initialized():
            return
        assert self.store is not None
        if self.leads:
            self.store.set(CHECKED, "1")
        store = distributed.PrefixStore("group", self.store)
        distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=GROUP_TIMEOUT, device_id=device
        )

    def announce_begun(self) -> None:
        """Tell the others that this process has read its inputs and holds the run; see ``wait_for_turn``."""
        if self.store is not None:
            self.store.set(f"{BEGUN}/{self.rank}", "1")
            self.store.set(CHECKED, "1")

    def wait_for_turn(self) -> None:
        """Wait until the leader has begun, and the first process on this machine has read its model.

        So wrong inputs are told once, and the processes of a machine do not read the same files from a cold disk at
        once. Those that hold one model load it together, and wait until the leader has checked its inputs.
        """
        if self.store is None or self.leads:
            return
        if self.share_model:
            self.store.wait([CHECKED], FOREVER)
        else:
            self.store.wait([f"{BEGUN}/0"], FOREVER)
            if self.local_rank:
                self.store.wait([f"{BEGUN}/{self.rank - self.local_rank}"], FOREVER)

    def share(self, make: Callable[[], Any]) -> Any:
        """What the leader makes, in every process; it goes through JSON. All processes have to call this in turn."""
        if self.store is None:
            return make()
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.leads:
            made = json.dumps(make())
            self.store.set(key, made)
        else:
            self.store.wait([key], FOREVER)
            made = self.store.get(key).decode()
        return json.loads(made)

    @contextlib.contextmanager
    def let_leader_speak(self) -> Iterator[None]:
        """Where the processes hold one model, hold an error of the block back for a while.

        Most likely it is the leader's as well, and the launcher ends this process before it is told a second time.
        """
        try:
            yield
        except Exception:
            if self.share_model:
                time.sleep(SILENT_SECONDS)
            raise

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Where the processes hold one model, have the leader run the block before the others do."""
        if self.share_model and not self.leads:
            self.wait_for_leader()
        yield
        if self.share_model and self.leads:
            self.wait_for_leader()

    def wait_for_leader(self, do: Callable[[], None] = lambda: None) -> None:
        """Have the leader do something that the others wait for."""
        self.share(do)

    def count(self, name: str, more: int = 0) -> int:
        """Add to a number that all processes share; returns it."""
        assert self.store is not None
        return int(self.store.add(name, more))

    def open_topic(self) -> str:
        """A name under which every process may tell something. All processes have to call this in turn."""
        self._topics += 1
        return f"topic/{self._topics}"

    def tell(self, topic: str, facts: Any) -> None:
        """Tell the others something, in place of what this process told under this name before."""
        if self.store is not None:
            self.store.set(f"{topic}/{self.rank}", json.dumps(facts))

    def hear(self, topic: str) -> dict[int, Any]:
        """What the others told last under this name, by their ranks."""
        if self.store is None:
            return {}
        keys = {rank: f"{topic}/{rank}" for rank in range(self.size) if rank != self.rank}
        return {rank: json.loads(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}

    def gather(self, poll: Callable[[], None] = lambda: None) -> None:
        """Have every process wait until all have come here.

        Args:
            poll: called by the leader while it waits.
        """
        self._gathered += 1
        self._wait_for_all(f"{DONE}/{self._gathered}", poll)
        self.wait_for_leader()

    def gather_last(self) -> None:
        """Have the leader wait until every process has come here, and the others end at once."""
        self._wait_for_all(LEFT, lambda: None)

    def _wait_for_all(self, name: str, poll: Callable[[], None]) -> None:
        if self.store is None:
            return
        came, silent_from = self.count(name, 1), time.monotonic()
        while self.leads and came < self.size:
            time.sleep(POLL_SECONDS)
            poll()
            came = self.count(name)
            if time.monotonic() - silent_from > SILENCE_SECONDS:
                log.warning("waiting for %d of %d processes of this launch", self.size - came, self.size)
                silent_from = time.monotonic()

    def leave(self) -> None:
        """End a process that does not lead, whose share is done.

        Raises:
            Left: this process does not lead; ``join_ranks`` catches it.
        """
        if not self.leads:
            raise Left


_current = Ranks()


def current_ranks() -> Ranks:
    """The processes that run this command together; one, unless it was launched in several."""
    return _current


def is_launched() -> bool:
    """Whether this process is one of several of a launch."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def join_ranks(share_model: bool = False) -> Iterator[Ranks]:
    """Run with the other processes of the launch inside the block; ``Left`` ends the block quietly.

    Args:
        share_model: whether they hold one model together.
    """
    global _current
    from torch import distributed

    store, rank, size = next(iter(distributed.rendezvous("env://", timeout=FOREVER)))
    _current = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store, share_model)
    try:
        with contextlib.suppress(Left):
            yield _current
        # The store may be the leader's, which has to go last.
        _current.gather_last()
        if distributed.is_initialized():
            distributed.destroy_process_group()
    finally:
        _current = Ranks()


def deal_out(weights: Sequence[float], hands: int) -> list[list[int]]:
    """Numbers of pieces for each of some workers, so that all have about the same weight; each in ascending order.

    The heaviest piece that is left goes to the worker with the least (Graham's rule of the longest processing time,
    at most 4/3 of the best deal).

    Args:
        weights: of every piece.
        hands: number of workers.
    """
    loads = [(0.0, hand) for hand in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for piece in sorted(range(len(weights)), key=lambda at: -weights[at]):
        load, hand = heapq.heappop(loads)
        dealt[hand].append(piece)
        heapq.heappush(loads, (load + weights[piece], hand))
    return [sorted(pieces) for pieces in dealt]
