import threading

import numpy as np
import pytest
import torch
from harness import damage_end
from torch.distributed import HashStore

from probing import ranks
from probing.errors import StoreCorrupt
from probing.ranks import Ranks
from probing.report.progress import Progress
from probing.runs.common import layers
from probing.runs.common.layers import complete_layers, read_layer_arrays
from probing.runs.common.makers import make_one_after_another, make_several_at_once, make_with_next_prepared
from probing.runs.common.parts import Spread, complete_parts

PLACES = [f"resid_post:{layer}" for layer in range(5)]


def arrays_of(place):
    return {"layer": np.array([float(place.partition(":")[2])])}


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_every_part_is_made_once_and_known_again(tmp_path, at_once):
    made = []

    def make(place, report):
        made.append(place)
        report(1.0)
        return arrays_of(place)

    complete_layers(tmp_path, PLACES[:2], make, "reading", at_once)
    complete_layers(tmp_path, PLACES, make, "reading", at_once)
    assert sorted(made) == PLACES
    assert [float(read_layer_arrays(tmp_path, number)["layer"][0]) for number in range(5)] == [0, 1, 2, 3, 4]


def test_parts_are_made_at_once_by_a_thread_each_in_which_torch_has_no_others(tmp_path):
    meet, counts = threading.Barrier(2, timeout=30), []

    def make(place, report):
        meet.wait()
        counts.append(torch.get_num_threads())
        return arrays_of(place)

    complete_layers(tmp_path, PLACES[:4], make, "reading", 2)
    assert counts == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_part_that_fails_stops_those_beside_it_and_keeps_those_before(tmp_path, error):
    """The part that is being made is told when it next reports, and no other one is begun."""
    begun, stopped = [], []

    def make(place, report):
        begun.append(place)
        if place == PLACES[1]:
            while len(begun) < 3:
                pass
            raise error("broken")
        if place == PLACES[2]:
            try:
                while True:
                    report(0.0)
            finally:
                stopped.append(place)
        return arrays_of(place)

    with pytest.raises(error, match="broken"):
        complete_layers(tmp_path, PLACES, make, "reading", 2)
    assert stopped == [PLACES[2]]
    assert begun == PLACES[:3]
    remade = []
    complete_layers(tmp_path, PLACES[:3], lambda place, report: remade.append(place) or arrays_of(place), "reading")
    assert remade == PLACES[1:3]


WAYS = {
    "in order": lambda make: make_one_after_another(make),
    "next prepared": lambda make: make_with_next_prepared(
        lambda number: number, lambda number, _, report: make(number, report)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_part_is_written_and_adopted_before_the_next_one_is_made(way):
    events = []

    def make(number, report):
        events.append(("make", number))
        return 10 * number

    def write(number, made):
        events.append(("write", number))
        return made + 1

    known = [None, 7, None]
    adopt = lambda part: events.append(("adopt", part))  # noqa: E731
    assert complete_parts(known, WAYS[way](make), write, Progress(3), adopt) == [1, 7, 21]
    made = [("make", 0), ("write", 0), ("adopt", 1), ("adopt", 7), ("make", 2), ("write", 2), ("adopt", 21)]
    assert events == made


@pytest.mark.parametrize("way", [*WAYS, "at once"])
def test_an_interrupt_while_a_part_is_written_ends_all_threads(way):
    before, threads = threading.active_count(), torch.get_num_threads()

    def write(number, made):
        raise KeyboardInterrupt

    maker = WAYS[way] if way in WAYS else lambda make: make_several_at_once(make, 2)
    with pytest.raises(KeyboardInterrupt) as caught:  # its traceback keeps every frame alive
        complete_parts([None] * 4, maker(lambda number, report: number), write, Progress(4))
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads
    assert caught.value is not None


def test_pieces_are_saved_after_some_seconds_and_known_again(tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "SAVED_SECONDS", 3600.0)
    pieces = layers.Pieces(tmp_path / "p")
    pieces.put("a", {"x": np.arange(3.0)})
    assert not (tmp_path / "p").exists()
    monkeypatch.setattr(layers, "SAVED_SECONDS", 0.0)
    pieces.within("b").put("c/d", {"y": np.array([np.nan, 1.0])})
    again = layers.Pieces(tmp_path / "p")
    assert again.find("a")["x"].tolist() == [0, 1, 2]
    assert again.within("b").find("c/d")["y"].tobytes() == np.array([np.nan, 1.0]).tobytes()
    assert again.find("z") is None
    again.put("z", {"x": np.ones(1)})
    # What follows a damaged file is made again, too.
    damage_end(tmp_path / "p" / "000000.safetensors")
    broken = layers.Pieces(tmp_path / "p")
    assert broken.find("a") is broken.find("z") is None
    broken.put("a", {"x": np.ones(1)})
    assert layers.Pieces(tmp_path / "p").find("a")["x"].tolist() == [1]
    assert layers.Pieces().complete("a", lambda: {"x": np.ones(1)})["x"].tolist() == [1]


def test_pieces_are_not_written_through_a_link(tmp_path):
    (tmp_path / "p").symlink_to(tmp_path)
    with pytest.raises(StoreCorrupt, match="is a link"):
        layers.Pieces(tmp_path / "p")


@pytest.fixture
def follower(monkeypatch):
    """This process is the second of two that hold one model; the leader has the first of two parts, and makes none."""
    store = HashStore()
    store.set("shared/1", "[true, false]")
    monkeypatch.setattr(ranks, "_current", Ranks(1, 2, 1, store, share_model=True))
    return store


def complete_two(known, find):
    """Complete two parts, of which none may be written here."""
    make = make_one_after_another(lambda number, report: f"made {number}")
    write = lambda number, made: pytest.fail(f"{made} was written")  # noqa: E731
    return complete_parts(known, make, write, Progress(2, 0), spread=Spread(find, lambda: [1.0, 1.0]))


def test_a_part_that_only_the_leader_sees_is_an_error(follower):
    with pytest.raises(StoreCorrupt, match="part 0 of the run is not there for process 1 of the launch"):
        complete_two([None, None], lambda number: None)


def test_of_processes_that_hold_one_model_the_leader_writes_what_all_make(follower):
    # All have come; and the leader has written the second part.
    for number in (2, 3):
        follower.set(f"shared/{number}", "null")
    assert complete_two(["kept", None], lambda number: f"found {number}") == ["kept", "found 1"]
    # What the leader has to make is made here, too, also where this process sees a part.
    follower.set("shared/4", "[false, false]")
    for number in (5, 6, 7):
        follower.set(f"shared/{number}", "null")
    assert complete_two(["kept", None], lambda number: f"found {number}") == ["found 0", "found 1"]
