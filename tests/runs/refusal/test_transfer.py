import json

import harness
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.metrics import roc_auc_score

import probing
from probing.data.bundled import bundled_data
from probing.directions.transfer import fit_orthogonal
from probing.errors import DataInvalid, SourceMismatch
from probing.instruments.answers import Generator
from probing.report.tables import render
from probing.runs.refusal.transfer import TransferConfig, parts, run, states
from probing.runs.refusal.transfer.results import OWN_STATES, compare_categories
from probing.runs.refusal.transfer.rows import Shared
from probing.runs.refusal.transfer.tables import _show_matrices
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


def make_shared(turn, seed=0):
    """States of prompts of three categories, of which the first two differ from harmless ones alike."""
    generator = torch.Generator().manual_seed(seed)
    kinds = ["alike", "alike too", "apart", "harmless"] * 12 + ["rare"] * 3
    moves = {"alike": 0, "alike too": 0, "apart": 1, "rare": 1}
    before = torch.randn(len(kinds), 6, generator=generator) * 0.3
    for row, kind in enumerate(kinds):
        if kind in moves:
            before[row, moves[kind]] += 2
    prompts = [
        probing.LabelledPrompt(str(row), kind, kind != "harmless", category=None if kind == "harmless" else kind)
        for row, kind in enumerate(kinds)
    ]
    held = np.arange(len(kinds)) // 4 % 2 == 1
    flags = np.array([kind != "harmless" for kind in kinds])
    place = probing.Place("resid_pre", 1)
    return Shared(prompts, flags, held, before, before @ turn, place=place, tokens=[5], map_rows=torch.arange(3))


def test_the_matrix_by_category_is_what_scikit_learn_says(tmp_path):
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    shared = make_shared(turn)
    config = TransferConfig(model="m", from_direction=tmp_path, out=tmp_path, resamples=50, permutations=100)
    found = compare_categories(config, shared, fit_orthogonal(shared.before, shared.after))
    assert found.left_out == {"rare": (3, 0)}
    rows = pd.DataFrame(found.rows).set_index(["through", "extracted_in", "evaluated_in"])
    names = ["alike", "alike too", "apart"]
    assert len(rows) == 2 * 9
    after, held = shared.after.double().numpy(), shared.held_out
    kinds = np.array([prompt.category or "harmless" for prompt in shared.prompts])
    for source in names:
        means = [after[(kinds == kind) & ~held].mean(axis=0) for kind in (source, "harmless")]
        for target in names:
            judged = np.isin(kinds, [target, "harmless"]) & held
            expected = roc_auc_score(kinds[judged] == target, after[judged] @ (means[0] - means[1]))
            row = rows.loc[OWN_STATES, source, target]
            assert row["auroc"] == pytest.approx(expected, abs=1e-12)
            assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
            assert (row["extracted_n"], row["evaluated_n"], row["harmless_n"]) == (6, 6, 6)
            # The states of the other model are the same, turned, and so is the direction that the map carries.
            assert rows.loc["orthogonal map", source, target]["auroc"] == pytest.approx(expected, abs=1e-12)
            alike = {source, target} <= {"alike", "alike too"} or source == target
            assert (row["p"] <= 0.05) == alike or expected < 0.2
            assert row["labels_low"] <= row["labels_median"] <= row["labels_high"]
    assert rows.loc[OWN_STATES, "alike", "alike too"]["auroc"] > 0.95
    shown = _show_matrices(found)
    assert [len(table) for table in shown.values()] == [4, 4]
    # Unshortened, its longest line is far from 80 columns.
    assert max(len(line) for line in render(shown).splitlines() if not line.startswith("AUROC")) <= 36
    assert "1 alike        6 1.00* 1.00*" in render(shown)


def test_nothing_in_the_states_gives_what_the_nulls_say(tmp_path):
    """Without a difference p is uniform, and the AUROC lies in the band of permuted labels as often as it should."""
    config = TransferConfig(model="m", from_direction=tmp_path, out=tmp_path, resamples=2, permutations=20)
    values, inside = [], []
    for seed in range(8):
        shared = make_shared(torch.eye(6), seed)
        noise = torch.randn(shared.after.shape, generator=torch.Generator().manual_seed(seed))
        bare = Shared(
            shared.prompts, shared.harmful, shared.held_out, noise, noise, shared.place, shared.tokens, shared.map_rows
        )
        found = compare_categories(config, bare, fit_orthogonal(noise, noise))
        own = [row for row in found.rows if row["through"] == OWN_STATES]
        values += [row["p"] for row in own]
        inside += [row["labels_low"] <= row["auroc"] <= row["labels_high"] for row in own]
    assert 0.35 < np.mean(values) < 0.65
    assert 0.01 < np.mean(np.array(values) <= 0.1) < 0.2
    assert np.mean(inside) > 0.85


TEXTS = {"texts": True, "new_tokens": 3, "resamples": 10, "permutations": 5, "random_edits": 1}
KEPT = ("answers.parquet", "results.parquet", "summary.json", "direction.safetensors")


def test_a_run_goes_on_where_it_was_interrupted(saved, tmp_path, monkeypatch):
    few = harness.write(tmp_path / "few.jsonl", ROWS[:: len(ROWS) // 24])
    target = tiny.save_model(tmp_path / "target")
    given = {"model": str(target), "from_direction": saved, **TEXTS, "data": str(few), "refusal_tokens": "5,6"}
    owners = {
        "read_states": states,
        "read_refusals": states,
        "measure_effects": parts,
        "fit_orthogonal": parts,
        "write": Generator,
    }
    with monkeypatch.context() as patch:
        plain = {name: harness.note_calls(patch, owner, name) for name, owner in owners.items()}
        run(TransferConfig(out=tmp_path / "plain", **given))
    counts = {name: len(calls) for name, calls in plain.items()}
    assert counts == {"read_states": 2, "read_refusals": 1, "measure_effects": 5, "fit_orthogonal": 5, "write": 8}
    made = dict.fromkeys(counts, 0)
    for name, stop in [("measure_effects", 3), ("write", 5), ("write", None)]:
        with monkeypatch.context() as patch:
            calls = {
                each: harness.note_calls(patch, owner, each, stop if each == name else None)
                for each, owner in owners.items()
            }
            if stop is None:
                run(TransferConfig(out=tmp_path / "broken", **given))
            else:
                with pytest.raises(KeyboardInterrupt):
                    run(TransferConfig(out=tmp_path / "broken", **given))
        made = {each: count + len(calls[each]) for each, count in made.items()}
    # Nothing was made twice.
    assert made == counts
    for name in KEPT:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("plain", "broken"))
        assert one == other, name
    assert not (tmp_path / "broken" / "shards").exists()

    answers = pd.read_parquet(tmp_path / "plain" / "answers.parquet")
    assert set(answers["kind"] + answers["edit"]) == {"harmfulremoved", "harmlessadded"}
    held = read_held_out(tmp_path / "plain")
    assert len(answers) == held
    model = probing.load(str(target))
    direction = probing.open_direction(tmp_path / "plain" / "direction.safetensors")
    first = answers.iloc[0]
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": first["prompt"]}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with probing.ablate(model, direction), torch.no_grad():
        written = model.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert first["answer_transferred"] == model.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert first["verdict_before"] in ("refusal", "soft refusal", "compliance", "degenerate", "empty")


def read_held_out(folder):
    return json.loads((folder / "summary.json").read_text())["tables"]["Models"][0]["held out"]


def test_bad_input(some, saved, tmp_path):
    given = {"from_direction": saved, "out": tmp_path / "o", **FEW}
    with pytest.raises(SourceMismatch, match="the direction is of bundled, not of bundled-displaced"):
        run(TransferConfig(model="bundled", from_model="bundled-displaced", data=str(some), **given))
    few = harness.write(tmp_path / "few.jsonl", ROWS[:: len(ROWS) // 12])
    with pytest.raises(DataInvalid, match="are needed"):
        run(TransferConfig(model="bundled", data=str(few), **given))
    assert not (tmp_path / "o").exists()
