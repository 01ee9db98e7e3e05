import json

import harness
import pandas as pd
import pytest
import torch

from probing.data.bundled import bundled_data
from probing.instruments.directions import extract_directions
from probing.models.load import load
from probing.runs.refusal.common.prompts import hold_out, read_kinds
from probing.runs.refusal.extract import ExtractConfig, run
from probing.store.directions import open_directions

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
FEW = {"resamples": 50, "permutations": 20}


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Bundled prompts, an eighth of them."""
    return harness.write(tmp_path_factory.mktemp("prompts") / "some.jsonl", ROWS[::8])


@pytest.fixture(scope="module")
def extracted(some, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "directions"
    return out, run(ExtractConfig(model="bundled", data=str(some), out=out, **FEW))


def test_directions_are_those_of_the_function(some, extracted):
    out, report = extracted
    found = open_directions(out)
    prompts = pd.read_parquet(out / "prompts.parquet").set_index("id")
    used = prompts[prompts["used"] & (prompts["part"] == "train")]
    texts = {row["id"]: row["text"] for row in ROWS}
    sides = [[texts[id] for id in used.index[used["kind"] == kind]] for kind in ("harmful", "harmless")]
    expected = extract_directions(load("bundled"), *sides)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(found.harmless_mean, expected.harmless_mean, rtol=1e-5, atol=1e-6)
    assert found.facts["prompts"] == {"harmful": len(sides[0]), "harmless": len(sides[1])}
    assert (found.places, found.positions) == (expected.places, expected.positions)
    assert report.facts["prompts"]["harmful"]["train"] == len(sides[0])


def test_what_is_told_of_the_bundled_model(extracted):
    _, report = extracted
    tokens = next(table for title, table in report.tables.items() if title.startswith("Refusal tokens"))
    assert sorted(tokens["token"]) == ["'I'", "'Sorry'"]
    last = next(table for title, table in report.tables.items() if "(position -1)" in title).set_index("place")
    assert last.loc["resid_pre:3", "AUROC"] == 1
    # Of an AUROC of 1 no bootstrap replicate differs; the interval is that of independent couples.
    assert last.loc["resid_pre:3", "95 % interval"].startswith("0.")
    assert last.loc["resid_pre:0", "angle of 95 % of replicates"] == "no direction"
    assert "do not make a direction" not in harness.notes(report)
    assert "resid_pre:0 some positions have no direction" in harness.notes(report)


def test_so_many_of_each_kind_are_drawn(tmp_path):
    labels = ["harmful"] * 6 + ["harmless"] * 40 + ["other"] * 3
    rows = [{"id": f"p{n}", "text": f"prompt {n}", "label": label} for n, label in enumerate(labels)]
    data = str(harness.write(tmp_path / "p.jsonl", rows))
    few, again, every = (
        read_kinds(ExtractConfig(model="bundled", data=data, out=tmp_path / "o", per_kind=count))
        for count in (8, 8, None)
    )
    assert few.prompts == again.prompts
    assert [prompt.id for prompt in few.prompts if prompt.label == "harmful"] == [f"p{n}" for n in range(6)]
    assert (sum(few.harmful), len(few.harmful), few.others) == (6, 14, 3)
    assert {prompt.id for prompt in few.prompts} != {f"p{n}" for n in range(14)}
    assert (len(every.prompts), every.others) == (46, 3)


def test_held_out_prompts_share_no_text_with_the_others(tmp_path):
    rows = [row | {"id": f"{row['id']}-{copy}"} for row in ROWS[::16] for copy in range(2)]
    kinds = read_kinds(ExtractConfig(model="m", data=str(harness.write(tmp_path / "d.jsonl", rows)), out=tmp_path))
    for seed in range(5):
        out = hold_out(kinds, 0.3, seed)
        sides = [{p.text for p, flag in zip(kinds.prompts, out, strict=True) if flag is side} for side in (True, False)]
        assert not sides[0] & sides[1]
        for kind in (True, False):
            share = [flag for flag, harmful in zip(out, kinds.harmful, strict=True) if harmful is kind]
            assert sum(share) / len(share) == pytest.approx(0.3, abs=0.06)


def test_a_run_goes_on_where_it_stopped(some, extracted, tmp_path, monkeypatch):
    from probing.runs.refusal.extract import stages

    plain, made = stages.judge_place, []

    def stop_at_third(material, config, place, report):
        made.append(place)
        if len(made) == 3:
            raise KeyboardInterrupt
        return plain(material, config, place, report)

    config = ExtractConfig(model="bundled", data=str(some), out=tmp_path / "out", **FEW)
    monkeypatch.setattr(stages, "judge_place", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    run(config)
    assert made == [f"resid_pre:{layer}" for layer in (0, 1, 2, 2, 3)]
    for name in ("directions.safetensors", "results.parquet", "prompts.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (extracted[0] / name).read_bytes()


def test_shown_again_when_finished(probing, some, extracted, caplog):
    out, report = extracted
    given = ["--model=bundled", f"--data={some}", f"--out={out}", *harness.as_options(FEW)]
    status, shown, errors = probing("refusal", "extract", *given, "--json")
    assert status == 0
    assert "finished: its results are shown again" in caplog.text
    assert json.loads(shown)["prompts"] == report.facts["prompts"]
    status, _, errors = probing("refusal", "extract", *given, "--seed=1")
    assert status == 2
    assert "made from something else" in errors


def test_two_files_of_plain_strings(probing, tmp_path):
    """As published: a JSON list of objects with an instruction, and one of strings."""
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": row["text"]} for row in ROWS[::6] if row["label"] == "harmful"])
    )
    (tmp_path / "b.json").write_text(json.dumps([row["text"] for row in ROWS[::6] if row["label"] == "harmless"]))
    data = [f"--data=harmful={tmp_path / 'a.json'}", f"--data=harmless={tmp_path / 'b.json'}"]
    more = ["--method=paired_svd", "--rank=2", "--winsorize=0.05", "--off-harmless-mean", *harness.as_options(FEW)]
    status, shown, errors = probing(
        "refusal", "extract", "--model=bundled", *data, "--places=resid_pre:2", *more, f"--out={tmp_path / 'o'}"
    )
    assert status == 0, errors
    assert "The cosine of these directions to the plain difference in means" in shown
    assert open_directions(tmp_path / "o").vectors.shape == (1, 3, 2, 64)


BAD = {
    "one label": (["--harmless-label=nothing"], "0 rows have the label 'nothing'"),
    "the same label": (["--harmless-label=harmful"], "are both 'harmful'"),
    "no such token": (["--refusal-tokens=I am"], "is 2 tokens"),
    "an empty token": (["--refusal-tokens=I,,Sorry"], "tokens separated by commas"),
    "tokens of answers": (["--refusal-tokens=Sure,Here,Of"], "pass the filter by the sign"),
    "no such place": (["--places=resid_pre:9"], "layers"),
    "a rank": (["--rank=3"], "needs the method paired_svd"),
    "a share": (["--validation-share=1.5"], "validation-share"),
    "winsorize": (["--winsorize=0.6"], "winsorize"),
    "all alike": (["--harmful-label=food", "--harmless-label=toys", "--label-column=category"], "alike"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(probing, some, tmp_path, case):
    options, said = BAD[case]
    given = ["--model=bundled", f"--data={some}", f"--out={tmp_path / 'out'}", *harness.as_options(FEW)]
    status, _, errors = probing("refusal", "extract", *given, *options)
    assert status == 2, errors
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "directions.safetensors").exists()
