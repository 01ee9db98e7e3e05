import dataclasses
import json

import harness
import numpy as np
import pandas as pd
import pytest

import probing as library
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid
from probing.instruments.trace import trace_refusal
from probing.models.load import load
from probing.runs.common.results import CHOSEN
from probing.runs.refusal.evaluate import EvaluateConfig
from probing.runs.refusal.evaluate import run as evaluate
from probing.runs.refusal.trace import TraceConfig, run
from probing.runs.refusal.trace.data import GivenAnswer, read_data
from probing.runs.refusal.trace.rows import append_given
from probing.store.directions import save_direction

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()][::23]
FEW = {"refits": 2, "resamples": 20, "folds": 3, "random_directions": 4, "places": "resid_pre:2,resid_post:3"}
TABLES = ("results.parquet", "sources.parquet", "curves.parquet", "cliffs.parquet", "bands.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A few prompts, the direction of the bundled model, and its answers."""
    folder = tmp_path_factory.mktemp("trace")
    model = load("bundled")
    texts = [[row["text"] for row in ROWS if row["label"] == kind] for kind in ("harmful", "harmless")]
    direction = library.extract_directions(model, *texts, places="resid_pre:2").at("resid_pre:2")
    save_direction(folder / "direction.safetensors", direction)
    # Prompts that are not in the evaluation have no answer.
    answered = harness.write(folder / "answered.jsonl", ROWS[2:])
    few = {"resamples": 10, "random_directions": 0, "permuted_directions": 0, "new_tokens": 12}
    evaluate(
        EvaluateConfig(
            model="bundled",
            data=str(answered),
            direction=folder / "direction.safetensors",
            out=folder / "evaluated",
            **few,
        )
    )
    harness.write(folder / "some.jsonl", ROWS)
    return folder


def options_of(made, **more):
    return {"model": "bundled", "data": str(made / "some.jsonl"), **FEW, **more}


@pytest.fixture(scope="module")
def traced(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "traced"
    config = TraceConfig(
        **options_of(made), direction=made / "direction.safetensors", answers=made / "evaluated", out=out
    )
    return out, run(config), config


def test_results_are_those_of_python(made, traced):
    out, report, config = traced
    model = load("bundled")
    answers = pd.read_parquet(made / "evaluated" / "answers.parquet").set_index("prompt")["answer_before"]
    sides = [
        [{**row, "response": answers.get(row["text"])} for row in ROWS if row["label"] == kind]
        for kind in ("harmful", "harmless")
    ]
    direction = library.open_direction(config.direction)
    expected = trace_refusal(model, *sides, direction, classifier=False, resamples=20)
    own = pd.read_parquet(out / "results.parquet").set_index("place")
    for kind in ("harmful", "harmless"):
        theirs = expected.places.set_index("place")[f"lens_{kind}"].dropna()
        np.testing.assert_allclose(own.loc[theirs.index, f"lens_{kind}"], theirs, atol=1e-4)
    curves = pd.read_parquet(out / "curves.parquet").sort_values(["kind", "id", "token"])
    theirs = expected.curves.sort_values(["kind", "id", "token"])
    assert len(curves) == len(theirs)
    np.testing.assert_allclose(curves["projection"], theirs["projection"], atol=1e-4)
    assert list(curves["part"]) == list(theirs["part"])
    assert set(curves["part"]) == {"prompt", "answer"}
    assert own.index[-1] == CHOSEN
    assert own.loc[CHOSEN, "decision_f1"] > 0.8
    assert own.loc["surface", "decision_f1"] < own.loc["resid_post:3", "decision_f1"]
    assert report.facts["depths"]["best_f1"] == own.loc[["resid_pre:2", "resid_post:3"], "decision_f1"].max()
    for title in ("Finding", "Decisions of the model", "Notes", "Rows by status"):
        assert len(report.tables[title])
    assert {path.name for path in out.iterdir()} >= {*TABLES, "summary.json", "run.json", "plots.html", "states"}


def test_decisions_are_verdicts_where_answers_are_given(made, traced):
    out, report, _ = traced
    answers = pd.read_parquet(made / "evaluated" / "answers.parquet")
    refused = answers["verdict_before"].isin(["refusal", "soft refusal"])
    complied = answers["verdict_before"] == "compliance"
    table = pd.DataFrame(report.facts["decisions"]).set_index("prompts")
    for kind in ("harmful", "harmless"):
        own = answers["kind"] == kind
        assert table.loc[kind, "refused"] == (refused & own).sum()
        assert table.loc[kind, "complied"] == (complied & own).sum()
    assert table["not known"].sum() == len(ROWS) - int((refused | complied).sum())
    assert "no head is fitted on them" in harness.notes(report)
    assert report.facts["decided_by"] == "verdicts on answers"
    assert set(pd.read_parquet(out / "sources.parquet")["source"]) <= {row["category"] for row in ROWS}


def test_a_run_goes_on_where_it_stopped(made, traced, tmp_path, monkeypatch):
    from probing.runs.refusal.trace import parts

    out, _, config = traced
    config = dataclasses.replace(config, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        calls = harness.note_calls(patch, parts, "trace_place", stop=3)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert len(calls) == 3
    with monkeypatch.context() as patch:
        calls = harness.note_calls(patch, parts, "trace_place")
        run(config)
    # Six places with lengths and punctuation, three of which are there.
    assert len(calls) == 3
    for name in TABLES:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    assert not list((tmp_path / "out").glob("**/curves_*"))


def test_json_without_direction_and_heads(probing, made, tmp_path):
    given = harness.as_options(options_of(made, classifier=False, refusal_tokens="I"))
    status, shown, errors = probing("refusal", "trace", *given, f"--out={tmp_path / 'o'}", "--json")
    assert status == 0, errors
    found = json.loads(shown)
    assert found["lens"]["separated_from"] is not None
    assert found["direction"] is None
    assert "No heads were fitted" in json.dumps(found["tables"]["Notes"])
    assert not (tmp_path / "o" / "curves.parquet").exists()


def test_without_random_directions_the_record_still_reads(made, tmp_path):
    given = {"direction": made / "direction.safetensors", "classifier": False, "random_directions": 0}
    config = TraceConfig(**{**options_of(made, **given), "out": tmp_path / "o"})
    report = run(config)
    assert report.facts["falls"][0]["random_low"] is None
    again = run(config)
    assert list(again.tables) == list(report.tables)
    assert "outside the band" not in "".join(again.tables["Finding"]["finding"])


def test_sources(made, tmp_path):
    rows = [{**row, "source": "one" if at % 2 else None} for at, row in enumerate(ROWS)]
    data = harness.write(tmp_path / "named.jsonl", rows)
    config = TraceConfig(**options_of(made, data=str(data)), out=tmp_path / "o")
    found = read_data(config)
    assert found.source_name == "source"
    assert set(found.sources) == {"one", "harmful prompts without one", "harmless prompts without one"}
    assert read_data(dataclasses.replace(config, source_column="category")).source_name == "category"
    halves = [
        harness.write(tmp_path / f"{n}.jsonl", [{k: r[k] for k in ("text", "label")} for r in ROWS[n::2]])
        for n in (0, 1)
    ]
    found = read_data(dataclasses.replace(config, data=list(map(str, halves))))
    assert found.source_name == "file"
    assert len(set(found.sources)) == 2
    assert read_data(dataclasses.replace(config, split_by="object")).groups[0] == ROWS[0]["object"]


@pytest.mark.parametrize(
    ("opened", "thought", "verdict", "between"),
    [
        ("", None, "refusal", ""),
        ("<think>\n", "bad", "refusal", "bad\n</think>\n\n"),
        ("", "<think> bad", "refusal", "<think> bad\n</think>\n\n"),
        ("", "bad", "refusal", "<think>\nbad\n</think>\n\n"),
        ("<think>\n", "bad", "unfinished thought", ""),
    ],
)
def test_thoughts_stand_between_prompt_and_answer(opened, thought, verdict, between):
    tokenizer = load("bundled").tokenizer
    prompt = tokenizer(f"Now {opened}")["input_ids"]
    ids, start = append_given(tokenizer, prompt, GivenAnswer("Sorry.", thought, verdict), ("</think>",))

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    written = "bad" if verdict == "unfinished thought" else "Sorry."
    assert ids == [*prompt, *(encode(between) if between else []), *encode(written)]
    assert start == len(prompt) + (len(encode(between)) if between else 0)


BAD = {
    "direction of another model": (
        ["--model=bundled-displaced", "--direction={direction}"],
        "the direction is of bundled",
    ),
    "no such direction": (["--direction=nowhere"], "no such file"),
    "a place for one direction": (["--direction={direction}", "--place=resid_pre:2"], "leave out --place"),
    "place of nothing": (["--place=resid_pre:2"], "no direction is given"),
    "answers of another model": (["--model=bundled-displaced", "--answers={evaluated}"], "its answers are of"),
    "answers that are none": (["--answers={folder}"], "holds no run.json"),
    "answers of other data": (["--answers={evaluated}", "--data={other}"], "none of its"),
    "missing column": (["--source-column=nowhere"], "there is no column 'nowhere'"),
    "missing group": (["--split-by=nowhere"], "there is no column 'nowhere'"),
    "unknown place": (["--places=resid_post:9"], "9"),
    "too few prompts": (["--limit=5"], "at least 4 are needed"),
    "no such token": (["--refusal-tokens=I am"], "tokens of"),
    "no decisions of one kind": (["--refusal-tokens=Sorry"], "the model refuses 0 and complies with"),
    "too many folds": (["--folds=200"], "folds need as many"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(probing, made, tmp_path, case):
    options, said = BAD[case]
    other = [{**row, "text": f"Now: {row['text']}"} for row in ROWS]
    names = {
        "direction": made / "direction.safetensors",
        "evaluated": made / "evaluated",
        "folder": made,
        "other": harness.write(tmp_path / "other.jsonl", other),
    }
    given = harness.override(harness.as_options(options_of(made)), [option.format(**names) for option in options])
    status, _, errors = probing("refusal", "trace", *given, f"--out={tmp_path / 'out'}")
    assert status == 2, errors
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "summary.json").exists()


def test_answers_that_were_changed_and_one_source(made, tmp_path, traced):
    copied = tmp_path / "evaluated"
    copied.mkdir()
    for name in ("run.json", "answers.parquet"):
        (copied / name).write_bytes((made / "evaluated" / name).read_bytes())
    harness.damage_end(copied / "answers.parquet")
    with pytest.raises(library.StoreCorrupt, match="gone or changed"):
        run(TraceConfig(**options_of(made), answers=copied, out=tmp_path / "o"))
    rows = [{**row, "origin": "here"} for row in ROWS]
    data = harness.write(tmp_path / "one.jsonl", rows)
    report = run(
        TraceConfig(
            **options_of(made, data=str(data), source_column="origin", places="resid_post:3"), out=tmp_path / "p"
        )
    )
    assert "Not measured, across sources: all prompts come from one source (here)" in harness.notes(report)
    assert "No direction was given" in harness.notes(report)
    with pytest.raises(DataInvalid):
        run(TraceConfig(**options_of(made, folds=150), out=tmp_path / "q"))
