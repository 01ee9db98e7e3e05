import pytest
import torch

from probing.metrics.likelihood import dataset_rank_surprisal_ratio, rank_surprisal_ratio, segment_totals


def test_the_published_simulation():
    """arXiv 2601.14249: a student that is .8 of one Zipf(2.3) over 50 tokens and .2 of another.

    Token-level averages of probability, surprisal, rank and ratio for text of the first and of the second. How the
    tokens of the two are ordered against each other is not published; a rotation by 14 gives every number but the
    ranks to its two decimals, and those to .05.
    """
    zipf = torch.arange(1, 51, dtype=torch.float64) ** -2.3
    zipf /= zipf.sum()
    other = zipf.roll(14)
    student = 0.8 * zipf + 0.2 * other
    ranks, surprisals = 1 + (student > student[:, None]).sum(dim=1), -student.log()
    ratios = rank_surprisal_ratio(ranks, surprisals, torch.arange(51))
    published = {"first": (zipf, 0.41, 1.38, 2.49, 1.69), "second": (other, 0.10, 2.73, 4.31, 1.30)}
    for text, *expected in published.values():
        found = [float(text @ values) for values in (student, surprisals, ranks.double(), ratios)]
        assert [round(found[index], 2) for index in (0, 1, 3)] == [expected[index] for index in (0, 1, 3)]
        assert found[2] == pytest.approx(expected[2], abs=0.05)


def test_by_hand():
    ranks, surprisals = torch.tensor([1, 250, 3, 2]), torch.tensor([0.5, 4.5, 1.0, 1.0])
    assert rank_surprisal_ratio(ranks, surprisals) == pytest.approx((1 + 100 + 3 + 2) / 7.0)
    assert rank_surprisal_ratio(ranks, surprisals, clip=1000) == pytest.approx(256 / 7.0)
    by_segment = rank_surprisal_ratio(ranks, surprisals, torch.tensor([0, 2, 4]))
    assert by_segment.tolist() == pytest.approx([101 / 5, 5 / 2])


def test_of_a_dataset_it_is_a_ratio_of_means():
    mean_ranks, mean_surprisals = torch.tensor([1.0, 5.0]), torch.tensor([0.1, 2.0])
    assert dataset_rank_surprisal_ratio(mean_ranks, mean_surprisals) == pytest.approx(6 / 2.1)


def test_a_certain_response_has_no_finite_ratio():
    assert rank_surprisal_ratio(torch.tensor([1]), torch.tensor([0.0])) == float("inf")


def test_totals_keep_a_bad_value_to_its_segment():
    values = torch.tensor([1.0, float("nan"), 2.0, 3.0])
    totals = segment_totals(values, torch.tensor([0, 1, 2, 4]))
    assert totals[[0, 2]].tolist() == [1.0, 5.0]
    assert totals[1].isnan()


@pytest.mark.parametrize(
    ("ranks", "surprisals", "options", "message"),
    [
        ([1], [0.1, 0.2], {}, "1 ranks and 2 surprisals"),
        ([], [], {}, "0 ranks and 0 surprisals"),
        ([0], [0.1], {}, "at least 1"),
        ([1], [-0.1], {}, "at least 0"),
        ([1], [0.1], {"clip": 0}, "at least 1"),
        ([1, 2], [0.1, 0.2], {"offsets": torch.tensor([0, 1])}, "offsets must rise from 0 to 2"),
        ([1, 2], [0.1, 0.2], {"offsets": torch.tensor([0, 0, 2])}, "without empty segments"),
    ],
)
def test_bad_input(ranks, surprisals, options, message):
    with pytest.raises(ValueError, match=message):
        rank_surprisal_ratio(torch.tensor(ranks, dtype=torch.long), torch.tensor(surprisals), **options)
