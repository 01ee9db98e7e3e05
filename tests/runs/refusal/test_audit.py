import json

import harness
import pandas as pd
import pytest
import torch

import probing as library
from probing.data.bundled import bundled_data
from probing.models.load import load
from probing.runs.refusal.audit import AuditConfig, run
from probing.store.directions import save_direction

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
FEW = {"resamples": 50}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A few prompts, the direction of the bundled model, and a copy without it, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("audit")
    some = ROWS[::12]
    texts = [[row["text"] for row in some if row["label"] == kind] for kind in ("harmful", "harmless")]
    model = load("bundled")
    direction = library.extract_directions(model, *texts).at("resid_pre:2")
    save_direction(folder / "direction.safetensors", direction)
    library.orthogonalize(model, direction)
    model.model.to(torch.bfloat16).save_pretrained(folder / "edited")
    model.tokenizer.save_pretrained(folder / "edited")
    return folder, harness.write(folder / "some.jsonl", some)


def options_of(made, **more):
    return {"reference": "bundled", "policy": str(made[0] / "edited"), "data": str(made[1]), **FEW, **more}


@pytest.fixture(scope="module")
def audited(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "audit"
    return out, run(AuditConfig(**options_of(made), out=out))


def test_the_edited_model(made, audited):
    out, report = audited
    assert report.tables["Finding"]["finding"][0] == "consistent with removal of one direction from 9 of 9 writers"
    assert report.facts["writers_by_state"] == {"removed": 9}
    writers = pd.read_parquet(out / "writers.parquet")
    assert (writers["component_left"] < 0.05).all()
    assert (writers["energy_share"] > 0.95).all()
    assert writers["layer"].isna().sum() == 1
    refusal = next(table for title, table in report.tables.items() if title.startswith("Refusal by")).set_index(
        "measure"
    )
    model, policy = load("bundled"), load(str(made[0] / "edited"))
    texts = [row["text"] for row in ROWS[::12] if row["label"] == "harmful"]
    tokens = [token["id"] for token in report.facts["refusal_tokens"]]
    for name, one in (("reference", model), ("policy", policy)):
        # Batches of another shape differ in the last digits of float32.
        expected = float(library.refusal_log_odds(one, texts, tokens).mean())
        assert refusal.loc[f"harmful: log-odds, {name}", "value"] == pytest.approx(expected, abs=1e-4)
    assert refusal.loc["harmful: change of log-odds", "value"] < 0
    drift = pd.read_parquet(out / "drift.parquet")
    assert set(drift["place"]) == {f"resid_pre:{layer}" for layer in range(4)}
    assert drift["cosine"].min() < 0.99


def test_the_given_direction_and_the_run_again(probing, made, audited, tmp_path):
    given = harness.as_options(options_of(made, direction=made[0] / "direction.safetensors", shown=2))
    status, shown, errors = probing("refusal", "audit", *given, f"--out={tmp_path / 'o'}")
    assert status == 0, errors
    assert "consistent with removal of the given direction from 9 of 9 writers" in shown
    assert "which is the given one" in shown
    status, shown, _ = probing(
        "refusal", "audit", *harness.as_options(options_of(made)), f"--out={audited[0]}", "--json"
    )
    assert status == 0
    assert json.loads(shown)["finding"] == audited[1].facts["finding"]


def test_training_is_no_removal(made, tmp_path):
    report = run(AuditConfig(**options_of(made, policy="bundled-displaced"), out=tmp_path / "o"))
    assert report.tables["Finding"]["finding"][0].startswith("not consistent with removal of one direction")
    assert report.facts["writers_by_state"] == {"kept": 9}
    assert "a high |u1.v| alone is no evidence" in harness.notes(report)


def test_a_run_goes_on_where_it_stopped(made, audited, tmp_path, monkeypatch):
    from probing.runs.refusal.audit import parts

    plain, made_parts = parts.gather_changes, []

    def stop_at_third(pairs):
        made_parts.append(pairs[0].name)
        if len(made_parts) == 3:
            raise KeyboardInterrupt
        return plain(pairs)

    config = AuditConfig(**options_of(made), out=tmp_path / "out")
    monkeypatch.setattr(parts, "gather_changes", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    run(config)
    assert len(set(made_parts)) == len(made_parts) - 1
    for name in ("writers.parquet", "drift.parquet", "prompts.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (audited[0] / name).read_bytes()


BAD = {
    "no policy": (["--policy="], "policy is empty"),
    "no such direction": (["--direction=nowhere"], "no such file"),
    "direction of another model": (["--policy=bundled-displaced"], "is of"),
    "no such token": (["--refusal-tokens=I am"], "is 2 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(probing, made, tmp_path, case):
    options, said = BAD[case]
    plain = options_of(made) | ({"reference": "bundled-displaced"} if case == "direction of another model" else {})
    if case == "direction of another model":
        options = [*options, f"--direction={made[0] / 'direction.safetensors'}"]
    given = harness.override(harness.as_options(plain), options)
    status, _, errors = probing("refusal", "audit", *given, f"--out={tmp_path / 'out'}")
    assert status == 2, errors
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "summary.json").exists()
