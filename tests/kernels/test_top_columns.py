import pytest
import torch

from probing.kernels.output_head import Unembedding, finish_logits
from probing.kernels.top_columns import TILE, tile_maxima, tiles_of, top_columns

WIDTHS = [1, 7, TILE - 1, TILE, TILE + 1, 5 * TILE, 9 * TILE + 3]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 3, 20])
@pytest.mark.parametrize("given", [False, True])
def test_the_same_as_topk(generator, width, count, given):
    values, count = torch.randn(30, width, generator=generator), min(count, width)
    expected = values.topk(count)
    found = top_columns(values, count, tile_maxima(values) if given else None)
    assert torch.equal(found[0], expected.values)
    assert torch.equal(found[1], expected.indices)


@pytest.mark.parametrize("count", [1, 4, 12])
def test_ties_give_the_same_values_and_different_columns(generator, count):
    """Few values, so that most tiles have the same maximum."""
    values = torch.randint(0, 3, (40, 9 * TILE + 3), generator=generator).float()
    best, columns = top_columns(values, count)
    assert torch.equal(best, values.topk(count).values)
    assert torch.equal(values.gather(1, columns), best)
    assert all(len(set(row.tolist())) == count for row in columns)


def test_all_of_the_best_in_one_tile_and_in_the_last_columns(generator):
    values = torch.randn(2, 4 * TILE + 3, generator=generator)
    values[0, 130:135], values[1, -3:] = torch.arange(10.0, 15), torch.tensor([9.0, 8, 7])
    found = top_columns(values, 3)[1]
    assert found.tolist() == [[134, 133, 132], [4 * TILE, 4 * TILE + 1, 4 * TILE + 2]]


def test_a_row_without_numbers_names_columns_that_there_are():
    values = torch.randn(3, 5 * TILE + 1)
    values[1], values[2] = float("nan"), -float("inf")
    best, columns = top_columns(values, 2)
    assert best.isfinite().tolist() == [[True, True], [False, False], [False, False]]
    assert bool((columns < values.shape[1]).all())


def test_what_a_head_does_comes_after_the_search(generator):
    values, width = torch.randn(20, 9 * TILE + 3, generator=generator) * 4, 9 * TILE + 3
    head = Unembedding(torch.empty(width, 1), torch.randn(width, generator=generator), 0.5, 3.0)
    done, uncapped = values.clone(), values.clone()
    finish_logits(done, head, head.bias)
    finish_logits(uncapped, Unembedding(head.weight, head.bias, head.scale), head.bias)
    best, columns = top_columns(values, 5, tile_maxima(uncapped), head)
    assert torch.equal(best, done.topk(5).values)
    assert torch.equal(done.gather(1, columns), best)


@pytest.mark.parametrize("width", WIDTHS)
def test_maxima(generator, width):
    values = torch.randn(4, width, generator=generator)
    found = tile_maxima(values)
    assert found.shape == (4, tiles_of(width))
    assert torch.equal(found, torch.stack([part.amax(dim=1) for part in values.split(TILE, dim=1)], dim=1))
