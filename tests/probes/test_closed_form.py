import numpy as np
import pytest
import torch
from planted import coins, forms_of

from probing.probes import closed_form
from probing.probes.closed_form import VincWeights, crc_direction, vinc_direction


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


def test_eigenvalues_that_are_all_zero_do_not_take_forever(monkeypatch):
    """No two states differ but along yes and no: whatever comes out, it comes out."""
    yes = torch.zeros(40, 50, dtype=torch.float64)
    found = vinc_direction(yes, yes, torch.eye(50, dtype=torch.float64)[0])
    assert torch.isfinite(found).all()
    assert float(found.norm()) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(40, 50, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(closed_form, "PATIENCE", 1)
    monkeypatch.setattr(closed_form, "TOLERANCE", 1e-15)
    assert cosine(crc_direction(alike, -alike), crc_direction(2 * alike, -2 * alike)) > 1 - 1e-6  # the whole matrix


def test_the_sign_is_fixed(planted):
    yes, no, label = planted
    assert torch.equal(crc_direction(yes, no), crc_direction(no, yes))
    assert torch.equal(vinc_direction(yes, no, label), vinc_direction(yes, no, label))
