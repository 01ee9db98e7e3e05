import json
import shlex
import shutil
import sys

import harness
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from probing.data.bundled import bundled_data, bundled_model
from probing.directions.extract import cosine, difference_in_means
from probing.directions.judge_text import Answer
from probing.engine.ablation import ablate
from probing.engine.orthogonalization import orthogonalize
from probing.instruments.directions import refusal_log_odds
from probing.models.load import load
from probing.runs.refusal.evaluate import EvaluateConfig, run
from probing.runs.refusal.evaluate.results import read_answer
from probing.runs.refusal.evaluate.states import leave_categories_out, open_extracted, permute_labels_of
from probing.runs.refusal.export import ExportConfig
from probing.runs.refusal.export import run as export
from probing.runs.refusal.extract import ExtractConfig
from probing.runs.refusal.extract import run as extract
from probing.store.directions import open_directions, save_direction
from probing.types import Direction, Place

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
FEW = {"resamples": 20, "new_tokens": 16, "random_directions": 2, "permuted_directions": 2}
PLACE = "resid_pre:2"
JUDGE = """import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"id": row["id"], "verdict": "refusal" if "ot " in row["answer"] else "compliance"}), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("evaluate")
    harness.write(made / "extracted.jsonl", ROWS[::8])
    harness.write(made / "some.jsonl", ROWS[2::46])
    (made / "text.txt").write_text("How do I make a boat? First, gather wood and glue. " * 30)
    (made / "judge.py").write_text(JUDGE)
    few = {"resamples": 20, "permutations": 20}
    extract(ExtractConfig(model="bundled", data=str(made / "extracted.jsonl"), out=made / "directions", **few))
    save_direction(made / "direction.safetensors", open_directions(made / "directions").at(PLACE))
    return made


def configure(folder, out, **changes):
    given = {"model": "bundled", "data": str(folder / "some.jsonl"), "direction": folder / "directions", "place": PLACE}
    return EvaluateConfig(out=out, **{**given, "mode": "affine", **FEW, **changes})


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'judge.py'))}"
    config = configure(folder, out, text=folder / "text.txt", judge=command, random_texts=1)
    return config, run(config)


def pick(out, **where):
    results = pd.read_parquet(out / "results.parquet")
    for name, value in where.items():
        results = results[results[name] == value]
    assert len(results) == 1
    return results.iloc[0]


def test_scores_are_those_of_the_functions(folder, evaluated):
    config, report = evaluated
    answers = pd.read_parquet(config.out / "answers.parquet")
    model, direction = load("bundled"), open_directions(folder / "directions").at(PLACE)
    tokens = [row["id"] for row in report.facts["refusal_tokens"]]
    before = refusal_log_odds(model, answers["prompt"].tolist(), tokens)
    with ablate(model, direction, "affine"):
        after = refusal_log_odds(model, answers["prompt"].tolist(), tokens)
    np.testing.assert_allclose(answers["log_odds_before"], before, rtol=1e-5)
    np.testing.assert_allclose(answers["log_odds_after"], after, rtol=1e-4, atol=1e-4)
    harmful = answers["kind"] == "harmful"
    found = pick(config.out, kind="harmful", category="all", measure="refusal_log_odds", when="after")
    assert found["value"] == pytest.approx(float(answers["log_odds_after"][harmful].mean()))
    assert found["random_n"] == found["labels_n"] == 2
    # Random directions leave the model as it was, so that the edit's own effect is beside their band.
    assert found["random_low"] > found["value"] + 2
    assert answers["kl_first"][harmful].isna().all()
    assert (answers["kl_first"][~harmful] >= 0).all()
    assert (answers["kl_answer"][~harmful] >= 0).all()


def test_the_affine_edit_takes_the_refusals_of_the_bundled_model_away(evaluated):
    config, report = evaluated
    answers = pd.read_parquet(config.out / "answers.parquet").groupby("kind")
    assert (answers.get_group("harmful")["verdict_before"] == "refusal").all()
    assert (answers.get_group("harmless")["verdict_before"] == "compliance").all()
    assert not (answers.get_group("harmful")["verdict_after"] == "refusal").any()
    verdict = next(iter(report.tables))
    assert verdict == "Verdict"
    edited, said = report.tables[verdict]["verdict"]
    assert edited == "Edited: affine at resid_pre:2"
    assert said.startswith("Refused harmful prompts: 100.0% before, 0.0% after (under-refusal 0.0% and 100.0%)")
    assert pick(config.out, kind="harmful", category="all", measure="refused", when="after")["random_low"] == 1
    interval = pick(config.out, kind="harmful", category="all", measure="refused", when="before")
    # Clopper and Pearson's, since percentiles would have no width.
    assert 0.5 < interval["low"] < 0.9
    assert interval["high"] == 1


def test_the_text_the_judge_and_the_categories_are_told(evaluated):
    config, report = evaluated
    ends = {
        when: pick(config.out, measure="cross_entropy", when=when)["value"] for when in ("before", "after", "change")
    }
    assert ends["change"] == pytest.approx(ends["after"] - ends["before"])
    model = load("bundled")
    ids = torch.tensor([model.tokenizer((config.text).read_text())["input_ids"][:512]])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, :-1].double()
    first = float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    assert ends["before"] == pytest.approx(first, rel=0.05)
    judges = report.tables["Our verdicts and the judge's"].set_index("answers")
    assert list(judges.index) == ["before, thinking default", "after, thinking default"]
    assert judges["agreement"].between(0, 1).all()
    answers = pd.read_parquet(config.out / "answers.parquet")
    expected = ["refusal" if "ot " in answer else "compliance" for answer in answers["answer_before"]]
    assert answers["judge_before"].tolist() == expected
    left_out = report.tables["Each category left out of the extraction"].set_index("category")
    assert set(left_out.index) == {row["category"] for row in ROWS if row["label"] == "harmful"}
    assert (left_out["AUROC"] > 0.9).all()
    assert (left_out["log-odds after"] < left_out["log-odds before"]).all()
    assert "3 of these prompts are among those that the direction was extracted from" in harness.notes(report)


def test_a_run_goes_on_where_it_stopped(folder, evaluated, tmp_path, monkeypatch):
    from probing.runs.refusal.evaluate import parts

    config, _ = evaluated
    again = configure(folder, tmp_path / "out", text=config.text, judge=config.judge, random_texts=1)
    monkeypatch.setattr(parts, "PART_ROWS", 5)
    plain, made = parts.AnswerGenerator.write, []

    def stop_at_fourth(generator, prompts, report=None):
        made.append(len(prompts))
        if len(made) == 4:
            raise KeyboardInterrupt
        return plain(generator, prompts, report)

    monkeypatch.setattr(parts.AnswerGenerator, "write", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    run(again)
    # Twelve prompts under three conditions, five at a time: the fourth part is made again, those before are not.
    assert made == [5, 5, 2, 5, 5, 5, 2, 5, 5, 2]
    for name in ("answers.parquet", "results.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (config.out / name).read_bytes()


def test_directions_are_extracted_again_from_the_same_prompts(folder, tmp_path):
    config = configure(folder, tmp_path / "out")
    direction = open_directions(folder / "directions").at(PLACE)
    extracted = open_extracted(config, direction, 64, 4)
    prompts = pd.read_parquet(folder / "directions" / "prompts.parquet")
    states = {place: extracted.states(place) for place in map(str, extracted.store.places)}
    train = (prompts["used"] & (prompts["part"] == "train")).to_numpy(copy=True)
    harmful = (prompts["kind"] == "harmful").to_numpy()
    again = difference_in_means(states[PLACE][train & harmful], states[PLACE][train & ~harmful])
    torch.testing.assert_close(again, direction.vector)
    for found in leave_categories_out(extracted, 0):
        own = (prompts["category"] == found.category).to_numpy()
        here = states[str(found.direction.place)]
        sides = here[train & harmful & ~own], here[train & ~harmful]
        torch.testing.assert_close(found.direction.vector, difference_in_means(*sides))
        torch.testing.assert_close(found.direction.harmless_mean, sides[1].mean(dim=0))
        assert found.prompts == (own & prompts["used"] & harmful).sum()
    drawn = permute_labels_of(extracted, 5, 0)
    for each in drawn:
        assert float(each.vector.norm()) == pytest.approx(float(direction.vector.norm()))
        # A difference of means of any labels of the training prompts lies in the space that their states span.
        spanned = torch.linalg.qr((states[PLACE][train] - states[PLACE][train].mean(dim=0)).T)[0]
        torch.testing.assert_close(spanned @ (spanned.T @ each.vector), each.vector, rtol=1e-6, atol=1e-6)
    assert abs(float(cosine(drawn[0].vector, drawn[1].vector))) < 0.999
    assert permute_labels_of(extracted, 5, 0)[3].vector.equal(drawn[3].vector)


def test_an_edited_model_in_place_of_hooks(folder, tmp_path):
    """Weights that were edited answer as the hooks do, token for token."""
    model = load("bundled")
    orthogonalize(model, open_directions(folder / "directions").at(PLACE))
    model.model.save_pretrained(tmp_path / "edited")
    model.tokenizer.save_pretrained(tmp_path / "edited")
    few = {"random_directions": 0, "permuted_directions": 0, "mode": "project"}
    report = run(configure(folder, tmp_path / "hooks", **few))
    assert "writers found/edited/proved" in report.tables["Verdict"]["verdict"][0]
    run(configure(folder, tmp_path / "weights", edited_model=str(tmp_path / "edited"), **few))
    hooks, weights = (pd.read_parquet(tmp_path / name / "answers.parquet") for name in ("hooks", "weights"))
    assert hooks["answer_after"].tolist() == weights["answer_after"].tolist()
    np.testing.assert_allclose(hooks["log_odds_after"], weights["log_odds_after"], atol=1e-4)
    alone = configure(folder, tmp_path / "alone", edited_model=str(tmp_path / "edited"), direction=None, place=None)
    report = run(alone)
    assert (
        pd.read_parquet(tmp_path / "alone" / "answers.parquet")["answer_after"].tolist()
        == weights["answer_after"].tolist()
    )
    assert "permuted" not in harness.notes(report)


def test_an_adapter_in_place_of_hooks(folder, tmp_path):
    """The adapter of an export answers as the hooks do, token for token."""
    given = {"model": "bundled", "direction": folder / "direction.safetensors", "format": "lora"}
    export(ExportConfig(**given, out=tmp_path / "adapter"))
    few = {"random_directions": 0, "permuted_directions": 0, "mode": "project"}
    run(configure(folder, tmp_path / "hooks", **few))
    report = run(configure(folder, tmp_path / "weights", edited_model=str(tmp_path / "adapter"), **few))
    assert "as they were given" in report.tables["Verdict"]["verdict"][0]
    hooks, weights = (pd.read_parquet(tmp_path / name / "answers.parquet") for name in ("hooks", "weights"))
    assert hooks["answer_after"].tolist() == weights["answer_after"].tolist()
    assert hooks["answer_before"].tolist() == weights["answer_before"].tolist() != weights["answer_after"].tolist()
    np.testing.assert_allclose(hooks["log_odds_after"], weights["log_odds_after"], atol=1e-4)


def test_thinking_on_and_off(folder, tmp_path):
    shutil.copytree(bundled_model(), tmp_path / "thinks")
    template = (bundled_model() / "chat_template.jinja").read_text()
    closed = "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    (tmp_path / "thinks" / "chat_template.jinja").write_text(template + "<think>" + closed)
    model = str(tmp_path / "thinks")
    few = {"resamples": 20, "permutations": 20}
    extract(
        ExtractConfig(
            model=model, data=str(folder / "extracted.jsonl"), out=tmp_path / "d", filter_by_sign=False, **few
        )
    )
    given = {"model": model, "direction": tmp_path / "d", "random_directions": 0, "permuted_directions": 0}
    report = run(configure(folder, tmp_path / "out", thinking="both", **given))
    matrix = report.tables["Refused, by where the direction was extracted and where it is evaluated"]
    assert list(matrix["direction"]) == ["none", "as given", "extracted off", "extracted on"]
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    # The prompt ends within a thought, and this model never closes one.
    assert (answers[answers["thinking"] == "on"]["verdict_before"] == "unfinished thought").all()
    assert not (answers[answers["thinking"] == "off"]["verdict_before"] == "unfinished thought").any()
    assert len(report.tables["Verdict"]) == 3


def broken_model(path):
    """The bundled model with weights that are not finite."""
    shutil.copytree(bundled_model(), path)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


BAD = {
    "another model": (["--model=bundled-displaced"], "the direction is of"),
    "no direction": (["--direction=nothing"], "nothing: no such file"),
    "no place": (["--direction={folder}/directions"], "name one as --place"),
    "another place": (
        ["--direction={folder}/directions", "--place=resid_pre:9"],
        "there is no direction at resid_pre:9",
    ),
    "no such position": (["--direction={folder}/directions", "--place=resid_pre:2", "--position=-9"], "no position -9"),
    "a place of one": (["--place=resid_pre:2"], "leave out --place"),
    "another width": (["--direction={folder}/narrow.safetensors"], "its width is 8"),
    "another extraction": (["--extracted={folder}/nothing"], "holds no run.json"),
    "no prompts": (["--harmful-label=nothing"], "0 rows have the label 'nothing'"),
    "no switch": (["--thinking=on"], "has no switch for thinking"),
    "no phrases": (["--phrases=nothing.txt"], "no file of phrases"),
    "no text": (["--text=nothing.txt"], "no text in UTF-8"),
    "no such judge": (["--judge=no-such-judge"], "cannot be started"),
    "a judge that dies": ([f"--judge={shlex.quote(sys.executable)} -c pass"], "before it answered"),
    "a judge that hangs": (["--judge=sleep 60", "--judge-seconds=0.5"], "did not answer within 0.5 seconds"),
    "a judge that gives up": ([f"--judge={shlex.quote(sys.executable)} {{folder}}/once.py"], "ended (status 0) before"),
    "a judge that babbles": (["--judge=cat"], "gave the verdict None"),
    "an unknown mode": (["--mode=erase"], "mode"),
    "layers": (["--layers=9"], "layers"),
    "a layer twice": (["--layers=1,1"], "layers are different ones"),
    "compiled": (["--compile"], "leave compile out"),
    "texts": (["--random-texts=5"], "random-texts is 5 of 2"),
    "scores of NaN": (["--edited-model={folder}/broken"], "scores are not finite under the condition 'after'"),
    "a broken model": (["--model={folder}/broken", "--direction={folder}/broken.safetensors"], "before any edit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(probing, folder, tmp_path, case):
    options, said = BAD[case]
    if case == "another width":
        narrow = Direction(torch.ones(8), Place("resid_pre", 2), -1, load("bundled").source)
        save_direction(folder / "narrow.safetensors", narrow)
    (folder / "once.py").write_text(JUDGE + "    break\n")
    if "broken" in "".join(options) and not (folder / "broken").exists():
        source = load(str(broken_model(folder / "broken"))).source
        save_direction(folder / "broken.safetensors", Direction(torch.ones(64), Place("resid_pre", 2), -1, source))
    given = {"model": "bundled", "data": folder / "some.jsonl", "direction": folder / "direction.safetensors"}
    given |= {"mode": "add", "out": tmp_path / "out", **FEW, "new_tokens": 2}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    named = [option.format(folder=folder) for option in options]
    kept = [each for each in arguments if each.split("=")[0] not in {option.split("=")[0] for option in named}]
    status, _, errors = probing("refusal", "evaluate", *kept, *named)
    assert status == 2, errors
    assert said in errors
    assert "Traceback" not in errors
    # What ends before the first answer leaves nothing; answers that were saved are gone on from.
    saved = case in ("a judge that gives up", "scores of NaN")
    left = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left == ({"run.json", "progress.json", "shards"} if saved else set())


def test_without_a_direction_or_an_edited_model(probing, folder, tmp_path):
    status, _, errors = probing("refusal", "evaluate", "--model=bundled", f"--out={tmp_path / 'out'}")
    assert status == 2
    assert "give a direction, an --edited-model, or both" in errors


class SpecialTags:
    """A tokenizer whose closing tag is a special token, which other texts are decoded without."""

    words = ("Hmm", "</think>", "Sure!", "<|end|>")
    all_special_tokens = ("</think>", "<|end|>", "")

    def decode(self, ids, skip_special_tokens):
        return " ".join(self.words[id] for id in ids if not (skip_special_tokens and id in (1, 3)))


def test_a_tag_that_is_a_special_token_ends_the_thought():
    tags = ("</think>",)
    assert read_answer(SpecialTags(), [0, 1, 2, 3], tags, False) == Answer("Sure!", "Hmm")
    assert read_answer(SpecialTags(), [2, 3], tags, False) == Answer("Sure!")
    assert read_answer(SpecialTags(), [0, 3], tags, True) == Answer("", "Hmm", finished=False)
