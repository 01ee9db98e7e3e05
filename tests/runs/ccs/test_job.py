import json
import shutil
from pathlib import Path

import families
import numpy as np
import pandas as pd
import pytest
from harness import as_options, damage_end, interrupt_when, note_calls, notes, override, read_lines, write

from probing import Capture, capture, load, open_store
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, OutOfMemory, SourceMismatch, StoreCorrupt, UsageError
from probing.probes.contrast_readings import PROBES
from probing.probes.evaluate import METRICS, measure
from probing.report.tables import render
from probing.runs import capture as capture_job
from probing.runs import ccs
from probing.runs.capture.config import CaptureConfig
from probing.runs.ccs import parts, stages
from probing.runs.ccs.config import CCSConfig
from probing.runs.common import models as common_models
from probing.runs.common import states as common_states
from probing.store.activations import ActivationStore
from probing.store.manifest import claim
from probing.store.probes import open_probes

FORMS = ("A1", "A0", "N1", "N0")
WRITTEN = ["controls.parquet", "pairs.parquet", "probes.safetensors", "results.parquet"]
QUICK = {
    "epochs": 20,
    "restarts": 2,
    "pairings": 1,
    "random": 5,
    "refits": 2,
    "permutations": 50,
    "resamples": 50,
    "folds": 3,
    "device": "cpu",
}


def statements(count=24):
    """Some of every category and formulation of the bundled ones, as many true as false."""
    rows = read_lines(bundled_data("statements"))
    kinds = {}
    for row in rows:
        kinds.setdefault((row["category"], row["formulation"], row["label"]), row)
    return sorted(kinds.values(), key=lambda row: row["category"])[:count]


def content(folder):
    return {name: (folder / name).read_bytes() for name in WRITTEN}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("ccs")


@pytest.fixture(scope="module")
def data(shared):
    return write(shared / "statements.jsonl", statements())


@pytest.fixture(scope="module")
def done(shared, data):
    """One run with everything in it: the folder and the report."""
    report = ccs.run(CCSConfig(model="bundled", data=str(data), out=shared / "done", **QUICK))
    return shared / "done", report


@pytest.fixture
def config(data, tmp_path):
    def make(**changes):
        values = {"data": str(data), "out": tmp_path / "out", **QUICK}
        if "store" not in changes:
            values |= {"model": "bundled", "places": "resid_post:1..2"}
        return CCSConfig(**(values | changes))

    return make


@pytest.fixture
def trained(monkeypatch):
    """The arguments of the places that were trained; the place is the second."""
    return note_calls(monkeypatch, stages, "train_place")


# What a run writes


def test_notes_claim_no_more_than_the_draws_can_show(done):
    """Five random probes: no p-value is below 1/6, so a good index is not said to be in their band."""
    assert "is not below that of random probes (p 0." in notes(done[1])
    assert "With fewer than 19 draws (5 random) no p-value can reach 0.05" in notes(done[1])


def test_what_lies_there(done):
    folder, report = done
    names = [*WRITTEN, "forms.jsonl", "plots.html", "run.json", "states", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert {Path(path).name for path in report.facts["wrote"]} == {*names} - {"states"}
    run = json.loads((folder / "run.json").read_text())
    assert (run["status"], run["how"]) == ("done", "packed (a sequence at a time), prompts shared")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows_by_status"] == {"ok": 24}
    assert summary["places"] == [f"resid_post:{layer}" for layer in range(4)]
    assert set(summary["tables"]) == set(report.tables)
    assert "banana" in (folder / "forms.jsonl").read_text()


def test_every_number_has_its_interval_and_its_nulls(done):
    results = pd.read_parquet(done[0] / "results.parquet")
    places = [f"resid_post:{layer}" for layer in range(4)]
    everything = results[results["subset"] == "all"]
    keys = everything[["place", "probe", "metric"]].apply(tuple, axis=1)
    assert set(keys) == {(p, q, m) for p in (*places, "chosen inside folds") for q in PROBES for m in METRICS}
    assert keys.is_unique
    assert np.isfinite(everything[["value", "low", "high"]]).all().all()
    # Formulations of fewer than 15 groups of pairs have the intervals of shares and AUROC alone.
    assert np.isfinite(results.loc[results["metric"].isin(["esa", "auroc"]), ["value", "low", "high"]]).all().all()
    # A percentile interval of few resamples need not hold the value of a median, nor one that duplicates change.
    holds = (results["low"] <= results["value"] + 1e-12) & (results["value"] <= results["high"] + 1e-12)
    means = results["metric"].isin(["esa", "polar_consistency", "contradiction_index"]) & results["low"].notna()
    assert holds[means].all()
    assert (results["random_low"] <= results["random_median"]).all()
    assert (results["random_median"] <= results["random_high"]).all()
    assert (everything["pairings_low"] <= everything["pairings_high"]).all()
    p_values = everything[[name for name in results if name.startswith("p_")]].to_numpy()
    known = p_values[np.isfinite(p_values)]
    assert ((known > 0) & (known <= 1)).all()
    esa = everything[everything["metric"] == "esa"]
    for name in ("p_random", "p_labels", "p_random_corrected", "p_labels_corrected"):
        assert esa[name].notna().all()
    assert (esa["p_labels_corrected"] >= esa["p_labels"] - 1e-12).all()
    assert everything.loc[everything["metric"] == "polar_consistency", "p_random"].isna().all()


def test_the_results_are_those_of_the_pairs(done):
    pairs = pd.read_parquet(done[0] / "pairs.parquet")
    rows = statements()
    assert pairs["id"].tolist() == [row["id"] for row in rows]
    assert pairs["label"].tolist() == [row["label"] for row in rows]
    assert pairs["category"].tolist() == [row["category"] for row in rows]
    results = pd.read_parquet(done[0] / "results.parquet")
    here = results[(results["subset"] == "all") & (results["place"] == "chosen inside folds")]
    here = here[here["probe"] == "ccs"].set_index("metric")["value"]
    a1, a0, n1, n0 = (pairs[f"ccs_{form}"].to_numpy() for form in FORMS)
    truth = pairs["label"].to_numpy()
    right = [((a1 + 1 - a0) / 2 > 0.5) == truth, ((n1 + 1 - n0) / 2 > 0.5) == ~truth]
    assert here["esa"] == pytest.approx(np.mean(right))
    assert here["contradiction_index"] == pytest.approx(
        np.mean(a1 * n1 + a0 * n0 + (1 - a1) * (1 - n1) + (1 - a0) * (1 - n0)) / 2
    )
    consistency = ((a1 - n0) ** 2 + (a0 - n1) ** 2) / 2 * np.sign(a1 - n1) * np.sign(n0 - a0)
    assert here["polar_consistency"] == pytest.approx(consistency.mean())
    found = measure(np.stack([a1, a0, n1, n0]), np.where(truth, 1.0, -1.0), pairs["fold"].to_numpy())
    for metric in METRICS:
        assert here[metric] == pytest.approx(found[metric][0])
    assert pairs.groupby("fold")["place"].nunique().eq(1).all()
    assert pairs.groupby("fold")["place"].first().tolist() == done[1].facts["chosen"]["ccs"]
    texts = pd.DataFrame([(row[side], fold) for row, fold in zip(rows, pairs["fold"], strict=True)
                          for side in ("statement", "opposite")])  # fmt: skip
    assert texts.groupby(0)[1].nunique().eq(1).all()


def test_the_saved_probes_are_right_about_what_they_saw(done):
    """The right way round, by states that were captured anew."""
    probes, model = open_probes(done[0] / "probes.safetensors"), load("bundled")
    forms = read_lines(done[0] / "forms.jsonl")
    yes, no = (
        capture(
            model,
            [{**form, "id": form["id"].removesuffix(f"#{name}")} for form in forms if form["id"].endswith(f"#{name}")],
            Capture(list(probes.places), "last", "content"),
            eos=False,
        )
        for name in ("A1", "A0")
    )
    labels = pd.read_parquet(done[0] / "pairs.parquet").set_index("id").loc[list(yes.ids), "label"].to_numpy()
    for name in PROBES:
        right = (probes.score(yes, no, name)[:, 2].numpy() > 0.5) == labels
        assert right.mean() > 0.9


# States from elsewhere


def test_a_store_gives_the_same_as_the_model(done, config, tmp_path, data, monkeypatch):
    monkeypatch.setattr(common_models, "load", lambda *_: 1 / 0)
    ccs.run(config(store=done[0] / "states"))
    assert content(tmp_path / "out") == content(done[0]) | {
        "probes.safetensors": (tmp_path / "out" / "probes.safetensors").read_bytes()  # says how the states were read
    }
    assert not (tmp_path / "out" / "states").exists()


def test_a_store_of_the_forms_gives_the_same(done, config, tmp_path):
    options = {"places": "resid_post:all", "pooling": "last", "over": "content", "eos": False}
    capture_job.run(
        CaptureConfig(model="bundled", data=str(done[0] / "forms.jsonl"), out=tmp_path / "captured", **options)
    )
    ccs.run(config(store=tmp_path / "captured"))
    for name in ("results.parquet", "controls.parquet", "pairs.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (done[0] / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"template": "{statement} True? {answer}"}, "A1' is another text there"),
        ({"answers": "True,False"}, "A1' is another text there"),
        ({"distractor": "apple"}, "#distractor:A1' is another text there"),
        ({"replace_word": "not=qqq"}, "#marker:N1' is another text there"),
    ],
)
def test_a_store_of_other_texts_is_refused(done, config, tmp_path, changes, named):
    with pytest.raises(SourceMismatch, match=named):
        ccs.run(config(store=done[0] / "states", **changes))
    assert not (tmp_path / "out").exists()


def test_a_store_of_other_statements_is_refused(done, config, tmp_path):
    rows = statements()
    more = write(tmp_path / "more.jsonl", [*rows, {**rows[0], "id": "new", "statement": "x", "opposite": "not x"}])
    with pytest.raises(SourceMismatch, match=r"no states of 'new#A1'; capture the forms\.jsonl"):
        ccs.run(config(store=done[0] / "states", data=str(more)))
    other = write(tmp_path / "other.jsonl", [{**rows[0], "statement": "x"}, *rows[1:]])
    with pytest.raises(SourceMismatch, match=f"'{rows[0]['id']}#A1' is another text there"):
        ccs.run(config(store=done[0] / "states", data=str(other)))


def test_a_store_without_the_controls_is_enough(done, config, tmp_path):
    forms = read_lines(done[0] / "forms.jsonl")
    bare = write(tmp_path / "bare.jsonl", [form for form in forms if ":" not in form["id"].rpartition("#")[2]])
    options = {"places": "resid_post:all", "pooling": "last", "over": "content", "eos": False}
    capture_job.run(CaptureConfig(model="bundled", data=str(bare), out=tmp_path / "captured", **options))
    report = ccs.run(config(store=tmp_path / "captured"))
    assert "No marker control" in notes(report)
    assert "No distractor test" in notes(report)
    assert (tmp_path / "out" / "pairs.parquet").read_bytes() == (done[0] / "pairs.parquet").read_bytes()


def test_a_store_of_every_token_is_refused(done, config, tmp_path):
    options = {"places": "resid_post:1", "pooling": "tokens", "eos": False}
    capture_job.run(
        CaptureConfig(model="bundled", data=str(done[0] / "forms.jsonl"), out=tmp_path / "captured", **options)
    )
    with pytest.raises(SourceMismatch, match="holds the states of every token"):
        ccs.run(config(store=tmp_path / "captured"))


def test_some_places_of_the_states_of_another_run(done, config):
    """A run's own folder stands for the states in it."""
    some = ccs.run(config(store=done[0], places="resid_post:1,resid_post:-1"))
    results = pd.read_parquet(Path(some.facts["wrote"][0]))
    assert list(dict.fromkeys(results["place"])) == ["resid_post:1", "resid_post:3", "chosen inside folds"]
    whole = pd.read_parquet(done[0] / "results.parquet")
    columns = ["subset", "place", "probe", "metric", "value", "low", "high", "random_median"]
    kept = ["resid_post:1", "resid_post:3"]
    ours, theirs = (each[each["place"].isin(kept)][columns] for each in (results, whole))
    by = columns[:4]
    ours, theirs = (each.sort_values(by).reset_index(drop=True) for each in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs)
    with pytest.raises(UsageError, match="mlp_out:1 was not captured; there are resid_post:0"):
        ccs.run(config(store=done[0] / "states", out=config().out.parent / "other", places="mlp_out:1"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"token": "last", "max_length": 9}, "--max-length, --token"),
        ({"dtype": "float16", "batch_tokens": 5}, "--dtype, --batch-tokens"),
    ],
)
def test_what_a_store_settles_is_not_taken(done, config, changes, named):
    with pytest.raises(ValueError, match=f"the states of a store are captured already; leave out {named}$"):
        config(store=done[0] / "states", **changes)


# Again, and after a stop


def test_the_same_command_again_computes_nothing(done, shared, data, trained, monkeypatch):
    before = {path.name: path.read_bytes() for path in done[0].iterdir() if path.is_file()}
    monkeypatch.setattr(stages, "read_forms", lambda *_: 1 / 0)
    report = ccs.run(CCSConfig(model="bundled", data=str(data), out=done[0], **QUICK))
    assert not trained
    assert {path.name: path.read_bytes() for path in done[0].iterdir() if path.is_file()} == before
    assert list(report.tables) == list(done[1].tables)
    for title, table in report.tables.items():
        assert table.equals(done[1].tables[title])


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, r"options\.seed was 0, is 1"), ({"folds": 4}, r"options\.folds was 3, is 4"),
     ({"answers": "True,False"}, r"options\.answers was"), ({"model": None}, r"model\.weights_sha256 was")],
)  # fmt: skip
def test_other_options_are_refused(done, data, model_folder, changes, named):
    changes = {"model": str(model_folder)} if "model" in changes else changes
    before = content(done[0])
    with pytest.raises(SourceMismatch, match=named):
        ccs.run(CCSConfig(**({"model": "bundled", "data": str(data), "out": done[0], **QUICK} | changes)))
    assert content(done[0]) == before


def test_other_labels_are_refused(done, tmp_path):
    rows = statements()
    other = write(tmp_path / "other.jsonl", [{**row, "label": not row["label"]} for row in rows])
    with pytest.raises(SourceMismatch, match="statements was"):
        ccs.run(CCSConfig(model="bundled", data=str(other), out=done[0], **QUICK))


def test_a_file_that_changed_is_not_answered(done, data, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    (tmp_path / "copy" / "controls.parquet").write_bytes(b"x")
    with pytest.raises(StoreCorrupt, match=r"controls\.parquet: gone or changed"):
        ccs.run(CCSConfig(model="bundled", data=str(data), out=tmp_path / "copy", **QUICK))


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(done, data, tmp_path, monkeypatch, probing, damage):
    given = {"model": "bundled", "data": str(data), "out": tmp_path / "out", **QUICK}
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "train_place", 2)
        status, _, errors = probing("ccs", *as_options(given))
        assert status == 130
        assert "the same command goes on from here" in errors
    if damage:
        damage_end(tmp_path / "out" / "shards" / "000001.safetensors")
    trained = note_calls(monkeypatch, stages, "train_place")
    ccs.run(CCSConfig(**given))
    places = [place for _, place, *_ in trained]
    assert places == (["resid_post:1"] if damage else []) + ["resid_post:2", "resid_post:3"]
    assert content(tmp_path / "out") == content(done[0])
    assert not (tmp_path / "out" / "shards").exists()


def test_an_unfinished_run_with_another_vinc_is_refused(done, data, tmp_path, monkeypatch):
    """Its parts would be of two kinds. A finished one is shown again."""
    given = {"model": "bundled", "data": str(data), **QUICK}
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "train_place", 2)
        with pytest.raises(KeyboardInterrupt):
            ccs.run(CCSConfig(out=tmp_path / "out", **given))
    shutil.copytree(done[0], tmp_path / "done")
    for name in ("out", "done"):
        with claim(tmp_path / name, "ccs") as folder:
            facts = dict(folder.facts())
            facts["identity"] = {key: value for key, value in facts["identity"].items() if key != "vinc"}
            folder.write({key: value for key, value in facts.items() if key not in ("schema_version", "command")})
    with pytest.raises(SourceMismatch, match="vinc was None, is among directions in which training rows differ"):
        ccs.run(CCSConfig(out=tmp_path / "out", **given))
    assert list(ccs.run(CCSConfig(out=tmp_path / "done", **given)).tables) == list(done[1].tables)


def test_damaged_states_of_an_unfinished_run_are_captured_again(done, data, tmp_path, monkeypatch):
    again = CCSConfig(model="bundled", data=str(data), out=tmp_path / "out", **QUICK)
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "train_place", 1)
        with pytest.raises(KeyboardInterrupt):
            ccs.run(again)
    damage_end(tmp_path / "out" / "states" / "shards" / "000000.safetensors")
    ccs.run(again)
    assert content(tmp_path / "out") == content(done[0])


@pytest.mark.parametrize("kept", ["states/manifest.json", "shards/000000.parquet", "shards/000002.parquet"])
def test_a_run_that_stops_while_it_writes_ends_in_the_same_bytes(done, data, tmp_path, monkeypatch, kept):
    again = CCSConfig(model="bundled", data=str(data), out=tmp_path / "out", **QUICK)
    with monkeypatch.context() as patch:
        interrupt_when(patch, (tmp_path / "out" / kept).exists)
        with pytest.raises(KeyboardInterrupt):
            ccs.run(again)
    assert not (tmp_path / "out" / "results.parquet").exists()
    ccs.run(again)
    assert content(tmp_path / "out") == content(done[0])
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_failure_before_anything_was_kept_leaves_nothing(config, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probing.runs.capture.stages._new_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ccs.run(config())
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataInvalid, match=r"no row could be read \(192 too_long\); .* 8 tokens, the limit is 2"):
        ccs.run(config(max_length=2))


def test_memory_that_is_not_there_is_said_before(config, monkeypatch):
    monkeypatch.setattr(common_states, "free_memory", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"probing resid_post:1 \(24 pairs of width 64\) needs about .* take fewer"):
        ccs.run(config())


# Models and tokens


def test_an_encoder_is_read_at_its_first_token(config, tmp_path):
    made = families.make("bert")
    made.model.save_pretrained(tmp_path / "bert")
    made.tokenizer.save_pretrained(tmp_path / "bert")
    report = ccs.run(config(model=str(tmp_path / "bert")))
    assert report.facts["rows_by_status"] == {"ok": 24}
    assert "the first token (text): '<|bos|>' in yes forms; '<|bos|>' in no forms" in notes(report)
    assert open_store(tmp_path / "out" / "states").facts["request"]["pooling"] == "first"


def test_a_chat_is_read_at_the_answer(config, tmp_path):
    report = ccs.run(config(chat=True, places="resid_post:2"))
    assert report.facts["rows_by_status"] == {"ok": 24}
    assert "the last token (response): " in notes(report)
    assert "Yes" in notes(report).partition("in yes forms")[0]
    assert "No" in notes(report).partition("in yes forms")[2].partition("in no forms")[0]
    form = read_lines(tmp_path / "out" / "forms.jsonl")[0]
    assert form["text"][0]["role"] == "user"
    assert form["response"] == [{"role": "assistant", "content": "Yes"}]


def test_states_without_any_contrast_name_the_token(config):
    with pytest.raises(DataInvalid, match=r"very same state in all 24 pairs; what is read is the first token .*before"):
        ccs.run(config(token="first"))
    assert not config().out.exists()  # found before anything is captured


# Pairs that cannot be read


def test_pairs_that_are_too_long_are_left_out(config, tmp_path):
    rows = statements()
    long = {"id": "long", "statement": "A bomb " * 200 + ".", "opposite": "No.", "label": True, "category": "weapons"}
    data = write(tmp_path / "data.jsonl", [*rows[:3], {**long, "formulation": "negation"}, *rows[3:]])
    report = ccs.run(config(data=str(data), max_length=100, replace_word="", distractor=""))
    assert report.facts["rows_by_status"] == {"ok": 24, "too_long": 1}
    assert report.facts["problems"][0]["id"] == "long"
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    row = pairs.set_index("id").loc["long"]
    assert row["status"] == "too_long"
    assert row["detail"].startswith("A1: ")
    assert row[["fold", "place", *(f"ccs_{form}" for form in FORMS)]].isna().all()
    ccs.run(config(out=tmp_path / "without", max_length=100, replace_word="", distractor=""))
    other = pd.read_parquet(tmp_path / "without" / "pairs.parquet")
    assert pairs[pairs["id"] != "long"].reset_index(drop=True).equals(other.astype(pairs.dtypes.to_dict()))


def test_pairs_with_the_same_state_in_both_forms_are_left_out(config, tmp_path, caplog):
    """A tokenizer-made accident, here made by hand: two forms of one pair get the states of each other."""
    plain = parts._find_alike

    def alike(forms, pairs, places):
        same, skipped = plain(forms, pairs, places)
        same[[4, 7]] = True
        return same, skipped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_find_alike", alike)
        report = ccs.run(config())
    assert report.facts["rows_by_status"] == {"ok": 22, "same_state": 2}
    assert "2 of 24 pairs have the same state" in caplog.text
    assert "'.' in yes forms" in caplog.text
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    assert pairs.index[pairs["status"] == "same_state"].tolist() == [4, 7]


@pytest.mark.parametrize("normalization", ["l2", "none"])
def test_a_pair_with_a_state_of_extreme_norm_is_named(config, monkeypatch, normalization):
    plain = ActivationStore.read

    def stretched(store, place, *rest):
        states = plain(store, place, *rest).clone()
        states[store.ids.index(f"{statements()[4]['id']}#N1")] *= 24_000 / 42
        return states

    monkeypatch.setattr(ActivationStore, "read", stretched)
    report = ccs.run(config(places="resid_post:1", normalization=normalization))
    (row,) = report.tables["Places where some rows have a norm far above the others"].to_dict("records")
    assert (row["place"], row["rows"], row["ids"]) == ("resid_post:1", 1, str(statements()[4]["id"]))
    assert row["largest norm"] > 100 * row["median norm"]
    said = {"l2": "which --normalization l2 divides out", "none": "and can decide where a probe lies"}[normalization]
    assert "resid_post:1: 1 pair has a norm of up to" in notes(report)
    assert said in notes(report)


def test_as_little_as_possible(config, tmp_path):
    """Tables have columns without any number then, and can be shown."""
    report = ccs.run(
        config(restarts=1, pairings=0, refits=0, random=1, permutations=1, resamples=1, distractor="", replace_word="")
    )
    restarts = report.tables["Restarts of CCS, trained on every pair"]
    assert restarts["agreement"].isna().all()
    assert restarts["distinct optima"].eq(1).all()
    assert "Restarts of CCS" in render(report.tables)
    assert "With fewer than 19 draws (1 random, 1 permutations) no p-value can reach 0.05" in notes(report)
    assert not {"marker:change", "distractor"} & set(pd.read_parquet(tmp_path / "out" / "controls.parquet")["control"])


# Folds and notes


@pytest.mark.parametrize("column", ["category", "formulation", "object"])
def test_folds_keep_the_values_of_a_column_together(config, tmp_path, column):
    rows = statements()
    if column == "formulation":
        rows = [{**row, "formulation": f"of {row['category']}"} for row in rows]
    data = write(tmp_path / "data.jsonl", rows)
    ccs.run(config(data=str(data), split_by=column, places="resid_post:1"))
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet")
    values = pd.Series([row[column] for row in rows])
    assert pairs["fold"].groupby(values).nunique().eq(1).all()
    assert pairs["fold"].nunique() == 3


@pytest.mark.parametrize("nothing", [None, " ", float("nan")])
def test_a_value_to_split_by_that_is_missing_is_none(config, tmp_path, nothing):
    rows = [{**row, "topic": nothing if at in (3, 4) else at % 5} for at, row in enumerate(statements())]
    data = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataInvalid, match=f"pair '{rows[3]['id']}' has no topic to split by"):
        ccs.run(config(data=str(data), split_by="topic"))


def test_truth_that_is_always_in_the_statement_is_said(config, tmp_path, done):
    rows = [row if row["label"] else row | {"statement": row["opposite"], "opposite": row["statement"], "label": True}
            for row in statements()]  # fmt: skip
    report = ccs.run(config(data=str(write(tmp_path / "data.jsonl", rows))))
    assert "In 100% of the pairs the statement is the true one: truth and wording cannot be told apart" in notes(report)
    assert "cannot be told apart" not in notes(done[1])


def test_labels_of_no_meaning_are_not_found(tmp_path):
    """Labels drawn at random over the bundled statements: no probe finds them, and none says so."""
    rows = read_lines(bundled_data("statements"))
    rows = [row for row in rows if row["formulation"] == "negation"]
    generator = np.random.default_rng(5)
    data = write(tmp_path / "data.jsonl", [row | {"label": bool(generator.integers(2))} for row in rows])
    options = QUICK | {"permutations": 200, "refits": 5, "pairings": 0}
    report = ccs.run(
        CCSConfig(model="bundled", data=str(data), out=tmp_path / "out", places="resid_post:2", distractor="",
                  replace_word="", **options)
    )  # fmt: skip
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    here = results[(results["place"] == "chosen inside folds") & (results["metric"] == "esa")].set_index("probe")
    assert here.loc["ccs", "p_labels"] > 0.05
    assert (here["value"] - 0.5).abs().max() < 0.15
    assert "does not tell true from false statements better than chance" in notes(report)


# Bad input


def bad(change):
    rows = [dict(row) for row in statements()]
    return change(rows) or rows


def as_long(rows):
    return [
        {"id": f"{row['id']}-{sign}", "pair": row["id"], "text": row[side], "polarity": sign,
         "label": row["label"] == (sign == "+")}
        for row in rows for side, sign in (("statement", "+"), ("opposite", "-"))
    ]  # fmt: skip


DATA = {
    "a pair without its partner": (lambda rows: as_long(rows)[:-1], "has no other row, so no partner"),
    "one polarity": (lambda rows: [r for r in as_long(rows) if r["polarity"] == "+"], "one polarity only"),
    "twice in a pair": (lambda rows: [*as_long(rows), as_long(rows)[0]], "has 3 rows, where a pair has two"),
    "true and false": (
        lambda rows: [*rows, {**rows[0], "id": "x", "statement": rows[0]["opposite"], "opposite": "Else."}
                      | {"label": rows[0]["label"]}],
        "by its label here, but ",
    ),
    "two pairs": (lambda rows: rows[:1] + rows[-1:], "2 pairs make 2 groups that share no text; 3 folds need as many"),
    "no label": (lambda rows: [{k: v for k, v in row.items() if k != "label"} for row in rows],
                 "no column of the label"),
    "a label that is none": (lambda rows: [{**rows[0], "label": "perhaps"}, *rows[1:]], "'perhaps' in column 'label'"),
    "nothing": (lambda rows: [{}][:0], "the file is empty"),
}  # fmt: skip


@pytest.fixture
def refused(probing):
    """What is said of a run that leaves with 2."""

    def run(data, out, *more):
        status, _, errors = probing("ccs", *override(as_options({"data": data, "out": out, **QUICK}), more))
        assert status == 2
        assert "Traceback" not in errors
        return errors

    return run


@pytest.mark.parametrize("kind", DATA)
def test_bad_data_leave_with_2_and_a_reason(tmp_path, refused, kind):
    change, message = DATA[kind]
    data = write(tmp_path / "data.jsonl", change(statements()))
    assert message in refused(data, tmp_path / "out", "--model", "bundled")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template", "{answer}"], "must hold {statement} exactly once"),
        (["--template", "{statement}"], "write {answer} where the answer belongs"),
        (["--answers", "Yes"], "answers are a yes and a no, separated by a comma, not 'Yes'"),
        (["--answers", "Yes,Yes"], "two different texts"),
        (["--max-length", "2"], "no row could be read (192 too_long); the first: "),
        (["--store", "somewhere"], "give one of --model and --store"),
        (["--folds", "2"], "folds must be at least 3"),
        (["--split-by", "colour"], "there is no column 'colour' to split by; give 'pair' or one of id, statement"),
        (["--data", "missing.jsonl"], "no such file"),
        (["--label-column", "truth"], "there is no column 'truth'"),
        (["--places", "resid_mid:1"], "'resid_mid' is no place in a model"),
        (["--places", "resid_post:99"], "has 4 layers, 0 to 3"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--learning-rate", "-1"], "--learning-rate must be at least 0, not -1"),
        (["--learning-rate", "nan"], "--learning-rate must be a number"),
        (["--inverse-penalty", "0"], "--inverse-penalty must be above 0"),
        (["--question", "Is {statement} true?"], "a question is asked with --chat only"),
        (["--replace-word", "not"], "a replacement is written OLD=NEW"),
        (["--distractor", " "], "the distractor must be a word"),
        (["--loss", "other"], "loss"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_options_leave_with_2_and_a_reason(data, tmp_path, refused, arguments, message):
    assert message in " ".join(refused(data, tmp_path / "out", *override(["--model", "bundled"], arguments)).split())


def test_neither_a_model_nor_a_store(data, tmp_path, refused):
    assert "give one of --model and --store" in refused(data, tmp_path / "out")


def test_the_output_is_a_file(data, tmp_path, refused):
    (tmp_path / "out").write_text("mine")
    assert "is a file; give a folder as --out" in refused(data, tmp_path / "out", "--model", "bundled")
    assert f"{tmp_path / 'out'} is no folder" in refused(data, tmp_path / "out" / "within", "--model", "bundled")
    assert (tmp_path / "out").read_text() == "mine"
