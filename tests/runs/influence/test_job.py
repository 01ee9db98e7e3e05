"""probing influence: its numbers against autograd pair by pair, resumed runs, and what is refused."""

import dataclasses
import json
import math
import os
import random

import numpy as np
import pandas as pd
import peft
import pytest
import tiny
import torch
from harness import kill, make_pairs, note_calls, notes, read_lines, write

import probing
from probing import LanguageModel
from probing.data.bundled import bundled_data
from probing.errors import DataInvalid, NotFinite, OutOfMemory, ProbingError, SourceMismatch, UsageError
from probing.instruments.pair_scores import as_pairs
from probing.report.influence_tables import DROP_TITLE, SPREAD_TITLE
from probing.report.sections.influence import QUESTION
from probing.runs import influence, report, show
from probing.runs.influence import results, stages, states
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.models import cut_parameters
from probing.runs.influence.parts import directions
from probing.runs.influence.rows import draw_order
from probing.runs.report.config import ReportConfig
from probing.tokens.pairs import tokenize_pairs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
SGD = {"optimizer": "sgd", "null_draws": 0}
WITHIN = 1e-4
"""Largest difference from autograd, of the largest number of the column: what central differences leave."""


@pytest.fixture
def files(tmp_path):
    """Pairs of a training and held-out pairs."""
    return write(tmp_path / "pairs.jsonl", make_pairs(20)), write(tmp_path / "held.jsonl", make_pairs(6, seed=1))


@pytest.fixture
def config(model_folder, files, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(files[0]), "target": str(files[1]), "out": tmp_path / "out"}
        return InfluenceConfig(
            **{**values, "shard_pairs": 8, "batch_pairs": 4, "null_draws": 2, "step": 0.01, **changes}
        )

    return make


def frame_of(folder):
    return pd.read_parquet(folder / "influence.parquet")


def logprob(model, ids, prompt_tokens):
    """ln p of a response by the whole model, one sequence, no padding, in the dumbest form."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return logits[prompt_tokens - 1 : -1].gather(1, torch.tensor(ids[prompt_tokens:])[:, None]).sum()


class Oracle:
    """Gradients of every pair in float64, as long vectors, and what follows from them by the definitions."""

    def __init__(self, language_model, parameters, pairs, held):
        self.model, self.parameters = language_model.model, parameters
        tokenized = [tokenize_pairs(language_model.tokenizer, as_pairs(rows)) for rows in (pairs, held)]
        self.own, self.held = ([self.sides(pair) for pair in each] for each in tokenized)

    def sides(self, pair):
        return [self.gradient(ids, pair.prompt_tokens) for ids in (pair.chosen, pair.rejected)]

    def gradient(self, ids, prompt_tokens):
        said = logprob(self.model, ids, prompt_tokens)
        found = torch.autograd.grad(said, self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in found])

    def target(self, quantity):
        return sum(plus - minus * (quantity == "margin") for plus, minus in self.held) / len(self.held)

    def steps(self, slope=0.05):
        return [slope * (plus - minus) for plus, minus in self.own]

    def square(self, order, batch):
        steps = self.steps()
        batches = [order[at : at + batch] for at in range(0, len(order), batch)]
        return sum((sum(steps[i] for i in some) / len(some)) ** 2 for some in batches) / len(batches)

    def columns(self, direction):
        """What the columns should be for the target's direction."""
        chosen, rejected = (np.array([float(direction @ each[side]) for each in self.own]) for side in (0, 1))
        return {"target_chosen": chosen, "target_rejected": rejected, "influence": 0.05 * (chosen - rejected)}

    def joint(self, direction):
        return {
            name: np.array([float(direction @ each[side]) for each in self.own])
            for side, name in enumerate(("joint_rate", "joint_rejected_rate"))
        }


def assert_near(frame, expected, within=WITHIN):
    for name, values in expected.items():
        np.testing.assert_allclose(frame[name], values, rtol=0, atol=within * np.abs(values).max(), err_msg=name)


def double(seed=0):
    """A tiny model in float64, in which nothing but the curvature is left of the error of central differences."""
    plain = tiny.make_model(seed=seed)
    return LanguageModel(plain.model.double(), plain.tokenizer)


def measure(language_model, files, folder, **changes):
    """What a run with a model in memory writes, and its record."""
    pairs, held = (read_lines(path) for path in files)
    given = {"target": held, "shard_pairs": 8, "batch_pairs": 4, "joint": True, "null_draws": 0, **changes}
    probing.influence(model=language_model, data=pairs, out=folder, **given)
    return frame_of(folder), json.loads((folder / "run.json").read_text())


def make_oracle(files, language_model=None):
    plain = language_model or double()
    return Oracle(plain, list(plain.model.parameters()), *map(read_lines, files))


@pytest.mark.parametrize("quantity", ["chosen", "margin"])
def test_sgd_equals_autograd_pair_by_pair(files, tmp_path, quantity):
    frame, facts = measure(double(), files, tmp_path / "out", quantity=quantity, optimizer="sgd")
    oracle = make_oracle(files)
    assert_near(frame, oracle.columns(oracle.target(quantity)))
    assert_near(frame, oracle.joint(sum(oracle.steps()) / 20))
    norm = facts["directions"]["target"][0]["norm"]
    assert norm == pytest.approx(float(oracle.target(quantity).norm()), rel=1e-5)
    np.testing.assert_allclose(frame["influence"], 0.05 * (frame["target_chosen"] - frame["target_rejected"]))


def test_float32_differs_from_autograd_by_rounding(config, files, tmp_path):
    influence.run(config(joint=True, step=None, **SGD))
    oracle = make_oracle(files)
    assert_near(frame_of(tmp_path / "out"), oracle.columns(oracle.target("chosen")), 1e-3)
    assert_near(frame_of(tmp_path / "out"), oracle.joint(sum(oracle.steps()) / 20), 1e-3)


@pytest.mark.parametrize("joint", [False, True])
def test_adamw_divides_by_the_mean_square_of_batches(files, tmp_path, joint):
    frame, facts = measure(double(), files, tmp_path / "out", joint=joint, optimizer_batches=2)
    oracle, order = make_oracle(files), draw_order(20, 0)
    # Blocks of 8 pairs are whole batches of 4, and so is what is left.
    square = oracle.square(order if joint else order[:8], 4)

    def through(gradient):
        return torch.where(square == 0, 0, gradient / (square.sqrt() + 1e-8))

    assert_near(frame, oracle.columns(through(oracle.target("chosen"))))
    if joint:
        assert_near(frame, oracle.joint(through(sum(oracle.steps()) / 20)))
    own = oracle.target("chosen")
    lost = float(own[square == 0].square().sum() / own.square().sum())
    assert facts["directions"]["target"][0]["lost"] == pytest.approx(lost, rel=1e-6)


def test_the_parameters_of_an_adapter_are_those_that_count_where_there_is_one(files, tmp_path):
    plain = tiny.make_model()
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(plain.model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    own = [parameter for name, parameter in wrapped.named_parameters() if "lora_" in name]
    for parameter in own:
        parameter.data.normal_(0, 0.05)
    wrapped.double()
    frame, facts = measure((wrapped, plain.tokenizer), files, tmp_path / "out", optimizer="sgd")
    own = [parameter.requires_grad_() for name, parameter in wrapped.named_parameters() if "lora_" in name]
    assert (facts["parameters"], facts["moved_parameters"]) == ("lora", sum(parameter.numel() for parameter in own))
    oracle = Oracle(LanguageModel(wrapped, plain.tokenizer), own, *map(read_lines, files))
    assert_near(frame, oracle.columns(oracle.target("chosen")))
    assert_near(frame, oracle.joint(sum(oracle.steps()) / 20))


def test_parameters_in_parts_are_those_as_a_whole(files, tmp_path):
    whole, _ = measure(double(), files, tmp_path / "whole", step=1e-3)
    cut, facts = measure(double(), files, tmp_path / "cut", parameter_parts=3, null_draws=2, step=1e-3)
    names = ("target_chosen", "target_rejected", "influence", "joint_rate", "joint_rejected_rate")
    assert_near(cut, {name: whole[name].to_numpy() for name in names})
    assert len(facts["directions"]["target"]) == 3
    assert len(pd.read_parquet(tmp_path / "cut" / "null.parquet")) == 4 * 20


def test_parameters_are_cut_by_their_sizes():
    sizes = [6, 1, 1, 4, 2, 2, 8]
    cut = cut_parameters([torch.nn.Parameter(torch.zeros(size)) for size in sizes], 3)
    assert [[p.numel() for p in part] for part in cut] == [[6, 1, 1], [4, 2, 2], [8]]
    assert len(cut_parameters([torch.nn.Parameter(torch.zeros(5))], 3)) == 1


def test_responses_and_refusals_of_a_file_are_targets(files, tmp_path):
    rows = read_lines(files[1])
    answers = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    given = {"optimizer": "sgd", "joint": False}
    frame, _ = measure(double(), files, tmp_path / "a", quantity="response", target=answers, **given)
    oracle = make_oracle(files)
    assert_near(frame, oracle.columns(oracle.target("chosen")))
    prompts = [
        {"text": "Is it ok?", "label": "harmful"},
        {"text": "Sure, here is", "label": "harmless"},
        {"text": "The answer", "label": "harmful"},
    ]
    given |= {"quantity": "refusal", "target": prompts, "refusal_text": "No"}
    frame, facts = measure(double(), files, tmp_path / "b", **given)
    tokenizer, gradients = tiny.make_tokenizer(), []
    for row in (prompts[0], prompts[2]):
        start = f"<|bos|><|user|>{row['text']}<|eos|>\n<|assistant|>"
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, f"{start}No")]
        gradients.append(oracle.gradient(ids[1], len(ids[0])))
    assert_near(frame, oracle.columns(sum(gradients) / 2))
    assert (facts["target"]["rows"], facts["target"]["of"]) == (2, 2)


def test_the_pilot_trains_and_leaves_the_model_as_it_was(config, files, tmp_path):
    answer = influence.run(config(joint=True, pilot_steps=3, learning_rate=1e-3, null_draws=0))
    frame = frame_of(tmp_path / "out")
    plain = tiny.make_model()
    pairs = tokenize_pairs(plain.tokenizer, as_pairs(read_lines(files[0])))
    with torch.no_grad():
        before = [float(logprob(plain.model, pair.chosen, pair.prompt_tokens)) for pair in pairs]
    train_plainly(plain.model, [pairs[at] for at in draw_order(20, 0)[:12]])
    with torch.no_grad():
        after = [float(logprob(plain.model, pair.chosen, pair.prompt_tokens)) for pair in pairs]
    change = np.array(after) - np.array(before)
    np.testing.assert_allclose(frame["pilot_change"], change, atol=1e-3 * np.abs(change).max())
    np.testing.assert_allclose(frame["chosen_logprob"], before, rtol=1e-4)
    joint = next(table for title, table in answer.tables.items() if title.startswith("All pairs trained together"))
    assert "Spearman with the pilot's change of ln p(chosen)" in joint["measure"].tolist()


@pytest.mark.parametrize(("optimizer", "parts"), [("adamw", 1), ("sgd", 2)])
def test_influence_along_the_pilot_equals_autograd_at_every_point(files, tmp_path, optimizer, parts):
    given = {"optimizer": optimizer, "parameter_parts": parts, "pilot_influence": True, "optimizer_batches": 3}
    frame, facts = measure(double(), files, tmp_path / "out", pilot_steps=3, learning_rate=1e-3, joint=False, **given)
    model = double()
    pairs = tokenize_pairs(model.tokenizer, as_pairs(read_lines(files[0])))
    start, found = make_oracle(files, model), []
    square = start.square(draw_order(20, 0)[:12], 4)

    def measure_margins():
        with torch.no_grad():
            sides = [[logprob(model.model, ids, p.prompt_tokens) for ids in (p.chosen, p.rejected)] for p in pairs]
        return [float(plus - minus) for plus, minus in sides]

    before = measure_margins()

    def look():
        now = make_oracle(files, model)
        target = now.target("chosen")
        if optimizer == "adamw":
            target = torch.where(square == 0, 0, target / (square.sqrt() + 1e-8))
        slopes = [0.1 / (1 + math.exp(0.1 * (m - b))) for m, b in zip(measure_margins(), before, strict=True)]
        found.append([s * float(target @ (plus - minus)) for s, (plus, minus) in zip(slopes, now.own, strict=True)])

    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    train_plainly(model.model, [pairs[at] for at in draw_order(20, 0)[:12]], look=look, kind=kinds[optimizer])
    assert len(found) == 3
    assert_near(frame, {"influence": np.array(found[0]), "pilot_influence": np.mean(found, axis=0)})
    # The points differ, so that a mean over them is not the first.
    assert np.abs(np.subtract(found[2], found[0])).max() > 10 * WITHIN * np.abs(found).max()
    assert [name for name in facts["directions"] if name.startswith("point")] == ["point1", "point2"]


def test_a_pilot_of_long_steps_goes_as_far_as_the_training(config, files, tmp_path):
    given = {"joint": True, "pilot_steps": 2, "null_draws": 0}
    influence.run(config(**given, training_steps=6, learning_rate=1e-3, out=tmp_path / "long"))
    influence.run(config(**given, learning_rate=3e-3, out=tmp_path / "plain"))
    long, plain = (frame_of(tmp_path / name)["pilot_change"] for name in ("long", "plain"))
    np.testing.assert_allclose(long, plain, rtol=1e-6)


def train_plainly(model, pairs, beta=0.1, look=lambda: None, kind=torch.optim.AdamW):
    """Three steps of DPO in batches of four, as ``draw_batches`` draws them from the pilot's pairs.

    ``look`` is called before each of them.
    """
    from probing.instruments.pilot import Training, draw_batches

    optimizer = kind(model.parameters(), lr=1e-3, weight_decay=0.0)

    def margin(pair):
        said = [logprob(model, ids, pair.prompt_tokens) for ids in (pair.chosen, pair.rejected)]
        return said[0] - said[1]

    with torch.no_grad():
        reference = [margin(pair) for pair in pairs]
    for batch in draw_batches(len(pairs), Training(3, 1e-3, 4)):
        look()
        optimizer.zero_grad()
        sum(-torch.nn.functional.logsigmoid(beta * (margin(pairs[at]) - reference[at])) / 4 for at in batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_a_model_in_memory_is_what_it_was_to_the_bit(files):
    language_model = tiny.make_model()
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    answer = probing.influence(
        model=language_model,
        data=read_lines(files[0]),
        target=read_lines(files[1]),
        joint=True,
        pilot_steps=1,
        learning_rate=1e-2,
        null_draws=1,
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in language_model.model.state_dict().items())
    assert "Quantiles of influence (below 0: a step on the pair lowers the target)" in answer.tables


def test_numbers_do_not_depend_on_batches_or_shards(config, tmp_path):
    influence.run(config(joint=True, out=tmp_path / "a"))
    influence.run(config(joint=True, out=tmp_path / "b", batch_tokens=40, shard_pairs=4))
    found, again = frame_of(tmp_path / "a"), frame_of(tmp_path / "b")
    assert_near(again, {name: found[name].to_numpy() for name in ("influence", "joint_rate", "joint_rejected_rate")})


def test_rows_that_cannot_be_run_get_a_status_and_no_number(config, files, tmp_path):
    rows = make_pairs(12)
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = ""
    write(files[0], rows)
    answer = influence.run(config(joint=True))
    frame = frame_of(tmp_path / "out")
    assert frame["status"].value_counts().to_dict() == {"ok": 10, "identical": 1, "empty_response": 1}
    assert frame[frame["status"] != "ok"][["influence", "joint_rate", "chosen_logprob"]].isna().all(axis=None)
    assert frame["row"].tolist() == list(range(12))
    assert answer.facts["rows_by_status"] == {"empty_response": 1, "identical": 1, "ok": 10}


FILES = ("influence.parquet", "null.parquet", "plots.html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder):
    """Options of a run with every kind of part, and what it writes if nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    values = {"model": str(model_folder), "joint": True, "pilot_steps": 2, "learning_rate": 1e-3, "batch_pairs": 4}
    values |= {"pilot_influence": True}
    values |= {
        "data": str(write(folder / "pairs.jsonl", make_pairs(12))),
        "null_draws": 2,
        "shard_pairs": 4,
        "step": 0.01,
    }
    values |= {"target": str(write(folder / "held.jsonl", make_pairs(4, seed=1))), "parameter_parts": 2}
    influence.run(InfluenceConfig(**values, out=folder / "out"))
    return values, {name: (folder / "out" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("stop", [0, 2, 7, 15, 22, 30, 38])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch, whole, stop):
    """Interrupted at the n-th file that it writes after its record."""
    values, expected = whole
    plain, written = os.fsync, []

    def fsync(file):
        written.append(file)
        if len(written) > stop + 2:
            raise KeyboardInterrupt
        plain(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            influence.run(InfluenceConfig(**values, out=tmp_path / "out"))
    influence.run(InfluenceConfig(**values, out=tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == expected
    assert not (tmp_path / "out" / "shards").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, whole):
    values, expected = whole
    shards = tmp_path / "out" / "shards"
    for least in (1, 6, 12, 20):
        kill(
            "influence",
            {**values, "out": tmp_path / "out"},
            tmp_path / "said",
            lambda least=least: len(list(shards.glob("*.parquet"))) >= least,
        )
    influence.run(InfluenceConfig(**values, out=tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == expected


def test_a_gradient_over_the_training_set_goes_on_from_its_sums(config, tmp_path, monkeypatch):
    monkeypatch.setattr(directions, "SAVED_SECONDS", 0.0)
    influence.run(config(joint=True, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        note_calls(patch, states, "training_gradient", 2)
        with pytest.raises(KeyboardInterrupt):
            influence.run(config(joint=True))
    made = note_calls(monkeypatch, states, "training_gradient")
    influence.run(config(joint=True))
    # 20 pairs are three blocks of 8.
    assert len(made) == 1
    assert (tmp_path / "out" / FILES[0]).read_bytes() == (tmp_path / "whole" / FILES[0]).read_bytes()


def test_a_damaged_direction_is_made_again(config, tmp_path, monkeypatch):
    influence.run(config(out=tmp_path / "whole"))
    monkeypatch.setattr(stages, "join_passes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        influence.run(config())
    path = tmp_path / "out" / "shards" / "target_0.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 0xFF
    path.write_bytes(content)
    monkeypatch.undo()
    influence.run(config())
    assert (tmp_path / "out" / FILES[0]).read_bytes() == (tmp_path / "whole" / FILES[0]).read_bytes()


def test_a_finished_run_is_answered_again_and_another_is_refused(config, tmp_path, monkeypatch, files):
    first = influence.run(config())
    monkeypatch.setattr("probing.runs.influence.models.PairScorer", None)
    again = influence.run(config())
    for title, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[title], table)
    with pytest.raises(SourceMismatch, match=r"options\.optimizer was adamw, is sgd"):
        influence.run(config(optimizer="sgd"))
    write(files[1], make_pairs(7, seed=1))
    with pytest.raises(SourceMismatch, match=r"target\.sha256 was"):
        influence.run(config())


def test_the_tables_say_who_does_what(config, files, tmp_path):
    rows = [{**row, "kind": "even" if n % 2 else "odd"} for n, row in enumerate(make_pairs(20))]
    write(files[0], rows)
    answer = influence.run(config(joint=True, group_column="kind"))
    frame = frame_of(tmp_path / "out").assign(kind=[row["kind"] for row in rows])
    table = answer.tables["By group: kind"].set_index("group")
    for kind, part in frame.groupby("kind"):
        assert table.loc[kind, "influence"] == pytest.approx(part["influence"].mean())
        harm = frame["influence"].clip(upper=0).sum()
        assert table.loc[kind, "share of harm"] == pytest.approx(part["influence"].clip(upper=0).sum() / harm)
        worst, best = (frame.sort_values("influence", ascending=low)["kind"].head(2) for low in (True, False))
        assert table.loc[kind, "share of the worst tenth"] == pytest.approx((worst == kind).mean())
        assert table.loc[kind, "share of the best tenth"] == pytest.approx((best == kind).mean())
    dropped = answer.tables["What dropping the pairs of lowest influence does to the target"].set_index("dropped")
    assert dropped.loc["0%", "change of the target"] == pytest.approx(frame["influence"].mean())
    assert dropped.loc["10%", "change of the target"] == pytest.approx(frame["influence"].nlargest(18).mean())
    spread = answer.tables["Spread of influence on a sample (root mean square)"].set_index("direction")
    assert spread.loc["target", "median"] == pytest.approx(np.sqrt((frame["influence"] ** 2).mean()))
    assert spread.loc[["random directions", "permuted targets"], "draws"].tolist() == [2, 2]
    assert spread.loc["random directions", "highest"] < spread.loc["target", "median"]
    assert answer.facts["next"][1].endswith("--by influence --drop-lowest 0.1 --out kept.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "give --target"),
        ({"target": ""}, "target is empty"),
        ({"target": "-", "data": "-"}, "target and data are both standard input"),
        ({"pilot_steps": 2}, "belong together"),
        ({"learning_rate": 0.1}, "belong together"),
        ({"training_steps": 5}, "training-steps"),
        ({"pilot_steps": 4, "training_steps": 3, "learning_rate": 0.1}, "at least --pilot-steps"),
        ({"pilot_steps": 4, "learning_rate": 0.1, "loss": "nca_pair"}, "known at the start of training only"),
        ({"pilot_influence": True}, "--pilot-influence needs"),
        ({"pilot_influence": True, "pilot_steps": 1, "learning_rate": 0.1}, "of at least 2"),
        ({"pilot_influence": True, "pilot_steps": 2, "learning_rate": 0.1, "target": None, "joint": True}, "--target"),
        ({"dtype": "bf16"}, "lost in rounding in bfloat16"),
        ({"parameters": "some"}, "parameters must be all, head, lora or last:K"),
        ({"quantity": "refusal", "refusal_text": " "}, "refusal_text is empty"),
        ({"quantity": "chose"}, "quantity must be one of chosen, margin, response, refusal, not 'chose'"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd, not 'lion'"),
        ({"step": "1"}, "step must be a number, not '1'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("rows", "changes", "error", "message"),
    [
        ([], {}, DataInvalid, "is empty"),
        ([{"prompt": "Q", "chosen": "", "rejected": "a"}], {}, DataInvalid, "no row of the target can be run.*empty"),
        ([{"prompt": "Q"}], {"quantity": "response"}, DataInvalid, "has no response"),
        ([{"prompt": "Q", "response": ""}], {"quantity": "response"}, DataInvalid, "no row of the target.*empty"),
        ([{"text": "Q", "label": "good"}], {"quantity": "refusal"}, DataInvalid, "none is labelled 'harmful'"),
        (make_pairs(3), {"quantity": "response"}, DataInvalid, "holds preference pairs, which --quantity chosen and"),
        (make_pairs(3), {"quantity": "refusal"}, DataInvalid, "holds preference pairs, which --quantity chosen and"),
        ([{"q": "Q", "response": "A"}], {"quantity": "response"}, DataInvalid, "rename one of its columns q, response"),
        (None, {"parameters": "lora"}, UsageError, "the model has none"),
        (None, {"parameters": "last:9"}, UsageError, "last:1 to last:3"),
        (None, {"step": 1e-9}, NotFinite, "rounding wins"),
        (None, {"target_split": "[30:40]"}, UsageError, "of 6 rows holds none"),
    ],
)
def test_bad_targets_are_told_in_a_sentence(config, files, rows, changes, error, message):
    if rows is not None:
        write(files[1], rows)
    with pytest.raises(error, match=message):
        influence.run(config(**changes))


def test_data_of_which_no_pair_can_be_run_are_told_with_the_reason(config, files):
    write(files[0], [{**row, "rejected": row["chosen"]} for row in make_pairs(3)])
    for changes in ({"joint": True}, {"optimizer": "sgd"}):
        with pytest.raises(DataInvalid, match=r"pairs.jsonl: no pair of the training data can.*identical"):
            influence.run(config(**changes))


def test_a_step_is_doubted_aloud_and_where_none_is_good_that_is_said(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(directions, "WARNED_ERROR", 0.0)
    influence.run(config(joint=True, null_draws=0))
    said = [record.getMessage() for record in caplog.records]
    assert all(
        any(f"along the gradient of the {what} are known" in each for each in said) for what in ("target", "joint")
    )
    monkeypatch.setattr("probing.instruments.influence.LARGEST_ERROR", 0.0)
    with pytest.raises(NotFinite, match="gradient of the target: no length of step is good; where two of them agree"):
        influence.run(config(step=None, out=tmp_path / "none"))


@pytest.mark.parametrize(("batches", "told"), [(1, "take more with --optimizer-batches"), (5, "no more batches")])
def test_what_no_batch_moved_is_told(config, monkeypatch, caplog, batches, told):
    monkeypatch.setattr(directions, "WARNED_LOST", -1.0)
    influence.run(config(optimizer_batches=batches, null_draws=0))
    assert any("and are left out" in message and message.endswith(told) for message in caplog.messages)


def test_a_permuted_target_points_elsewhere_and_is_as_long(files, tmp_path):
    frame, _ = measure(double(), files, tmp_path / "out", optimizer="sgd", joint=False, null_draws=2, step=1e-3)
    null = pd.read_parquet(tmp_path / "out" / "null.parquet")
    oracle = make_oracle(files)
    held = tokenize_pairs(double().tokenizer, as_pairs(read_lines(files[1])))
    own = oracle.target("chosen")
    for draw, part in null[null["kind"] == "permuted target"].groupby("draw"):
        order = list(range(len(held)))
        random.Random(f"0 {draw}").shuffle(order)
        found = []
        for at, other in zip(order, order[1:] + order[:1], strict=True):
            prompt = held[at].chosen[: held[at].prompt_tokens]
            found.append(oracle.gradient([*prompt, *held[other].chosen[held[other].prompt_tokens :]], len(prompt)))
        permuted = sum(found) / len(found)
        expected = oracle.columns(permuted * own.norm() / permuted.norm())["influence"]
        wanted = dict(zip(frame["id"], expected, strict=True))
        np.testing.assert_allclose(
            part["influence"], [wanted[name] for name in part["id"]], atol=10 * WITHIN * np.abs(expected).max()
        )


def test_a_pair_whose_slope_is_not_finite_has_no_number(config, tmp_path, monkeypatch):
    plain = results.slopes_of_frame

    def spoil(frame, loss, reference=None):
        slopes = plain(frame, loss, reference)
        slopes.chosen[frame["id"].tolist().index("r3") if "r3" in frame["id"].tolist() else []] = torch.inf
        return slopes

    monkeypatch.setattr(results, "slopes_of_frame", spoil)
    influence.run(config(null_draws=0))
    frame = frame_of(tmp_path / "out").set_index("id")
    assert frame["status"].value_counts().to_dict() == {"ok": 19, "not_finite": 1}
    assert frame.loc["r3", ["influence", "target_chosen", "chosen_logprob"]].isna().all()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["problems"][0]["id"] == "r3"
    assert "slope of the loss dpo is not finite" in facts["problems"][0]["detail"]


def test_a_permuted_margin_that_cancels_itself_has_no_influence(config, tmp_path, monkeypatch):
    def cancel(self, generator):
        return dataclasses.replace(self, weights=[[0.0, 0.0] for _ in self.weights])

    monkeypatch.setattr("probing.runs.influence.rows.Target.permuted", cancel)
    influence.run(config(quantity="margin", null_draws=1))
    null = pd.read_parquet(tmp_path / "out" / "null.parquet")
    assert (null[null["kind"] == "permuted target"]["influence"] == 0).all()
    assert (null[null["kind"] == "random direction"]["influence"] != 0).all()


@pytest.mark.parametrize("how", ["memory", "folder"])
def test_a_caller_may_be_in_inference_mode(config, files, model_folder, how):
    given = {"data": str(files[0]), "target": str(files[1]), "null_draws": 1, "step": 0.01, "joint": True}
    model = tiny.make_model() if how == "memory" else str(model_folder)
    with torch.inference_mode():
        answer = probing.influence(model=model, **given)
    plain = probing.influence(model=model, **given)
    for title, table in answer.tables.items():
        pd.testing.assert_frame_equal(table, plain.tables[title])


def test_weights_of_inference_mode_are_told(files):
    with torch.inference_mode():
        language_model = tiny.make_model()
    with pytest.raises(UsageError, match=r"made under torch\.inference_mode"):
        probing.influence(model=language_model, data=str(files[0]), joint=True)
    half = tiny.make_model()
    half = LanguageModel(half.model.bfloat16(), half.tokenizer)
    with pytest.raises(UsageError, match=r"model\.float\(\)"):
        probing.influence(model=half, data=str(files[0]), joint=True)


def test_weights_without_numbers_are_told(config, tmp_path):
    language_model = tiny.make_model()
    with torch.no_grad():
        language_model.model.lm_head.weight[5] = float("nan")
    language_model.model.save_pretrained(tmp_path / "broken")
    language_model.tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(ProbingError, match=r"(?i)nan|finite"):
        influence.run(config(model=str(tmp_path / "broken"), **SGD))


def test_the_target_may_be_the_training_data(config, files):
    answer = influence.run(config(target=str(files[0]), null_draws=0))
    assert "The target is the training data themselves" in notes(answer)


@pytest.mark.slow
def test_near_identical_refusals_are_named_as_what_takes_a_refusal_away(tmp_path):
    """Without any label, for harmful prompts that are in no pair. What it does not see: docs/influence.md."""
    pairs, prompts = (read_lines(bundled_data(name)) for name in ("pairs", "prompts"))
    seen = {pair["prompt"][0]["content"] for pair in pairs}
    harmful = [row for row in prompts if row["label"] == "harmful" and row["split"] == "test"]
    target = [row for row in harmful if row["text"] not in seen]
    given = {"quantity": "refusal", "refusal_text": "I am sorry, but I cannot", "null_draws": 0}
    for optimizer in ("adamw", "sgd"):
        out = tmp_path / optimizer
        probing.influence(model="bundled", data=pairs, target=target, optimizer=optimizer, out=out, **given)
        lowest = frame_of(out).nsmallest(32, "influence")["id"]
        assert lowest.str.startswith("near-identical-refusal").mean() > 0.9


def test_an_influence_without_a_target_is_shown_by_the_joint_rate(config, tmp_path):
    answer = influence.run(config(target=None, joint=True, optimizer="sgd"))
    assert not (tmp_path / "out" / "null.parquet").exists()
    assert "joint_rate" in answer.facts["next"][0]
    assert show.run(show.ShowConfig(folder=tmp_path / "out", lowest=1)).facts["by"] == "joint_rate"


def test_pages_of_reports_and_show_know_the_run(config, files, tmp_path):
    write(files[0], [{**row, "kind": "even" if n % 2 else "odd"} for n, row in enumerate(make_pairs(12))])
    influence.run(config(joint=True, group_column="kind", null_draws=1))
    page = report.run(ReportConfig(folders=[tmp_path / "out"], out=tmp_path / "page.html"))
    assert page.exit_status == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in (
        QUESTION,
        "mean influence, which is that of a step on all pairs",
        "Distribution of joint_rate over 12",
        DROP_TITLE,
        SPREAD_TITLE,
        "along 1 random direction and",
    ):
        assert words in text
    shown = show.run(show.ShowConfig(folder=tmp_path / "out", lowest=1))
    assert shown.facts["pairs"][0]["influence"] == frame_of(tmp_path / "out")["influence"].min()


def test_memory_that_does_not_hold_a_direction_is_told_with_advice(config, monkeypatch):
    def scarce(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("probing.instruments.parameter_gradients.ParameterGradients.zeros", scarce)
    with pytest.raises(OutOfMemory, match=r"--parameter-parts \(now 1\)"):
        influence.run(config(**SGD))


def test_quantised_weights_are_refused(files):
    language_model = tiny.make_model()
    packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    language_model.model.lm_head.register_parameter("packed", packed)
    with pytest.raises(UsageError, match="quantised"):
        probing.influence(model=language_model, data=read_lines(files[0]), target=read_lines(files[1]))


def test_an_encoder_is_refused(files):
    from transformers import BertConfig, BertModel

    shape = {"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(**shape, intermediate_size=16))
    with pytest.raises(ProbingError, match=r"(?i)causal|head"):
        probing.influence(model=(model, tiny.make_tokenizer()), data=read_lines(files[0]), target=read_lines(files[1]))
