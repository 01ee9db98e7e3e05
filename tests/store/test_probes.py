import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from probing import Capture, Place, capture, load, open_store
from probing.data.bundled import bundled_data
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.probes.contrast_readings import PROBES
from probing.runs import ccs
from probing.runs.ccs.config import CCSConfig
from probing.store.probes import open_probes

PLACES = ["resid_post:0", "resid_post:2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("probes")
    rows = [json.loads(line) for line in bundled_data("statements").read_text().splitlines()][::16]
    data = folder / "statements.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"epochs": 10, "restarts": 2, "pairings": 0, "random": 2, "refits": 0, "permutations": 5, "resamples": 5}
    config = CCSConfig(
        model=str(model_folder), data=str(data), out=folder / "out", places=",".join(PLACES), folds=3, **options
    )
    ccs.run(config)
    return folder / "out"


def forms(run, name):
    rows = [json.loads(line) for line in (run / "forms.jsonl").read_text().splitlines()]
    return [{**row, "id": row["id"].rpartition("#")[0]} for row in rows if row["id"].endswith(f"#{name}")]


def states(run, model, name, places=PLACES):
    return capture(model, forms(run, name), Capture([Place.parse(p) for p in places], "last", "content"), eos=False)


def test_what_was_saved_says_the_same_of_the_same_states(run, model_folder):
    probes, store = open_probes(run / "probes.safetensors"), open_store(run / "states")
    assert probes.names == PROBES
    assert list(map(str, probes.places)) == PLACES
    assert probes.source == store.source
    model = load(str(model_folder))
    stored = store.activations()
    for number, name in enumerate(("A1", "A0", "N1", "N0")):
        captured = states(run, model, name, [*PLACES, "final_norm"])
        for probe in PROBES:
            found = probes.probabilities(captured, probe, number % 2)
            rows = [stored.ids.index(f"{id}#{name}") for id in captured.ids]
            for at, place in enumerate(PLACES):
                read = store.read(place)[rows].double()
                read = read / read.norm(dim=1, keepdim=True) - probes.centers[at, number % 2]
                index = PROBES.index(probe)
                expected = torch.sigmoid(read @ probes.weight[at, index] + probes.bias[at, index])
                torch.testing.assert_close(found[:, at], expected, rtol=1e-4, atol=1e-4)


def test_the_centres_are_medians_of_the_forms(run, model_folder):
    probes, model = open_probes(run / "probes.safetensors"), load(str(model_folder))
    every = [states(run, model, name) for name in ("A1", "N1")]
    unit = torch.cat([torch.nn.functional.normalize(acts.values.double(), dim=-1) for acts in every])
    middle = (unit.quantile(0.5, dim=0, interpolation="lower") + unit.quantile(0.5, dim=0, interpolation="higher")) / 2
    torch.testing.assert_close(probes.centers[:, 0], middle, rtol=1e-4, atol=1e-4)


def test_other_states_are_refused(run, tmp_path, model_folder):
    probes, model = open_probes(run / "probes.safetensors"), load(str(model_folder))
    other = load(str(tiny.save_model(tmp_path / "other", seed=1)))
    with pytest.raises(SourceMismatch, match=r"the probes were trained on .*weights_sha256 is \w{12}, of the probes"):
        probes.probabilities(states(run, other, "A1"), "ccs")
    with pytest.raises(SourceMismatch, match=r"the probes read resid_post:2, which the states do not have; they have"):
        probes.probabilities(states(run, model, "A1", PLACES[:1]), "ccs")
    with pytest.raises(SourceMismatch, match="handed over in memory"):
        probes.probabilities(states(run, tiny.make_model(), "A1"), "ccs")
    acts = states(run, model, "A1")
    with pytest.raises(UsageError, match="there is no probe 'best'; there are ccs, crc_tpc"):
        probes.probabilities(acts, "best")
    with pytest.raises(UsageError, match="there is no form 2; these probes read 2"):
        probes.probabilities(acts, "ccs", 2)
    fewer = capture(model, forms(run, "A0")[1:], Capture([Place.parse(p) for p in PLACES], "last", "content"))
    with pytest.raises(SourceMismatch, match="must be of the same rows"):
        probes.score(acts, fewer)


def test_files_that_hold_no_probes(run, tmp_path):
    with pytest.raises(SourceMismatch, match="no such file"):
        open_probes(tmp_path / "missing")
    whole = (run / "probes.safetensors").read_bytes()
    for name, content in {"cut": whole[:-1], "text": b"hello", "empty": b"", "header": whole[:20]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreCorrupt, match="damaged, or no safetensors file"):
            open_probes(tmp_path / name)
    for metadata in (None, {"probing": "[]"}, {"probing": '{"format": "probing-probes-1"}'}):
        save_file({"weight": torch.zeros(2)}, tmp_path / "other", metadata)
        with pytest.raises(SourceMismatch, match="holds no probes of 'probing ccs'"):
            open_probes(tmp_path / "other")
    with pytest.raises(SourceMismatch, match="holds no probes"):
        open_probes(next((run / "states" / "shards").glob("*.safetensors")))


def test_a_changed_number_is_found(run, tmp_path):
    content = bytearray((run / "probes.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "changed").write_bytes(content)
    with pytest.raises(StoreCorrupt, match="changed since it was written"):
        open_probes(tmp_path / "changed")
