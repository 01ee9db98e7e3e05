"""Several processes of one launch: what they tell one another, and how they share the parts of a job."""

import threading
import time

import pytest
from torch.distributed import HashStore

from probing import ranks
from probing.ranks import Left, Ranks, deal_out


@pytest.fixture
def together():
    """Run a function in a thread for each of some ranks, which share a store; returns what they answer, or raise."""

    def run(function, size=3, **shared):
        store, found = HashStore(), [None] * size

        def call(rank):
            try:
                found[rank] = function(Ranks(rank, size, rank, store, **shared))
            except BaseException as error:  # noqa: BLE001 - what a rank raises is what is looked at
                found[rank] = error

        threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return found

    return run


def test_one_process_waits_for_nobody():
    alone = Ranks()
    assert alone.leads
    assert alone.share(lambda: {"a": 1}) == {"a": 1}
    alone.announce_begun()
    alone.wait_for_turn()
    alone.gather()
    alone.gather_last()
    alone.leave()


def test_what_the_leader_makes_all_have(together):
    made = []

    def share(own):
        return [own.share(lambda: made.append(own.rank) or [own.rank, "x"]), own.share(lambda: own.rank + 5)]

    assert together(share) == [[[0, "x"], 5]] * 3
    assert made == [0]


def test_the_others_begin_after_the_leader(together):
    order, lock = [], threading.Lock()

    def begin(own):
        own.wait_for_turn()
        with lock:
            order.append(own.rank)
        own.announce_begun()

    together(begin)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("loads", [True, False])
def test_where_they_share_a_model_the_others_begin_when_the_leader_has_checked_its_inputs(loads, together, monkeypatch):
    from torch import distributed

    order, groups = [], []
    monkeypatch.setattr(distributed, "init_process_group", lambda *given, **named: groups.append(named["rank"]))

    def begin(own):
        own.wait_for_turn()
        order.append(own.rank)
        # A run that is finished already loads nothing.
        own.open_group("gloo") if loads else own.announce_begun()

    assert together(begin, share_model=True) == [None] * 3
    assert order[0] == 0
    assert sorted(groups) == ([0, 1, 2] if loads else [])


@pytest.mark.parametrize("share_model", [True, False])
def test_the_leader_goes_first_where_they_share_a_model(share_model, together):
    order = []

    def go(own):
        with own.leader_first():
            if own.leads:
                time.sleep(0.2)
            order.append(own.rank)

    assert together(go, share_model=share_model) == [None] * 3
    assert order.index(0) == (0 if share_model else 2)


def test_all_wait_until_all_have_come(together):
    came, seen = [], {}

    def gather(own):
        came.append(own.rank)
        own.gather()
        seen[own.rank] = len(came)
        own.gather()

    assert together(gather) == [None] * 3
    assert seen == {0: 3, 1: 3, 2: 3}


def test_only_the_leader_stays(together):
    found = together(lambda own: own.leave())
    assert found[0] is None
    assert all(isinstance(error, Left) for error in found[1:])


def test_pieces_are_dealt_out_by_their_weights():
    assert deal_out([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert deal_out([], 3) == [[], [], []]
    assert deal_out([2.0], 3) == [[0], [], []]
    weights = [float(n % 7 + 1) for n in range(40)]
    dealt = deal_out(weights, 4)
    assert sorted(number for hand in dealt for number in hand) == list(range(40))
    loads = [sum(weights[number] for number in hand) for hand in dealt]
    assert max(loads) <= 4 / 3 * sum(weights) / 4


def test_a_launch_is_told_by_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not ranks.is_launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not ranks.is_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.is_launched()
