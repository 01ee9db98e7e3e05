"""The simulation of slow and preempted nodes has the times that closed forms give, where there are such."""

import math
from dataclasses import replace

import numpy as np
import pytest
import simulate_scale as simulation

from probing.ranks import deal_out

QUIET = simulation.Cluster(workers=8, slow=0.0, stalls=0.0, spread=0.0)
"""No node is slow or lost, and all blocks take what they should."""
WORK = 7200.0


def run(way, cluster, block_seconds, work=WORK, seed=0):
    """One run of a way."""
    world = simulation.draw_world(cluster, simulation.GIVEN_UP * work, np.random.default_rng([seed, 0]))
    return way(cluster, world, work, block_seconds, np.random.default_rng([seed, 1]))


@pytest.mark.parametrize("block_seconds", [60.0, 1800.0, 3000.0])
@pytest.mark.parametrize("way", simulation.WAYS)
def test_without_failures_and_with_equal_blocks_the_rounds_are_counted(way, block_seconds):
    """The last round is full where the blocks divide the work, and is there all the same where they do not."""
    cluster = QUIET
    found = run(simulation.WAYS[way], cluster, block_seconds)
    start = {"torchrun": cluster.start_together}.get(way, cluster.start)
    if way.startswith("array"):
        # The shards of a worker are cut by themselves, so that no worker waits for another.
        shards = 4 if "4" in way else 1
        wanted = WORK + shards * (start + math.ceil(WORK / shards / block_seconds) * cluster.block_cost)
    else:
        # 8 x 7,200 s in blocks of 3,000 s are 20 blocks, the last of 600 s, in 3 rounds.
        blocks = math.ceil(WORK * cluster.workers / block_seconds)
        rounds = math.ceil(blocks / cluster.workers)
        wanted = start + rounds * (block_seconds + cluster.block_cost)
    assert found.wall == pytest.approx(wanted)
    assert found.lost == 0


def test_one_worker_that_fails_takes_what_daly_says():
    """The expected time with failures of an exponential law; a failure costs the replacement and a new start.

    Daly 2006, "A higher order estimate of the optimum checkpoint interval": (1/rate + restart)(exp(rate length) - 1)
    for each segment, here with a start that may fail itself.
    """
    cluster = replace(QUIET, workers=1, cards=1, preemptions=4.0, block_cost=30.0, replace=100.0)
    rate, work = cluster.preemptions / 3600, 20 * 600.0
    start = (1 / rate + cluster.replace) * math.expm1(rate * cluster.start)
    block = (1 / rate + cluster.replace + start) * math.expm1(rate * (600 + cluster.block_cost))
    walls = np.array([run(simulation.run_array, cluster, 600.0, work, seed).wall for seed in range(400)])
    error = walls.std() / math.sqrt(len(walls))
    assert abs(walls.mean() - (start + 20 * block)) < 4 * error
    assert error < 0.02 * walls.mean()


def test_the_picked_size_is_near_the_one_of_young():
    """sqrt(2 cost / rate), Young 1974: 268 s here, while blocks four times as short or as long are worse."""
    cluster = replace(QUIET, workers=1, cards=1, preemptions=3.0, block_cost=30.0)
    best = math.sqrt(2 * cluster.block_cost * 3600 / cluster.preemptions)
    walls = [
        np.mean([run(simulation.run_array, cluster, size, 20 * best * 4, seed).wall for seed in range(60)])
        for size in (best / 4, best, best * 4)
    ]
    cells = [simulation.Cell(float(wall) / (80 * best), 0.0) for wall in walls]
    assert simulation.pick(cells) == [1]


def test_torchrun_starts_all_again_and_an_array_only_the_lost_node():
    """One preemption of one of two nodes, 1,000 s after the start, in the middle of the eleventh block."""
    cluster = replace(QUIET, workers=2, cards=1, block_cost=0.0)
    for way, start, lost in (
        (simulation.run_torchrun, cluster.start_together, 2 * 50.0),
        (simulation.run_array, cluster.start, 50.0),
    ):
        world = simulation.World(np.ones(2), [[start + 1050.0], []])
        found = way(cluster, world, WORK, 100.0, np.random.default_rng(0))
        assert found.lost == pytest.approx(lost)
        assert found.wall == pytest.approx(start + WORK + 50 + cluster.replace + start)


def test_a_pool_gives_the_lost_block_to_whoever_is_free():
    """Two workers, two blocks: the one that is done makes the lost block again, long before a new node is there."""
    cluster = replace(QUIET, workers=2, cards=1, block_cost=0.0, replace=5000.0)
    world = simulation.World(np.ones(2), [[cluster.start + 90.0], []])
    found = simulation.run_pool(cluster, world, 100.0, 100.0, np.random.default_rng(0))
    assert (found.wall, found.lost) == pytest.approx((cluster.start + 200, 90))
    # One that waited already begins when the block is lost.
    world = simulation.World(np.array([2.0, 1.0]), [[cluster.start + 150.0], []])
    found = simulation.run_pool(cluster, world, 100.0, 100.0, np.random.default_rng(0))
    assert (found.wall, found.lost) == pytest.approx((cluster.start + 250, 150))


def test_a_slow_node_holds_up_a_static_deal_and_a_pool_by_one_block_at_most():
    """The bound of a list schedule: the mean load and the longest block."""
    cluster = replace(QUIET, workers=16, cards=8, block_cost=0.0)
    world = simulation.World(np.array([1.0, 2.0]), [[], []])
    static = simulation.run_torchrun(cluster, world, WORK, 60.0, np.random.default_rng(0))
    assert static.wall == pytest.approx(cluster.start_together + 2 * WORK)
    pool = simulation.run_pool(cluster, world, WORK, 60.0, np.random.default_rng(0))
    speed = 8 * 1 + 8 / 2
    assert WORK * 16 / speed <= pool.wall - cluster.start <= WORK * 16 / speed + 2 * 60


def test_a_run_whose_start_takes_longer_than_nodes_live_is_given_up():
    """512 nodes of an hour each lose one every 7 s, and a start takes over a minute."""
    cluster = replace(QUIET, workers=512, cards=1, preemptions=1.0)
    assert run(simulation.run_torchrun, cluster, 60.0, 600.0).wall == math.inf
    cell = simulation.simulate(simulation.run_torchrun, cluster, 1.0, 600.0, runs=1)
    assert cell.over_ideal == math.inf
    assert simulation.pick([cell, cell]) == []
    assert simulation.spell_pick([cell], [60.0]) == "never ends"


def test_blocks_are_dealt_about_as_well_as_the_command_deals_them():
    """All blocks once; no worker has a tenth of a block more than ``deal_out`` gives, but for what no deal can even."""
    weights = np.random.default_rng(0).uniform(1, 3, 1000)
    hands = simulation.deal_blocks(weights, 8)
    assert sorted(hands.ravel().tolist()) == list(range(1000))
    theirs = max(weights[hand].sum() for hand in deal_out(weights.tolist(), 8))
    assert max(weights[hand].sum() for hand in hands) <= theirs + 0.2
    few = simulation.deal_blocks(weights[:11], 8)
    assert sorted(few[few >= 0].tolist()) == list(range(11))


def test_a_worker_that_is_lost_while_it_starts_waits_for_another_node():
    """The first start is lost after 50 s, the second is not."""
    assert simulation.start_worker([50.0, 400.0], 0.0, 90.0, 120.0) == 50 + 120 + 90


def test_stalls_and_blocks_have_the_means_that_they_should_have():
    """Of a Pareto law with exponent 3, which has a variance: mean 1.5 times the least."""
    cluster = replace(QUIET, stalls=2.0, tail=3.0, spread=0.7, longest=math.inf)
    blocks, stalls = simulation.draw_blocks(cluster, 3e7, 300.0, np.random.default_rng(0))
    assert blocks.sum() == pytest.approx(3e7, rel=1e-3)
    assert blocks.std() == pytest.approx(0.7 / math.sqrt(30_000) * 300, rel=0.02)
    assert stalls.sum() == pytest.approx(2 / 3600 * 3e7 * 1.5 * cluster.stall, rel=0.05)


def test_the_same_seed_gives_the_same_numbers_and_the_table_names_every_way(capsys, monkeypatch):
    """The whole program in small."""
    monkeypatch.setattr(simulation, "WORKERS", (8,))
    monkeypatch.setattr(simulation, "BLOCK_SECONDS", (900.0, 3600.0))
    monkeypatch.setattr(simulation, "RUNS", {8: 3})
    monkeypatch.setattr("sys.argv", ["simulate_scale.py", "--all", "--cold", "600"])
    simulation.main()
    first = capsys.readouterr().out
    simulation.main()
    assert capsys.readouterr().out == first
    assert all(name in first for name in simulation.WAYS)
    assert "| 8 | 0.2 |" in first
    assert "| 15 min |" in first
