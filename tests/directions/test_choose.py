import json
from pathlib import Path

import numpy as np
import pytest

from probing.directions.choose import choose_direction, count_kept_layers

# Scores of every candidate and the published choice, of five models: pipeline/runs/*/select_direction and
# direction_metadata.json of https://github.com/andyrdt/refusal_direction (Apache-2.0), rounded to six digits.
PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_candidates.json").read_text())


def by_hand(bypass, induce, kl, layers):
    """All candidates in a list, thrown out one after the other."""
    left = []
    for index in np.ndindex(np.shape(bypass)):
        values = [np.asarray(table, dtype=float)[index] for table in (bypass, induce, kl)]
        if any(not np.isfinite(value) for value in values):
            continue
        if values[1] >= 0 and values[2] <= 0.1 and index[-1] < int(layers * 0.8):
            left.append((values[0], index))
    return min(left)[1] if left else None


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_tables_give_the_published_choice(model):
    table = PUBLISHED[model]
    choice = choose_direction(*(np.array(table[name], dtype=float) for name in ("bypass", "induce", "kl")))
    position, layer = choice.index
    assert [table["positions"][position], layer] == table["chosen"]


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_a_plain_loop(seed):
    generator = np.random.default_rng(seed)
    shape = (3, 10)
    bypass, induce = generator.normal(size=(2, *shape))
    kl = generator.exponential(0.15, size=shape)
    kl[0, 3] = np.nan
    assert choose_direction(bypass, induce, kl).index == by_hand(bypass, induce, kl, 10)


def test_every_candidate_has_its_reason():
    bypass = np.array([[-1.0, -9.0, -8.0, -7.0, -6.0]])
    induce = np.array([[1.0, -1.0, 1.0, 1.0, 1.0]])
    kl = np.array([[0.0, 0.0, 0.2, np.nan, 0.0]])
    choice = choose_direction(bypass, induce, kl)
    assert choice.index == (0, 0)
    assert choice.reasons.tolist() == [
        [
            "",
            "induces less than 0",
            "changes harmless answers by more than 0.1 nats",
            "a score is not finite",
            "the last layer",
        ]
    ]


def test_the_nearest_is_told_where_none_passes():
    bypass, induce = np.array([[-5.0, -3.0, -9.0]]), np.array([[-2.0, -0.1, 5.0]])
    choice = choose_direction(bypass, induce, np.array([[0.0, 0.0, 3.0]]), layers=10)
    assert (choice.index, choice.nearest) == (None, (0, 1))
    nothing = choose_direction([[np.nan]], [[0.0]], [[0.0]], layers=10)
    assert (nothing.index, nothing.nearest) == (None, None)


def test_the_number_of_kept_layers_is_as_published():
    assert [count_kept_layers(layers) for layers in (18, 24, 32, 35, 30, 5)] == [14, 19, 25, 28, 24, 4]


def test_shapes_and_limits_are_checked():
    with pytest.raises(ValueError, match="must be alike"):
        choose_direction([[1.0]], [[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="left out"):
        choose_direction([[1.0]], [[1.0]], [[1.0]], pruned=1.0)
    with pytest.raises(ValueError, match="of a model that has 1"):
        choose_direction([[1.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]], layers=1)
