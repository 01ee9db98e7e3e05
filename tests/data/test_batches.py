import itertools

from hypothesis import given
from hypothesis import strategies as st

from probing.data.batches import longest_first, next_batch, padded_length

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=60)


def batches(lengths, budget):
    order, result = longest_first(lengths), []
    while order:
        rows = next_batch(order, lengths, budget)
        result.append(list(rows))
        order = order[len(rows) :]
    return result


@given(LENGTHS, st.integers(1, 400))
def test_every_row_once_and_within_the_budget(lengths, budget):
    made = batches(lengths, budget)
    assert sorted(row for rows in made for row in rows) == list(range(len(lengths)))
    for rows in made:
        assert len({lengths[row] for row in rows}) == 1
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= budget
    assert [lengths[rows[0]] for rows in made] == sorted((lengths[rows[0]] for rows in made), reverse=True)


@given(LENGTHS, st.integers(1, 400))
def test_batches_are_as_full_as_the_budget_allows(lengths, budget):
    made = batches(lengths, budget)
    for rows, following in itertools.pairwise(made):
        length = lengths[rows[0]]
        assert lengths[following[0]] < length or (len(rows) + 1) * length > budget


@given(st.integers(1, 5000), st.none() | st.integers(1, 5000))
def test_padding_is_little_and_never_past_the_limit(length, limit):
    padded = padded_length(length, limit)
    assert length <= padded < length + 16
    assert limit is None or padded <= max(limit, length)
    assert padded % 16 == 0 or padded == max(limit, length)
