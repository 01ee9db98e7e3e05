"""Weights go straight to a card, and nothing else changes. No card is needed: what the library is asked for is seen."""

import pytest
import torch

from probing import load
from probing.errors import ModelInvalid, OutOfMemory
from probing.models import load as loading
from probing.models.layers import find_backbone
from probing.models.passes import last_hidden_state, trial_ids

CARD = torch.device("cuda")


class Library:
    """The library's class, which puts on the CPU what is asked onto a card, and fails first as it is told."""

    def __init__(self, kind, failures=()):
        self.kind, self.failures, self.maps, self.moved = kind, list(failures), [], []

    def from_pretrained(self, name, device_map=None, **options):
        self.maps.append(device_map)
        if self.failures:
            raise self.failures.pop(0)
        model, info = self.kind.from_pretrained(name, device_map=device_map and {"": "cpu"}, **options)
        model.to = lambda place: self.moved.append(place) or model
        return model, info


@pytest.fixture
def on_card(monkeypatch):
    """Load as if there were a card."""

    def load_with(folder, *failures):
        library = Library(loading.auto_class(loading.AutoConfig.from_pretrained(folder)), failures)
        monkeypatch.setattr(loading, "auto_class", lambda config: library)
        monkeypatch.setattr(loading, "choose_device", lambda device: CARD)
        try:
            return library, load(str(folder))
        except (ModelInvalid, OutOfMemory) as error:
            return library, error

    return load_with


def test_weights_go_straight_to_the_card(on_card, model_folder, monkeypatch):
    library, loaded = on_card(model_folder)
    assert (library.maps, library.moved) == ([{"": CARD}], [])
    assert not any(hasattr(module, "_hf_hook") for module in loaded.model.modules())
    monkeypatch.undo()
    moved = load(str(model_folder))
    assert loaded.source == moved.source
    ids = trial_ids(moved, 1)
    states = [last_hidden_state(find_backbone(each).backbone, ids) for each in (loaded, moved)]
    assert torch.equal(*states)


def test_too_large_for_the_card(on_card, model_folder):
    library, error = on_card(model_folder, torch.OutOfMemoryError("CUDA out of memory"))
    assert isinstance(error, OutOfMemory)
    assert "the weights do not fit into the memory of the device" in str(error)
    assert len(library.maps) == 1


def test_weights_that_cannot_be_rearranged_on_the_card(on_card, model_folder, caplog):
    failure = RuntimeError("We encountered some issues during automatic conversion of the weights. For details look")
    library, _ = on_card(model_folder, failure)
    assert (library.maps, library.moved) == ([{"": CARD}, None], [CARD])
    assert "loaded on the CPU and moved: rearranging its weights on cuda failed" in caplog.text
    library, error = on_card(model_folder, failure, failure)
    assert isinstance(error, ModelInvalid)
    assert len(library.maps) == 2


def test_other_errors_are_not_tried_again(on_card, model_folder):
    library, error = on_card(model_folder, RuntimeError("something else"))
    assert isinstance(error, ModelInvalid)
    assert len(library.maps) == 1
