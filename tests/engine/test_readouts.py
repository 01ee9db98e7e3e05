import pytest
import torch

from probing.engine.attention import Layout, Pattern, _attend, use_packed_attention
from probing.engine.readouts import Spots, combine
from probing.engine.trees import Batch, Path


def batch(early, late):
    return Batch(tuple(range(len(late))), torch.zeros(1, 12, dtype=torch.long), None, (), early, late)


def test_states_of_a_row_that_lies_in_two_places():
    """Row 0 counts tokens 2, 3 of the shared part and 5, 6, 7 of its own; row 1 only 9, 10."""
    states = torch.arange(24.0).reshape(12, 2)
    spots = Spots(batch(((2, 4), (0, 0)), ((5, 8), (9, 11))))
    one, other = states[[2, 3, 5, 6, 7]], states[[9, 10]]
    expected = {
        "sum": [one.sum(0), other.sum(0)],
        "mean": [one.mean(0), other.mean(0)],
        "first": [one[0], other[0]],
        "last": [one[-1], other[-1]],
        "tokens": [one, other],
    }
    for pooling, rows in expected.items():
        found = spots.read(pooling, states)
        torch.testing.assert_close(found, torch.cat(rows) if pooling == "tokens" else torch.stack(rows))


def test_each_part_is_taken_times_its_own_factor_in_float32():
    parts = [torch.tensor([1.0, 256.0], dtype=torch.bfloat16), torch.tensor([3.0, 1.0], dtype=torch.bfloat16)]
    found = combine(parts, (2.0, 0.5))
    assert found.dtype == torch.float32
    assert found.tolist() == [3.5, 512.5]
    assert combine(parts[:1], (1.0,)) is parts[0]


class Attention(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (None, {}, "does not hand over what packed attention needs"),
        (torch.ones(1, 1, 4, 4), {}, "does not hand over what packed attention needs"),
        (Pattern(lambda b, h, q, k: k <= q), {"position_bias": torch.zeros(1)}, "uses position_bias"),
        (Pattern(lambda b, h, q, k: k <= q), {"dropout": 0.1}, "uses a cache or dropout"),
    ],
)
def test_attention_that_is_not_understood_is_not_computed(mask, options, message):
    states = torch.randn(1, 2, 4, 8)
    with use_packed_attention([], Layout((Path(0, 4, (0, 0)),))), pytest.raises(NotImplementedError, match=message):
        _attend(Attention(), states, states, states, mask, **options)
    with pytest.raises(NotImplementedError):  # outside of a packed pass
        _attend(Attention(), states, states, states, Pattern(lambda b, h, q, k: k <= q))
