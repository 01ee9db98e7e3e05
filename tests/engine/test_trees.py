import itertools

from hypothesis import given
from hypothesis import strategies as st

from probing.engine.trees import (
    LEAST_PACKED,
    LEAST_SHARED,
    Segment,
    count_fitting,
    pack_trees,
    plant,
    split_tree,
    stack_rows,
)

# Few different tokens, so that rows begin alike by accident as well.
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(1, 2), min_size=1, max_size=20)), min_size=1, max_size=12
)


def segments_of(rows):
    segments = []
    for prompt, own in rows:
        ids = [7] * prompt + own
        start = len(ids) // 2
        segments.append(Segment(ids, start, max(start + 1, len(ids) - prompt % 2), prompt))
    return segments


def lengths_of(segments):
    return [segment.stop for segment in segments]


def batches(trees, budget, alike):
    made = []
    while trees:
        count = count_fitting(trees, budget, alike)
        made.append(trees[:count])
        trees = trees[count:]
    return made


@given(ROWS, st.booleans(), st.integers(1, 200))
def test_every_row_is_in_one_batch_within_the_budget(rows, sharing, budget):
    segments = segments_of(rows)
    made = batches(plant(segments, lengths_of(segments), sharing), budget, alike=False)
    assert sorted(row for trees in made for tree in trees for row in tree.rows) == list(range(len(segments)))
    for trees, following in itertools.pairwise([*made, None]):
        tokens = sum(tree.tokens for tree in trees)
        assert len(trees) == 1 or tokens <= budget
        assert following is None or tokens + following[0].tokens > budget
    sizes = [tree.tokens for trees in made for tree in trees]
    assert sizes == sorted(sizes, reverse=True)


@given(ROWS, st.integers(1, 200))
def test_only_equal_lengths_are_stacked(rows, budget):
    segments = segments_of(rows)
    for trees in batches(plant(segments, lengths_of(segments), sharing=False), budget, alike=True):
        assert len({tree.tokens for tree in trees}) == 1


@given(ROWS)
def test_a_packed_batch_spells_every_row(rows):
    """Following a row's paths gives its ids and positions back, and what counts are its own positions."""
    segments = segments_of(rows)
    lengths = lengths_of(segments)
    trees = plant(segments, lengths, sharing=True)
    batch = pack_trees(trees, segments, lengths)
    ids, positions = batch.ids[0].tolist(), batch.positions[0].tolist()
    assert [path.start for path in batch.paths[1:]] == [path.stop for path in batch.paths[:-1]]
    assert batch.paths[-1].stop == len(ids) >= LEAST_PACKED
    shared = {row: tree.shared for tree in trees for row in tree.rows}
    spelled = {}
    for path in batch.paths:
        whole = [*range(*path.before), *range(path.start, path.stop)]
        spelled[path.stop] = whole
        assert [positions[at] for at in whole] == list(range(len(whole)))
    for row, early, late in zip(batch.rows, batch.early, batch.late, strict=True):
        segment = segments[row]
        end = late[1] + (lengths[row] - segment.stop)
        whole = spelled[end]
        assert [ids[at] for at in whole] == segment.ids[: lengths[row]]
        assert [*range(*early), *range(*late)] == whole[segment.start : segment.stop]
        assert shared[row] == 0 or shared[row] >= LEAST_SHARED
    fill = max(0, LEAST_PACKED - sum(tree.tokens for tree in trees))
    assert len(ids) == sum(tree.tokens for tree in trees) + fill


def test_rows_share_their_prompt_and_a_row_alone_is_run_alike():
    segments = [Segment([5] * 9 + tail, 8, 9 + len(tail), 9) for tail in ([1, 2, 3], [1, 2, 4], [1, 9])]
    (tree,) = plant(segments, lengths_of(segments), sharing=True)
    assert (tree.shared, tree.tokens) == (9, 9 + 3 + 3 + 2)
    assert [part.tokens for part in split_tree(tree, lengths_of(segments))] == [12, 14]
    (alone,) = plant(segments[:1], [12], sharing=True)
    assert (alone.shared, alone.tokens) == (9, 12)
    assert len(pack_trees([alone], segments, [12]).paths) == 2 + 1  # and what fills up a small batch


def test_a_row_that_ends_with_its_prompt_is_run_in_one_piece():
    (tree,) = plant([Segment([5] * 9, 8, 9, 9)], [9], sharing=True)
    assert (tree.shared, tree.tokens) == (0, 9)


def test_stacked_rows_are_filled_up_with_a_token_of_their_own():
    segments = [Segment([5, 6, 7, 8], 1, 3), Segment([1, 2], 0, 2)]
    trees = plant(segments, [4, 4], sharing=False)
    batch = stack_rows(trees, segments, causal=True)
    assert batch.ids.tolist() == [[5, 6, 7, 7], [1, 2, 2, 2]]
    assert batch.late == ((1, 3), (4, 6))


def test_an_encoder_sees_what_comes_after():
    segments = [Segment([5, 6, 7, 8], 1, 3), Segment([1, 2, 3, 4], 0, 2)]
    batch = stack_rows(plant(segments, [4, 4], sharing=False), segments, causal=False)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
