"""How long many workers take with slow nodes and preempted ones, by the size of their blocks: by simulation.

Workers make blocks of rows and save each as one file; a block that is not saved is made again. Three ways to share the
blocks are simulated: ``torchrun`` (dealt out by weight at the start; a lost node ends all, and the same command goes on
with the missing blocks), arrays (contiguous shards, each of which restarts by itself; one or four a worker), and a pool
such as Ray's (whoever is free takes the next block). Every figure is computed from the assumptions of ``Cluster``.

    $ OMP_NUM_THREADS=1 python scripts/simulate_scale.py             # the picked sizes of blocks
    $ OMP_NUM_THREADS=1 python scripts/simulate_scale.py --all       # the time and the lost work of every size
"""

import argparse
import functools
import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HOUR = 3600.0
BLOCK_SECONDS = (5.0, 15.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0)
WORKERS = (8, 64, 512)
PREEMPTIONS = (0.0, 0.02, 0.2)
GIVEN_UP = 20.0
"""A run that takes more than so many times the ideal time is taken never to end."""
FLAT = 0.01
"""Sizes of blocks whose time is within this share of the ideal time of the best are as good as the best."""
RUNS = {8: 48, 64: 16, 512: 4}
"""Runs of each kind, by the number of workers: what a minute allows."""


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines; durations in seconds.

    Attributes:
        workers: number of workers, one a card.
        cards: cards a node; a node is preempted as a whole.
        preemptions: preemptions of a node in an hour.
        replace: until another node is there.
        imports: until Python and the libraries are loaded.
        cold: reading the model from shared storage.
        warm: reading the model where another process of the node has just read it.
        trials: trying the fast ways on the model, and compiling.
        block_cost: for each block besides its rows: writing the file, and batches that are not full.
        slow: share of nodes that are slow.
        slowness: time of a slow node over that of another.
        stalls: stalls of a worker in an hour of work.
        stall: least duration of a stall; how much longer one lasts has a Pareto distribution.
        tail: exponent of that distribution; the mean is infinite from 1 downwards.
        longest: longest stall.
        pairs_per_second: pairs that a worker does in a second.
        spread: standard deviation of the tokens of a pair over their mean.
    """

    workers: int = 8
    cards: int = 8
    preemptions: float = 0.0
    replace: float = 120.0
    imports: float = 10.0
    cold: float = 60.0
    warm: float = 15.0
    trials: float = 20.0
    block_cost: float = 0.3
    slow: float = 0.03
    slowness: float = 1.5
    stalls: float = 0.1
    stall: float = 20.0
    tail: float = 1.5
    longest: float = 600.0
    pairs_per_second: float = 100.0
    spread: float = 0.7

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.workers // self.cards)

    @property
    def start(self) -> float:
        """Until a worker that starts by itself makes its first block."""
        return self.imports + self.cold + self.trials

    @property
    def start_together(self) -> float:
        """The same under torchrun: the leader reads the model, then the first of each other node, then the others."""
        several_nodes, several_cards = self.nodes > 1, min(self.cards, self.workers) > 1
        return self.start + self.cold * several_nodes + self.warm * several_cards


@dataclass(frozen=True)
class Run:
    """What became of one run.

    Attributes:
        wall: from the first start to the last block; infinite if it was given up.
        lost: work on blocks that were not saved, summed over the workers.
    """

    wall: float
    lost: float


@dataclass(frozen=True)
class World:
    """What happens to the nodes of one run.

    Attributes:
        slowness: time of each node over that of a usual one.
        failures: times at which each node is preempted, ascending.
    """

    slowness: Array
    failures: Sequence[list[float]]


def draw_world(cluster: Cluster, until: float, random: np.random.Generator) -> World:
    """Draw which nodes are slow, and when each is preempted until some time."""
    slowness = np.where(random.random(cluster.nodes) < cluster.slow, cluster.slowness, 1.0)
    return World(slowness, [list(_draw_failures(cluster, until, random)) for _ in range(cluster.nodes)])


def _draw_failures(cluster: Cluster, until: float, random: np.random.Generator) -> Iterator[float]:
    at = 0.0
    while cluster.preemptions > 0:
        at += random.exponential(HOUR / cluster.preemptions)
        if at > until:
            return
        yield at
        # A node that is not there cannot be preempted.
        at += cluster.replace


def draw_blocks(
    cluster: Cluster, work: float, block_seconds: float, random: np.random.Generator
) -> tuple[Array, Array]:
    """Cut work into blocks, the last of which may be shorter.

    Returns:
        Seconds that each block takes on a usual node, and the seconds that it stalls.
    """
    sizes = np.full(math.ceil(work / block_seconds - 1e-9), block_seconds)
    sizes[-1] = work - block_seconds * (len(sizes) - 1)
    spread = cluster.spread / np.sqrt(np.maximum(1.0, cluster.pairs_per_second * sizes))
    blocks = sizes * np.maximum(0.2, 1 + spread * random.standard_normal(len(sizes)))
    stalls = np.zeros(len(sizes))
    of_block = np.repeat(np.arange(len(sizes)), random.poisson(cluster.stalls / HOUR * blocks))
    lasting = cluster.stall * (1 - random.random(len(of_block))) ** (-1 / cluster.tail)
    np.add.at(stalls, of_block, np.minimum(lasting, cluster.longest))
    return blocks, stalls


def _next(failures: Sequence[float], at: float) -> float:
    """The next preemption after some time."""
    number = bisect_right(failures, at)
    return failures[number] if number < len(failures) else math.inf


def start_worker(failures: Sequence[float], at: float, start: float, delay: float) -> float:
    """When a worker that is started at some time makes its first block; its node may be lost before."""
    while (failure := _next(failures, at)) < at + start:
        at = failure + delay
    return at + start


def work_alone(cluster: Cluster, durations: Array, failures: Sequence[float], at: float) -> Run:
    """One worker that makes blocks one after the other from some time on; it is started again whenever it is lost.

    Args:
        cluster: the machines.
        durations: seconds of each block.
        failures: preemptions of its node.
        at: when it is started.
    """
    ends = np.concatenate([[0.0], np.cumsum(durations)])
    done, lost = 0, 0.0
    at = start_worker(failures, at, cluster.start, cluster.replace)
    while (failure := _next(failures, at)) < at + ends[-1] - ends[done]:
        saved = int(np.searchsorted(ends, ends[done] + failure - at, side="right")) - 1
        lost += failure - at - float(ends[saved] - ends[done])
        done, at = saved, start_worker(failures, failure + cluster.replace, cluster.start, cluster.replace)
    return Run(at + float(ends[-1] - ends[done]), lost)


def run_array(
    cluster: Cluster, world: World, work: float, block_seconds: float, random: np.random.Generator, shards: int = 1
) -> Run:
    """An array of so many shards a worker; whoever is free starts the next one."""
    free = [(0.0, worker) for worker in range(cluster.workers)]
    lost = 0.0
    for _ in range(cluster.workers * shards):
        at, worker = heapq.heappop(free)
        node = worker // cluster.cards
        blocks, stalls = draw_blocks(cluster, work / shards, block_seconds, random)
        durations = blocks * world.slowness[node] + stalls + cluster.block_cost
        made = work_alone(cluster, durations, world.failures[node], at)
        lost += made.lost
        heapq.heappush(free, (made.wall, worker))
    return _judge(max(free)[0], lost, work)


def _judge(wall: float, lost: float, work: float) -> Run:
    return Run(wall if wall <= GIVEN_UP * work else math.inf, lost)


def deal_blocks(weights: Array, hands: int) -> NDArray[np.int64]:
    """Numbers of blocks for each of some workers, of about the same weight: [hand, block], -1 where there is none.

    Heaviest first, to and fro; near what ``probing.ranks.deal_out`` deals, and quick for a million blocks.
    """
    order = np.argsort(-weights, kind="stable")
    dealt = np.full(-(-len(order) // hands) * hands, -1)
    dealt[: len(order)] = order
    rounds = dealt.reshape(-1, hands)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def run_torchrun(cluster: Cluster, world: World, work: float, block_seconds: float, random: np.random.Generator) -> Run:
    """All workers start together, each with its share; whenever a node is lost, all are started again."""
    blocks, stalls = draw_blocks(cluster, work * cluster.workers, block_seconds, random)
    slowness = world.slowness[np.arange(cluster.workers) // cluster.cards, None]
    missing, at, lost = np.arange(len(blocks)), 0.0, 0.0
    for failure in [*sorted(when for each in world.failures for when in each), math.inf]:
        if failure >= at:
            began = at + cluster.start_together
            dealt = deal_blocks(blocks[missing], cluster.workers)
            seconds = blocks[missing][dealt] * slowness + stalls[missing][dealt] + cluster.block_cost
            ends = began + np.cumsum(np.where(dealt < 0, 0.0, seconds), axis=1)
            if ends.max() <= failure:
                return _judge(float(ends.max()), lost, work)
            saved = (ends <= failure) & (dealt >= 0)
            if failure > began:
                last = np.where(saved, ends, began).max(axis=1)
                lost += float((failure - last)[ends[:, -1] > failure].sum())
            missing = np.delete(missing, dealt[saved])
        # Another node may be lost while one is replaced.
        at = max(at, failure + cluster.replace)
        if at > GIVEN_UP * work:
            break
    return Run(math.inf, lost)


def run_pool(cluster: Cluster, world: World, work: float, block_seconds: float, random: np.random.Generator) -> Run:
    """Whoever is free takes the next block; a lost block is the next one, and a lost worker is started again."""
    blocks, stalls = draw_blocks(cluster, work * cluster.workers, block_seconds, random)
    failures = [world.failures[worker // cluster.cards] for worker in range(cluster.workers)]
    slowness = [float(world.slowness[worker // cluster.cards]) for worker in range(cluster.workers)]
    plain, extra = blocks.tolist(), (stalls + cluster.block_cost).tolist()
    waiting = deque(range(len(plain)))

    def restart(worker: int, at: float) -> float:
        return start_worker(failures[worker], at, cluster.start, cluster.replace)

    # When something happens to a worker: it is free, or was lost together with this block.
    events: list[tuple[float, int, int]] = [(restart(worker, 0.0), worker, -1) for worker in range(cluster.workers)]
    heapq.heapify(events)
    idle: list[tuple[float, int]] = []
    wall = lost = 0.0
    while events:
        at, worker, block = events[0]
        if block >= 0:
            waiting.appendleft(block)
            heapq.heapreplace(events, (restart(worker, at + cluster.replace), worker, -1))
            if idle:
                since, other = idle.pop()
                failure = _next(failures[other], since)
                ready = at if failure > at else restart(other, failure + cluster.replace)
                heapq.heappush(events, (max(at, ready), other, -1))
        elif waiting:
            block = waiting.popleft()
            end = at + plain[block] * slowness[worker] + extra[block]
            failure = _next(failures[worker], at) if failures[worker] else math.inf
            if failure < end:
                lost += failure - at
                heapq.heapreplace(events, (failure, worker, block))
            else:
                wall = max(wall, end)
                heapq.heapreplace(events, (end, worker, -1))
        else:
            idle.append((at, worker))
            heapq.heappop(events)
    return _judge(wall, lost, work)


Way = Callable[[Cluster, World, float, float, np.random.Generator], Run]
WAYS: dict[str, Way] = {
    "torchrun": run_torchrun,
    "array, 1 shard a worker": run_array,
    "array, 4 shards a worker": functools.partial(run_array, shards=4),
    "pool (Ray)": run_pool,
}


@dataclass(frozen=True)
class Cell:
    """Means over runs of one kind.

    Attributes:
        over_ideal: wall time over the work of one worker; infinite where a run was given up.
        lost: lost work as a share of all work.
    """

    over_ideal: float
    lost: float


def simulate(way: Way, cluster: Cluster, hours: float, block_seconds: float, runs: int, seed: int = 0) -> Cell:
    """Runs in which a worker has half an hour less to half an hour more work than so many hours.

    The nodes of a run are the same for all ways and sizes of blocks.
    """
    # Spread evenly, so that no size of blocks divides the work by chance.
    works = (hours - 0.5 + (np.arange(runs) + 0.5) / runs) * HOUR
    made = []
    for at, work in enumerate(works.tolist()):
        world = draw_world(cluster, GIVEN_UP * work, np.random.default_rng([seed, at, 0]))
        made.append(way(cluster, world, work, block_seconds, np.random.default_rng([seed, at, 1])))
    ratios = np.array([run.wall for run in made]) / works
    lost = float(np.mean([run.lost / (work * cluster.workers) for run, work in zip(made, works, strict=True)]))
    if not np.isfinite(ratios).all():
        return Cell(math.inf, lost)
    return Cell(float(ratios.mean()), lost)


def pick(cells: Sequence[Cell]) -> list[int]:
    """Numbers of the sizes that are as good as the best; none where no run ends."""
    least = min(cell.over_ideal for cell in cells)
    return [at for at, cell in enumerate(cells) if cell.over_ideal <= least + FLAT and math.isfinite(least)]


def spell(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("h", HOUR), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def spell_pick(cells: Sequence[Cell], sizes: Sequence[float]) -> str:
    """The picked sizes, and the time that the best takes over the ideal."""
    picked = pick(cells)
    if not picked:
        return "never ends"
    low, high = (spell(sizes[at]) for at in (picked[0], picked[-1]))
    return f"{low if low == high else f'{low} - {high}'}: {min(cell.over_ideal for cell in cells):.2f}"


def print_all(cluster: Cluster, found: dict[str, list[Cell]]) -> None:
    """The time over the ideal, and the lost share of work, of every size of blocks."""
    print(f"\n{cluster.workers} workers, {cluster.preemptions:g} preemptions per node-hour\n")
    print(f"| a block | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for at, seconds in enumerate(BLOCK_SECONDS):
        cells = [cells[at] for cells in found.values()]
        shown = [f"{c.over_ideal:.2f}, {c.lost:.1%}" if math.isfinite(c.over_ideal) else "never ends" for c in cells]
        print(f"| {spell(seconds)} | {' | '.join(shown)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="also the time and the lost work of every size of blocks")
    parser.add_argument("--hours", type=float, default=2.0, help="work of one worker, at least 1")
    parser.add_argument("--seed", type=int, default=0)
    assumed = [entry for entry in fields(Cluster) if entry.name not in ("workers", "preemptions")]
    for entry in assumed:
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=type(entry.default), default=entry.default)
    given = parser.parse_args()
    if given.hours < 1:
        parser.error("--hours: at least 1")
    base = Cluster(**{entry.name: getattr(given, entry.name) for entry in assumed})
    lines = []
    for workers in WORKERS:
        for preemptions in PREEMPTIONS:
            cluster = replace(base, workers=workers, preemptions=preemptions)
            found = {
                name: [
                    simulate(way, cluster, given.hours, seconds, RUNS[workers], given.seed) for seconds in BLOCK_SECONDS
                ]
                for name, way in WAYS.items()
            }
            if given.all:
                print_all(cluster, found)
            picked = " | ".join(spell_pick(cells, BLOCK_SECONDS) for cells in found.values())
            lines.append(f"| {workers} | {preemptions:g} | {picked} |")
    print(f"\n| workers | preemptions per node-hour | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
