import json
import shutil

import harness
import pandas as pd
import pytest
import torch

from probing.data.bundled import bundled_data
from probing.instruments.select_direction import NonePasses, select_direction
from probing.instruments.selection import ModelMeasurements
from probing.models.load import load
from probing.runs.refusal.extract import ExtractConfig
from probing.runs.refusal.extract import run as extract
from probing.runs.refusal.select import SelectConfig, run
from probing.store.directions import open_direction, open_directions

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
LOOSE = {"kl_most": 5.0}


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Bundled prompts, a twelfth of them."""
    return harness.write(tmp_path_factory.mktemp("prompts") / "some.jsonl", ROWS[::12])


@pytest.fixture(scope="module")
def directions(some, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "directions"
    few = {"resamples": 5, "permutations": 2, "validation_share": 0.4}
    extract(ExtractConfig(model="bundled", data=str(some), out=out, **few))
    return out


@pytest.fixture(scope="module")
def selected(some, directions, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "selected"
    return out, run(SelectConfig(model="bundled", data=str(some), directions=directions, out=out, **LOOSE))


def test_the_choice_is_that_of_the_function_on_the_held_out_prompts(directions, selected):
    out, report = selected
    prompts = pd.read_parquet(directions / "prompts.parquet")
    held_out = prompts[(prompts["part"] == "validation") & prompts["used"]]
    texts = {row["id"]: row["text"] for row in ROWS}
    sides = [[texts[id] for id in held_out["id"][held_out["kind"] == kind]] for kind in ("harmful", "harmless")]
    expected = select_direction(load("bundled"), open_directions(directions), *sides, **LOOSE)
    found = open_direction(out)
    assert (found.place, found.position, found.source) == (
        expected.direction.place,
        expected.direction.position,
        expected.direction.source,
    )
    assert torch.equal(found.vector.reshape(-1), expected.direction.vector.reshape(-1))
    assert found.harmless_mean is not None
    assert found.facts["selection"] == pytest.approx(expected.direction.facts["selection"], abs=1e-4)
    table = pd.read_parquet(out / "candidates.parquet")
    pd.testing.assert_frame_equal(table, expected.table, rtol=1e-4, atol=1e-4)
    assert report.facts["prompts"] == {"harmful": len(sides[0]), "harmless": len(sides[1])}
    assert report.facts["layer_forwards"] == expected.layer_forwards


def test_what_is_told(selected):
    out, report = selected
    choices = report.tables["Choices"].set_index("by")
    assert list(choices.index) == ["bypass, induce and kl", "COSMIC"]
    assert choices.loc["bypass, induce and kl", "place"] == str(open_direction(out).place)
    cost = report.tables["Cost in layer-forwards (one block on one prompt with one candidate)"].set_index("what")
    assert 3 * cost.loc["together", "layer-forwards"] < cost.loc["a loop over all candidates", "layer-forwards"]
    outcomes = report.tables["Candidates by what became of them"]
    assert outcomes["candidates"].sum() == 12
    assert "out: the last layer" in set(outcomes["outcome"])
    assert "'Sorry'" in harness.notes(report)
    assert (out / "plots.html").stat().st_size > 1000
    assert "no refusal tokens" in harness.notes(report).replace("needs no", "no")


def test_exhaustive_chooses_the_same(some, directions, selected, tmp_path):
    config = SelectConfig(
        model="bundled", data=str(some), directions=directions, out=tmp_path / "o", exhaustive=True, **LOOSE
    )
    report = run(config)
    assert report.facts["chosen"]["place"] == selected[1].facts["chosen"]["place"]
    assert report.facts["cosmic"] == selected[1].facts["cosmic"]
    table = pd.read_parquet(tmp_path / "o" / "candidates.parquet")
    assert table["bypass"].notna().sum() == 10
    assert sum(report.facts["layer_forwards"].values()) == report.facts["exhaustive_layer_forwards"]


def test_a_run_goes_on_where_it_stopped(some, directions, selected, tmp_path, monkeypatch):
    plain, opened = ModelMeasurements.open, []

    def stop_at_fourth(self, score, layer, rows):
        opened.append((score, layer))
        if len(opened) == 4:
            raise KeyboardInterrupt
        return plain(self, score, layer, rows)

    monkeypatch.setattr(ModelMeasurements, "open", stop_at_fourth)
    config = SelectConfig(model="bundled", data=str(some), directions=directions, out=tmp_path / "out", **LOOSE)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "out" / "direction.safetensors").exists()
    run(config)
    assert opened[:3] == [("induce", layer) for layer in range(3)]
    assert opened[3] == opened[4]
    assert not {("induce", layer) for layer in range(3)} & set(opened[4:])
    for name in ("direction.safetensors", "candidates.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (selected[0] / name).read_bytes()
    assert not (tmp_path / "out" / "shards").exists()


def test_shown_again_when_finished(probing, some, directions, selected, caplog):
    out, report = selected
    given = ["--model=bundled", f"--data={some}", f"--directions={directions}", f"--out={out}"]
    status, shown, _ = probing("refusal", "select", *given, *harness.as_options(LOOSE), "--json")
    assert status == 0
    assert json.loads(shown)["chosen"] == report.facts["chosen"]
    status, _, errors = probing("refusal", "select", *given, "--kl-most=4")
    assert status == 2
    assert "made from something else" in errors


def test_a_run_in_which_none_passed_goes_on_with_other_limits(some, directions, selected, tmp_path, monkeypatch):
    """A measurement that was stopped by one limit goes on where the next asks for more of it."""
    opened, plain = [], ModelMeasurements.open

    def note(self, score, layer, rows):
        opened.append((score, layer))
        return plain(self, score, layer, rows)

    monkeypatch.setattr(ModelMeasurements, "open", note)
    given = {"model": "bundled", "data": str(some), "directions": directions, "out": tmp_path / "out"}
    for kl_most in (0.0, 0.1):
        with pytest.raises(NonePasses, match="The nearest is resid_pre:"):
            run(SelectConfig(**given, kl_most=kl_most))
    assert sum(score == "induce" for score, _ in opened) == len({own for own in opened if own[0] == "induce"})
    run(SelectConfig(**given, **LOOSE))
    for name in ("direction.safetensors", "candidates.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (selected[0] / name).read_bytes()


BAD = {
    "none passes": ([], "Only the limit of kl keeps out resid_pre:2, position -1 (kl 2."),
    "another model": (["--model=bundled-displaced", "--no-filter-by-sign"], "refusal transfer"),
    "other data": ([f"--data={bundled_data('prompts')}", "--sample=60"], "is not in"),
    "no such folder": (["--directions=nowhere"], "no such folder"),
    "compiled": (["--compile"], "leave out compile"),
    "a limit": (["--kl-most=-1"], "kl-most"),
    "tokens of answers": (["--refusal-tokens=Sure,Here,Of"], "are needed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(probing, some, directions, tmp_path, case):
    options, said = BAD[case]
    given = ["--model=bundled", f"--data={some}", f"--directions={directions}", f"--out={tmp_path / 'out'}"]
    status, _, errors = probing("refusal", "select", *harness.override(given, options))
    assert status == 2, errors
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "direction.safetensors").exists()


def test_a_folder_that_is_no_extraction_or_a_damaged_one(probing, some, directions, selected, tmp_path):
    given = ["--model=bundled", f"--data={some}", f"--out={tmp_path / 'out'}"]
    status, _, errors = probing("refusal", "select", *given, f"--directions={selected[0]}")
    assert status == 2
    assert "holds a run of 'probing refusal select'" in errors
    shutil.copytree(directions, tmp_path / "copy")
    (tmp_path / "copy" / "directions.safetensors").unlink()
    status, _, errors = probing("refusal", "select", *given, f"--directions={tmp_path / 'copy'}")
    assert status == 2
    assert "no such file" in errors
    (tmp_path / "copy" / "prompts.parquet").write_bytes(b"damaged")
    status, _, errors = probing("refusal", "select", *given, f"--directions={tmp_path / 'copy'}")
    assert status == 1
    assert "gone or changed" in errors
