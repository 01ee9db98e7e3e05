from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from probing.errors import SourceMismatch, StoreCorrupt
from probing.store.directions import check_model, open_direction, open_directions, save_direction, save_directions
from probing.types import Direction, Directions, Place, Source

SOURCE = Source("model", weights_sha256="a" * 64, config_sha256="b" * 64, tokenizer_sha256="c" * 64)
VECTOR = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(**other):
    values = {"vector": VECTOR, "place": Place("resid_pre", 3), "position": -2, "source": SOURCE} | other
    return Direction(**values)


@pytest.mark.parametrize(
    "direction",
    [
        make(),
        make(harmless_mean=2 * VECTOR, method="logistic", facts={"refusal_tokens": [1, 2]}),
        make(vector=torch.stack([VECTOR, VECTOR.flip(0)])),
    ],
    ids=["plain", "with a mean", "of rank 2"],
)
def test_what_was_saved_is_opened(tmp_path, direction):
    save_direction(tmp_path / "direction.safetensors", direction)
    opened = open_direction(tmp_path)
    assert torch.equal(opened.vector, direction.vector)
    assert (opened.harmless_mean is None) == (direction.harmless_mean is None)
    for name in ("place", "position", "source", "method", "facts", "rank"):
        assert getattr(opened, name) == getattr(direction, name)
    before = (tmp_path / "direction.safetensors").read_bytes()
    save_direction(tmp_path / "direction.safetensors", opened)
    assert (tmp_path / "direction.safetensors").read_bytes() == before


def test_many_are_opened_as_they_were_saved(tmp_path):
    vectors, means = torch.randn(2, 3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors[0, 1] = torch.nan
    places = tuple(Place("resid_pre", layer) for layer in range(3))
    made = Directions(vectors, means, 2 * means, places, (-2, -1), SOURCE, "logistic", {"prompts": 3})
    save_directions(tmp_path / "directions.safetensors", made)
    opened = open_directions(tmp_path)
    for name in ("vectors", "harmful_mean", "harmless_mean"):
        torch.testing.assert_close(getattr(opened, name), getattr(made, name), rtol=0, atol=0, equal_nan=True)
    for name in ("places", "positions", "source", "method", "facts"):
        assert getattr(opened, name) == getattr(made, name)
    assert torch.equal(opened.at("resid_pre:-1", -2).vector, vectors[2, 0])
    with pytest.raises(SourceMismatch, match="holds no direction of"):
        open_direction(tmp_path / "directions.safetensors")
    for place, position, said in (("resid_pre:7", -1, "no direction at"), ("resid_pre:1", -3, "no position -3")):
        with pytest.raises(ValueError, match=said):
            opened.at(place, position)


def test_flipped_bits_are_refused(tmp_path):
    path = tmp_path / "direction.safetensors"
    save_direction(path, make(harmless_mean=VECTOR))
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        at = int(torch.randint(len(content), (1,), generator=generator))
        changed = bytearray(content)
        changed[at] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        path.write_bytes(bytes(changed))
        try:
            opened = open_direction(path)
        except (StoreCorrupt, SourceMismatch):
            continue
        assert torch.equal(opened.vector, VECTOR)
        assert (opened.place, opened.position, opened.source) == (Place("resid_pre", 3), -2, SOURCE)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SourceMismatch, match="no such file"):
        open_direction(tmp_path / "none.safetensors")
    save_file({"vector": VECTOR}, tmp_path / "other.safetensors")
    with pytest.raises(SourceMismatch, match="holds no direction"):
        open_direction(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(StoreCorrupt, match="damaged"):
        open_direction(tmp_path / "text.safetensors")
    save_direction(tmp_path / "one.safetensors", make())
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "one.safetensors")
    with pytest.raises(StoreCorrupt, match="is a link"):
        open_direction(tmp_path / "link.safetensors")


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        (make(vector=VECTOR[:4]), "its width is 4, that of the model 8"),
        (make(place=Place("resid_pre", 12)), "resid_pre:12, and the model has 12 layers"),
        (make(source=replace(SOURCE, weights_sha256="d" * 64)), "weights_sha256 is dddddddddddd, of the model aaaa"),
        (make(source=replace(SOURCE, adapter_sha256="d" * 64)), "adapter_sha256"),
    ],
)
def test_a_direction_is_refused_on_another_model(direction, said):
    check_model(make(), SOURCE, 8, 12)
    with pytest.raises(SourceMismatch, match=said):
        check_model(direction, SOURCE, 8, 12)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"vector": torch.zeros(8)}, "above zero"),
        ({"vector": torch.full((8,), torch.nan)}, "finite"),
        ({"vector": torch.ones(2, 2, 2)}, "width"),
        ({"position": 0}, "from -1 on down"),
        ({"harmless_mean": torch.ones(3)}, "of width 8"),
    ],
)
def test_what_is_no_direction(other, said):
    with pytest.raises(ValueError, match=said):
        make(**other)


def test_representations_are_short():
    long = make(source=Source("model" * 100))
    assert len(repr(long)) <= 300
    assert "rank: 2" in repr(make(vector=torch.ones(2, 8)))
