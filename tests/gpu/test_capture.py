"""States at every place of a model, against the same on the CPU."""

import halves
import pytest
import tiny
import torch
from halves import assert_as_good_as_plain, twins

from probing import Capture, LanguageModel, Place, capture

LAYERS = 3
PLACES = [
    Place(kind, layer) for layer in range(LAYERS) for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
] + [Place("final_norm")]
TEXTS = [" ".join(halves.WORDS[: 2 + 2 * number]) for number in range(7)]


def states(language_model, pooling):
    found = capture(language_model, TEXTS, Capture(places=PLACES, pooling=pooling), batch_tokens=48)
    assert list(found.places) == PLACES
    return found.values


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "sum", "tokens"])
def test_all_places_in_float32(device, pooling):
    """Three layers of float32: 1e-4 of the largest state of a place, as two ways of running a model may differ."""
    expected = states(tiny.make_model("llama", **halves.SHAPE), pooling)
    moved = tiny.make_model("llama", **halves.SHAPE)
    found = states(LanguageModel(moved.model.to(device), moved.tokenizer), pooling).cpu()
    scale = expected.abs().amax(dim=(0, 2), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_all_places_in_bf16(device, pooling):
    half, exact = twins("cpu")
    found, plain, wide = (states(model, pooling) for model in (twins(device)[0], half, exact))
    for index, place in enumerate(PLACES):
        assert_as_good_as_plain(found[:, index], plain[:, index], wide[:, index], str(place))
