import json

import harness
import pandas as pd
import pytest
import tiny

import probing
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, SourceMismatch
from probing.runs.refusal.transfer import TransferConfig, run
from probing.store.directions import check_model

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
FEW = {"resamples": 30, "permutations": 20, "random_edits": 2}


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    return harness.write(tmp_path_factory.mktemp("prompts") / "some.jsonl", ROWS[::8])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A direction of the bundled model."""
    sides = [[row["text"] for row in ROWS[::8] if row["label"] == kind] for kind in ("harmful", "harmless")]
    found = probing.extract_directions(probing.load("bundled"), *sides, places="resid_pre:3")
    path = tmp_path_factory.mktemp("direction") / "direction.safetensors"
    probing.save_direction(path, found.at("resid_pre:3", -1))
    return path


@pytest.fixture(scope="module")
def transferred(some, saved, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    config = TransferConfig(
        model=["bundled", "bundled-displaced"], from_direction=saved, data=str(some), out=out, **FEW
    )
    return config, run(config)


def test_a_model_gets_its_own_direction_back(transferred):
    config, _ = transferred
    results = pd.read_parquet(config.out / "results.parquet").set_index(["model", "direction"])
    same = results.loc["bundled"]
    assert same.loc["as it is", "map_error"] == pytest.approx(0, abs=1e-10)
    assert same.loc["own direction", "cosine_to_own"] == pytest.approx(1)
    # The states that the saved direction and the own one are made of overlap, and are not the same.
    assert same.loc["as it is", "cosine_to_own"] > 0.9
    assert same.loc["as it is", "auroc"] > 0.9
    for name in ("as it is", "orthogonal map", "least-squares map"):
        row = same.loc[name]
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
        assert row["removed_low"] <= row["removed"] <= row["removed_high"]
        assert row["random_low"] <= row["random_median"] <= row["random_high"]
    # To add what the model refuses along makes it refuse, more than anything random does.
    assert same.loc["as it is", "added"] > same.loc["as it is", "random_added_high"]


def test_directions_are_bound_to_the_models_that_they_are_for(transferred):
    config, report = transferred
    for number, name in enumerate(config.models, start=1):
        model = probing.load(name)
        found = probing.open_direction(config.out / f"direction-{number}.safetensors")
        check_model(found, model.source, found.width, model.layers)
        assert found.facts["map"] in {"as it is", "orthogonal map", "least-squares map"}
        with probing.ablate(model, found):
            pass
    assert list(report.tables["Models"]["model"]) == config.models
    # Finished: shown again, not made again.
    again = run(config)
    assert [*again.tables] == [*report.tables]


def test_another_width_goes_through_a_map(some, saved, tmp_path):
    other = tiny.save_model(tmp_path / "other")
    tokens = {"refusal_tokens": "5,6"}
    config = TransferConfig(model=str(other), from_direction=saved, data=str(some), out=tmp_path / "o", **FEW, **tokens)
    report = run(config)
    names = set(report.tables["AUROC of held-out prompts by their projection"]["direction"])
    assert names == {"own direction", "orthogonal map", "least-squares map"}
    assert probing.open_direction(tmp_path / "o").width == 32


def test_bad_input(some, saved, tmp_path):
    given = {"from_direction": saved, "out": tmp_path / "o", **FEW}
    with pytest.raises(SourceMismatch, match="the direction is of bundled, not of bundled-displaced"):
        run(TransferConfig(model="bundled", from_model="bundled-displaced", data=str(some), **given))
    few = harness.write(tmp_path / "few.jsonl", ROWS[:: len(ROWS) // 12])
    with pytest.raises(DataInvalid, match="are needed"):
        run(TransferConfig(model="bundled", data=str(few), **given))
    assert not (tmp_path / "o").exists()
