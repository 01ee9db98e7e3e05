import numpy as np
import pytest
import torch
from planted import coins, forms_of

from probing.probes import closed_form
from probing.probes.ccs_states import centers_of
from probing.probes.closed_form import VincWeights, crc_direction, crc_directions, vinc_direction, vinc_directions


def sides(states):
    a1, a0, n1, n0 = states.double()
    yes, no = torch.cat([a1, n1]), torch.cat([a0, n0])
    return yes - yes.mean(dim=0), no - no.mean(dim=0), yes.mean(dim=0) - no.mean(dim=0)


@pytest.fixture(params=[8, 24, 60], ids="width {}".format)
def planted(request):
    return sides(forms_of(np.where(coins(40), 1, -1), strength=1.0, width=request.param))


def cosine(left, right):
    return abs(float(torch.nn.functional.cosine_similarity(left, right, dim=0)))


def test_the_leading_contrast(planted):
    yes, no, _ = planted
    contrast = (yes - no).numpy()
    _, _, rows = np.linalg.svd(contrast - contrast.mean(axis=0))
    found = crc_direction(yes, no)
    assert cosine(found, torch.from_numpy(rows[0])) > 1 - 1e-8
    assert float(found.norm()) == pytest.approx(1)
    assert cosine(found, torch.eye(yes.shape[1], dtype=torch.float64)[0]) > 0.9  # where truth was planted


def dumb_vinc(yes, no, label, v, w):
    """The matrix by sums over claims."""
    width, half = yes.shape[1], len(yes) // 2
    unit = label / label.norm()
    claims, denials = [], []
    for i in range(half):
        a1, n1, a0, n0 = (x - (x @ unit) * unit for x in (yes[i], yes[half + i], no[i], no[half + i]))
        claims.append((a1, n0))
        denials.append((n1, a0))
    means = [[(one + two) / 2 for one, two in kind] for kind in (claims, denials)]
    centres = [sum(kind) / half for kind in means]
    between = within = crossed = torch.zeros(width, width, dtype=torch.float64)
    for kind, pairs in enumerate((claims, denials)):
        for i, ways in enumerate(pairs):
            away = means[kind][i] - centres[kind]
            between = between + torch.outer(away, away) / (2 * half)
            other = means[1 - kind][i] - centres[1 - kind]
            crossed = crossed + torch.outer(away, other) / (2 * half)
            for way in ways:
                apart = way - means[kind][i]
                within = within + torch.outer(apart, apart) / (4 * half)
    return v * between - (1 - w) * within - w * crossed


@pytest.mark.parametrize(("v", "w"), [(0.0, 0.5), (1.0, 0.2), (0.0, 1.0)])
def test_vinc_against_sums(planted, v, w):
    yes, no, label = planted
    matrix = dumb_vinc(yes, no, label, v, w)
    values, vectors = torch.linalg.eigh(matrix)
    unit = label / label.norm()
    rows = [at for at in reversed(range(len(values))) if abs(float(vectors[:, at] @ unit)) < 0.5]
    found = vinc_direction(yes, no, label, VincWeights(v, w))
    assert cosine(found, vectors[:, rows[0]]) > 1 - 1e-6
    assert abs(float(found @ label)) < 1e-6


def test_the_direction_of_yes_and_no_is_projected_out():
    states = forms_of(np.where(coins(40), 1, -1), strength=1.0)
    states[[0, 2], :, 0] += 5.0  # "yes" lies along truth itself
    yes, no, label = sides(states)
    assert abs(float(vinc_direction(yes, no, label) @ label)) < 1e-6


def test_where_no_eigenvalue_is_positive_the_direction_of_yes_and_no_is_still_left_out():
    """Claim and denial agree in all but noise: each covariance pulls down, and what was projected out would be 0."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(40, 24, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 40, 24, generator=generator, dtype=torch.float64) / 5
    a1, a0, n1, n0 = shared + noise
    a1, n1 = (side + torch.eye(24, dtype=torch.float64)[5] for side in (a1, n1))  # "yes" is another word
    yes, no, label = sides(torch.stack([a1, a0, n1, n0]))
    matrix, unit = dumb_vinc(yes, no, label, 0.0, 0.5), label / label.norm()
    values, vectors = torch.linalg.eigh(matrix)
    assert float(values[-2]) < -1e-4
    assert abs(float(vectors[:, -1] @ unit)) > 0.999  # the leading one, of value 0, is what was projected out
    found = vinc_direction(yes, no, label)
    assert abs(float(found @ unit)) < 1e-8
    assert cosine(found, vectors[:, -2]) > 1 - 1e-12


def test_no_direction_in_which_no_row_differs_is_found():
    """More dimensions than rows, and no eigenvalue above 0: the least negative one is taken, not one of those at 0."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(10, 200, generator=generator, dtype=torch.float64)
    way = torch.randn(10, 200, generator=generator, dtype=torch.float64) / 5
    a1, n0, n1, a0 = shared + way, shared - way, shared + way, shared - way  # claims and denials have the same means
    a1, n1 = (side + 3 * torch.eye(200, dtype=torch.float64)[5] for side in (a1, n1))
    yes, no, label = sides(torch.stack([a1, a0, n1, n0]))
    values, vectors = torch.linalg.eigh(dumb_vinc(yes, no, label, 0.0, 0.5))
    below = int((values < -1e-9).sum())
    found = vinc_direction(yes, no, label)
    assert float((yes @ found).std()) > 0.05
    assert cosine(found, vectors[:, below - 1]) > 1 - 1e-9
    assert abs(float(found @ label / label.norm())) < 1e-9


@pytest.fixture
def splits():
    """States about an origin, centres of three splits, and their rows; no split has all pairs."""
    states = forms_of(np.where(coins(40), 1, -1), strength=1.0, width=24).double()
    a1, a0, n1, n0 = states
    both = torch.stack([torch.cat([a1, n1]), torch.cat([a0, n0])])
    pairs = torch.arange(40)[:, None] % 4 != torch.tensor([0, 1, 3])
    train = torch.cat([pairs, pairs])
    return both, centers_of(both, train), train


def test_every_split_is_as_if_alone(splits):
    """To 1e-6, the directions of all splits at once and those of the whole matrices of each, centred beforehand."""
    states, centers, train = splits
    means = torch.stack([states[:, kept].mean(dim=1) for kept in train.T], dim=1)
    labels = means[0] - means[1]
    found = crc_directions(states, train), vinc_directions(states, centers, train, labels)
    for split, kept in enumerate(train.T):
        yes, no = (states[form, kept] - centers[form, split] for form in (0, 1))
        contrast = yes - no
        crc = torch.linalg.eigh((contrast - contrast.mean(dim=0)).T.cov(correction=0)).eigenvectors[:, -1]
        _, vectors = torch.linalg.eigh(dumb_vinc(yes, no, labels[split], 0.0, 0.5))
        vinc = vectors[:, [at for at in range(24) if abs(float(vectors[:, at] @ labels[split])) < 1e-6][-1]]
        for directions, expected in zip(found, (crc, vinc), strict=True):
            own = directions[:, split]
            assert float((own - expected * torch.sign(own @ expected)).norm()) < 1e-6
            assert float(own[own.abs().argmax()]) > 0
    assert cosine(found[0][:, 0], found[0][:, 1]) < 1 - 1e-6  # and they differ


def test_eigenvalues_that_are_all_zero_do_not_take_forever():
    """No two states differ but along yes and no: whatever comes out, it comes out."""
    yes = torch.zeros(40, 50, dtype=torch.float64)
    found = vinc_direction(yes, yes, torch.eye(50, dtype=torch.float64)[0])
    assert torch.isfinite(found).all()
    assert float(found.norm()) == pytest.approx(1)


def test_an_iteration_that_does_not_end_is_told_and_the_whole_matrix_decomposed(planted, monkeypatch, caplog):
    yes, no, label = planted
    expected = crc_direction(yes, no), vinc_direction(yes, no, label)
    assert not caplog.records
    monkeypatch.setattr(closed_form, "STEPS", 2)
    found = crc_direction(yes, no), vinc_direction(yes, no, label)
    assert "2 Lanczos steps leave a residual of" in caplog.text
    for own, whole in zip(expected, found, strict=True):
        assert torch.allclose(own, whole, atol=1e-6)


def test_the_sign_is_fixed(planted):
    yes, no, label = planted
    assert torch.equal(crc_direction(yes, no), crc_direction(no, yes))
    assert torch.equal(vinc_direction(yes, no, label), vinc_direction(yes, no, label))
