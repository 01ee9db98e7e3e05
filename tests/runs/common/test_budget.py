import types

import pytest

from probing.engine.budget import TokenBudget
from probing.runs.common.budget import KeptBudget
from probing.store.manifest import claim


def streams(*tokens):
    return [types.SimpleNamespace(budget=TokenBudget(count, f"found {count}")) for count in tokens]


@pytest.fixture
def folder(tmp_path):
    with claim(tmp_path / "out", "score") as folder:
        folder.begin({}, {})
        yield folder


def test_a_run_begins_with_the_least_budget_that_its_streams_found(folder):
    both = streams(300, 200)
    KeptBudget(folder, both)
    assert [stream.budget for stream in both] == [TokenBudget(200, "found 200")] * 2
    assert both[0].budget is not both[1].budget  # each shrinks by itself
    assert folder.facts()["batch_tokens"] == {"tokens": 200, "reason": "found 200"}


def test_a_run_that_goes_on_takes_what_it_began_with_and_then_what_a_part_says(folder):
    KeptBudget(folder, streams(300))
    [stream] = again = streams(900)
    budget = KeptBudget(folder, again)
    assert stream.budget == TokenBudget(300, "found 300")
    budget.adopt({"batch_tokens": {"tokens": 150, "reason": "halved"}})
    assert stream.budget == TokenBudget(150, "halved")
    assert budget.facts() == {"tokens": 150, "reason": "halved"}
    assert folder.facts()["batch_tokens"]["tokens"] == 300


def test_what_shrank_in_one_stream_is_what_is_written_down(folder):
    both = streams(300, 300)
    budget = KeptBudget(folder, both)
    both[1].budget.shrink(300)
    assert budget.facts()["tokens"] == 150
