import pytest

from probing.data.lazy import LazySequence, chain, make_in_blocks, pick


def test_items_are_made_when_they_are_asked_for():
    made = []
    items = LazySequence(5, lambda number: made.append(number) or number * 10)
    assert (len(items), made) == (5, [])
    assert (items[1], items[-1], items[1:4], list(items)) == (10, 40, [10, 20, 30], [0, 10, 20, 30, 40])
    assert made == [1, 4, 1, 2, 3, 0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        items[5]


def test_blocks_are_made_once_where_items_are_read_in_order():
    made = []
    items = make_in_blocks(7, lambda start, stop: made.append((start, stop)) or range(start, stop), size=3)
    assert list(items) == [*range(7)]
    assert made == [(0, 3), (3, 6), (6, 7)]
    assert (items[0], items[6]) == (0, 6)


def test_sequences_are_picked_from_and_chained():
    lazy = LazySequence(4, lambda number: number)
    for items in (lazy, [*range(4)]):
        assert list(pick(items, [3, 0, 0])) == [3, 0, 0]
        assert list(chain([items, [7, 8], items, []])) == [0, 1, 2, 3, 7, 8, 0, 1, 2, 3]
    assert isinstance(pick(lazy, [1]), LazySequence)
    assert isinstance(chain([[1], [2]]), list)
