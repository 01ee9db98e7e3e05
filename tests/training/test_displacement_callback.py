"""The callback on real preference training of the bundled model."""

import json
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import make_trainer, our_rows, own_rows, pairs_of

from probing import load, score_pairs
from probing.data.bundled import bundled_model
from probing.errors import DataInvalid, SourceMismatch, UsageError
from probing.training.displacement import DisplacementCallback
from probing.training.geometry import GeometryCallback
from probing.types import Direction, Place, PreferencePair, Source

pytestmark = pytest.mark.filterwarnings(
    # TRL and transformers on one another's options; the second is torch's on checkpointed blocks in eval mode.
    "ignore:.*is deprecated:FutureWarning",
    "ignore:.*:UserWarning",
)
NEAR = pairs_of("near_identical_refusal")
HARMLESS = pairs_of("refusal_over_compliance", "short_answer")
DIRECTION, OTHER = (
    Direction(
        torch.randn(64, generator=torch.Generator().manual_seed(seed)), Place("resid_post", layer), -1, Source("m")
    )
    for seed, layer in ((1, 1), (2, 3))
)
PROMPTS = {"harmful": [row["prompt"][0]["content"] for row in NEAR[:8]], "harmless": ["I want to bake.", "Hi.", "Yes?"]}


@pytest.fixture(scope="module")
def displaced(tmp_path_factory):
    """A run on refusals that are nearly alike, with both callbacks, and the same run without."""
    folder = tmp_path_factory.mktemp("runs")
    callback = DisplacementCallback(NEAR[48:], every=10, by="category", strict=True)
    geometry = GeometryCallback(PROMPTS, every=0.5, layers=[1, -1], strict=True)
    with_them = make_trainer(NEAR[:48], folder / "with", [callback, geometry], report_to=["tensorboard"])
    with_them.train()
    without = make_trainer(NEAR[:48], folder / "without")
    without.train()
    return folder, callback, with_them, without


def hooks_of(model):
    """The names of the functions that are hooked on modules."""
    named = [hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    return [getattr(hook, "__qualname__", type(hook).__name__) for hooks in named for hook in hooks.values()]


def test_training_ends_with_the_same_weights(displaced):
    _, callback, with_them, without = displaced
    one, other = with_them.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert with_them.model.training == without.model.training
    assert [module.training for module in with_them.model.modules()] == [m.training for m in without.model.modules()]
    assert hooks_of(with_them.model) == hooks_of(without.model)
    assert len(callback.history) == 2


def test_rows_of_the_trainer_stay_whole(displaced):
    _, _, with_them, without = displaced
    assert own_rows(with_them) == own_rows(without)
    assert sum("loss" in row for row in own_rows(without)) == 4


def test_displacement_is_told(displaced):
    folder, callback, trainer, _ = displaced
    row = our_rows(trainer)[20]
    assert row["verdict"].startswith("both down (chosen -")
    assert "likelihood displacement" in row["verdict"]
    assert row["regime"] == 2
    assert row["chosen_change_high"] < -2
    assert row["share_halved"] > 0.2
    assert row["share_displaced_low"] <= row["share_displaced"] <= row["share_displaced_high"]
    groups = {name.split("/")[0] for name in row if name.startswith("category=")}
    assert groups == {f"category={kind}" for kind in {pair["category"] for pair in NEAR[48:]}}
    history = [
        json.loads(line) for line in (folder / "with/probing/displacement/history.jsonl").read_text().splitlines()
    ]
    assert [entry["step"] for entry in history] == [10, 20]
    assert history[1]["chosen_change"] == row["chosen_change"] == callback.history[1].estimates["chosen_change"].value


def test_trackers_have_every_number(displaced):
    folder, _, trainer, _ = displaced
    events = EventAccumulator(str(next((folder / "with/runs").iterdir())))
    events.Reload()
    for name in ("chosen_change", "rejected_change_per_token", "share_displaced_low", "regime", "entropy", "ches"):
        logged = {event.step: event.value for event in events.Scalars(f"train/probing/{name}")}
        assert logged == pytest.approx({step: row[name] for step, row in our_rows(trainer).items() if name in row})
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15, 20]
    assert events.Scalars("train/probing/cka/resid_post:1")


def test_numbers_are_those_of_the_library(displaced):
    folder, callback, trainer, _ = displaced
    columns = ["chosen_logprob", "rejected_logprob", "ches", "ches_normalized"]
    before = score_pairs(load("bundled"), NEAR[48:], columns=columns)
    after = score_pairs(trainer, NEAR[48:], columns=columns)
    pairs = pd.read_parquet(folder / "with/probing/displacement/pairs-00000020.parquet")
    assert pairs["id"].tolist() == before["id"].tolist()
    for side in ("chosen", "rejected"):
        expected = after[f"{side}_logprob"] - before[f"{side}_logprob"]
        np.testing.assert_allclose(pairs[f"{side}_change"], expected, atol=2e-4)
    np.testing.assert_allclose(pairs["ches"], after["ches"], rtol=1e-4, atol=1e-3)
    found = callback.history[-1].estimates
    displaced_pairs = (pairs["chosen_change"] < 0) & (pairs["margin_change"] > 0)
    assert found["share_displaced"].value == displaced_pairs.mean()
    assert found["share_halved"].value == (displaced_pairs & (pairs["chosen_change"] < -math.log(2))).mean()


def test_an_alarm_stops_the_run(tmp_path, caplog):
    callback = DisplacementCallback(
        NEAR[48:], every=5, alarms={"share_halved": "> 0.1", "chosen_change": "< -1e6"}, on_alarm="stop", strict=True
    )
    trainer = make_trainer(NEAR[:48], tmp_path, [callback], steps=40)
    with caplog.at_level(logging.WARNING, "probing"):
        trainer.train()
    assert trainer.state.global_step < 40
    assert sum("share_halved > 0.1" in record.message for record in caplog.records) == 1
    assert "both down" in next(record.message for record in caplog.records if "share_halved" in record.message)


def test_a_function_is_called_once_until_the_number_comes_back(tmp_path):
    heard = []
    callback = DisplacementCallback(NEAR[48:60], every=2, alarms={"entropy": "> 0"}, on_alarm=heard.append, strict=True)
    make_trainer(NEAR[:8], tmp_path, [callback], steps=6, learning_rate=1e-6).train()
    assert [event.step for event in heard] == [2]
    assert heard[0].measured == callback.history[0].estimates["entropy"]
    assert str(heard[0]).startswith("step 2: entropy is ")


@pytest.mark.parametrize("seed", range(10))
def test_harmless_pairs_ring_no_alarm(tmp_path, seed):
    train, watched = HARMLESS[:96], HARMLESS[96:128]
    callback = DisplacementCallback(watched, every=4, alarms={"share_halved": "> 0.2"}, on_alarm="stop", strict=True)
    trainer = make_trainer(
        train, tmp_path, [callback], steps=8, learning_rate=1e-4, seed=seed, gradient_checkpointing=False
    )
    trainer.train()
    assert trainer.state.global_step == 8
    # Something was learned all the same.
    assert callback.history[-1].estimates["rejected_change"].high < 0


def test_a_resumed_run_logs_what_an_unbroken_one_logs(tmp_path):
    settings = {"steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 3e-4}

    def make(folder):
        callback = DisplacementCallback(NEAR[48:56], every=2, strict=True)
        geometry = GeometryCallback(PROMPTS, every=2, layers=-1, directions={"a": DIRECTION, "b": OTHER}, strict=True)
        return make_trainer(NEAR[:32], folder, [callback, geometry], **settings)

    unbroken = make(tmp_path / "one")
    unbroken.train()
    broken = make(tmp_path / "two")
    broken.train()
    # What was logged beyond the checkpoint is forgotten when the run goes on from there.
    again = make(tmp_path / "two")
    again.train(resume_from_checkpoint=str(tmp_path / "two/checkpoint-4"))
    rows, others = our_rows(unbroken), our_rows(again)
    assert list(rows) == list(others) == [2, 4, 6, 8]
    for step, row in rows.items():
        assert row.pop("verdict") == others[step].pop("verdict")
        assert row == pytest.approx(others[step], rel=1e-5, abs=1e-6)
    for name in ("displacement", "geometry"):
        files = [(tmp_path / folder / "probing" / name / "history.jsonl").read_text() for folder in ("one", "two")]
        assert len(files[0].splitlines()) == len(files[1].splitlines()) == 4


def test_without_the_baseline_a_resumed_run_measures_nothing(tmp_path, caplog):
    settings = {"steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(NEAR[:16], tmp_path, **settings).train()
    trainer = make_trainer(NEAR[:16], tmp_path, [DisplacementCallback(NEAR[48:56], every=1)], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    assert "there is no baseline" in caplog.text
    assert not our_rows(trainer)


def test_an_adapter_is_compared_with_the_model_below_it(tmp_path):
    import peft

    base = load("bundled").model
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2))
    references = {None: None, "below": "adapter off", "other": str(bundled_model())}
    at_start, below, other = (
        DisplacementCallback(NEAR[48:56], every=4, reference=reference, name=name, strict=True)
        for name, reference in references.items()
    )
    trainer = make_trainer(NEAR[:16], tmp_path, [at_start, below, other], model=model, steps=4)
    trainer.train()
    values = [callback.history[-1].row() for callback in (at_start, below, other)]
    assert len({row.pop("verdict") for row in values}) == 1
    assert {"chosen_change", "below/chosen_change", "other/margin"} <= set(our_rows(trainer)[4])
    assert (tmp_path / "probing/below/baseline.safetensors").is_file()
    # A new adapter changes nothing, so that all three begin alike.
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert values[0] == pytest.approx(values[2], abs=1e-4)
    assert values[0]["chosen_change"] != 0


def test_two_of_the_same_name_are_refused(tmp_path):
    callbacks = [DisplacementCallback(NEAR[48:52], every=1, strict=True) for _ in range(2)]
    with pytest.raises(UsageError, match="give each a name"):
        make_trainer(NEAR[:8], tmp_path, callbacks, steps=1).train()


def broken_callback(error, at):
    class Broken(DisplacementCallback):
        def measure(self, model, step):
            if step == at:
                model.model.train(False)
                model.model.config.use_cache = model.model.config.use_cache
                model.model.lm_head.register_forward_hook(probing_hook)
                raise error
            return super().measure(model, step)

    return Broken


def probing_hook(*_):
    raise AssertionError("left behind")


probing_hook.__module__ = "probing.tests"


def test_an_error_ends_the_callback_and_not_the_run(tmp_path, caplog):
    callback = broken_callback(RuntimeError("no luck"), 4)(NEAR[48:56], every=2)
    trainer = make_trainer(NEAR[:16], tmp_path, [callback], steps=8)
    trainer.train()
    assert trainer.state.global_step == 8
    assert list(our_rows(trainer)) == [2]
    assert "nothing more is measured in this run, because RuntimeError: no luck" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("no luck"), KeyboardInterrupt()])
def test_what_ends_a_run_leaves_the_model_as_it_was(tmp_path, error):
    callback = broken_callback(error, 2)(NEAR[48:56], every=2, strict=True)
    trainer = make_trainer(NEAR[:16], tmp_path, [callback], steps=4)
    with pytest.raises(type(error)):
        trainer.train()
    assert trainer.model.training
    assert "probing_hook" not in hooks_of(trainer.model)


def test_too_few_pairs_for_an_alarm_are_said_at_the_start(tmp_path, caplog):
    callback = DisplacementCallback(NEAR[48:50], every=2, alarms={"share_displaced": "> 0.9"}, strict=True)
    make_trainer(NEAR[:16], tmp_path, [callback], steps=2).train()
    assert "the alarm 'share_displaced > 0.9' cannot go off with" in caplog.text


LONG = {"id": "long", "prompt": "a " * 3000, "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("given", "settings", "error", "said"),
    [
        ([], {}, DataInvalid, "there are no rows"),
        ([{"chosen": "a"}], {}, DataInvalid, "rejected"),
        (NEAR[:4], {"every": 0}, UsageError, "every is 0"),
        (NEAR[:4], {"alarms": {"shares": "> 1"}}, UsageError, "'shares' is not measured"),
        (NEAR[:4], {"alarms": {"regime": "> 1"}}, UsageError, "no interval"),
        (NEAR[:4], {"on_alarm": "panic"}, UsageError, "on_alarm"),
        (NEAR[:4], {"name": "../up"}, UsageError, "name is"),
        (NEAR[:4], {"by": "colour"}, DataInvalid, "has no 'colour'"),
        (NEAR[:4], {"directions": ["nowhere.safetensors"], "prompts": ["a"]}, SourceMismatch, "nowhere"),
        (NEAR[:4], {"refusal_tokens": ["I"]}, UsageError, "give prompts, too"),
        (NEAR[:4], {"prompts": ["a", "b"]}, UsageError, "nothing is measured on the prompts"),
        ({"train": NEAR[:4]}, {}, TypeError, "train"),
        ("nowhere.jsonl", {}, DataInvalid, "no such file"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_run(given, settings, error, said):
    with pytest.raises(error, match=said):
        DisplacementCallback(given, **settings)


@pytest.mark.parametrize(
    ("pairs", "settings", "said"),
    [
        ([*NEAR[:4], LONG], {"max_length": 100}, "the pair 'long' cannot be scored"),
        ([*NEAR[:4], {**NEAR[0], "id": "same", "rejected": NEAR[0]["chosen"]}], {}, "'same' cannot be scored"),
        (NEAR[:4], {"reference": "adapter off"}, "has no adapter"),
        (NEAR[:4], {"reference": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_what_does_not_fit_the_model_is_said_when_the_run_begins(tmp_path, pairs, settings, said):
    callback = DisplacementCallback(pairs, every=1, strict=True, **settings)
    with pytest.raises(Exception, match=said):
        make_trainer(NEAR[:8], tmp_path, [callback], steps=1).train()


def test_rows_with_markup_and_control_characters_are_pairs_like_others(tmp_path):
    odd = [
        PreferencePair("x<script>", "<b>\x1b[31m</b>", "</script>\u202e yes", "\x00no"),
        PreferencePair("y", "a\r\nb", " \U0001f600", " no"),
    ]
    callback = DisplacementCallback(odd, every=1, strict=True)
    make_trainer(NEAR[:8], tmp_path, [callback], steps=1).train()
    assert len(callback.history) == 1


def test_it_needs_a_trainer():
    from probing.training.trainer_log import find_trainer

    with pytest.raises(UsageError, match=r"probing\.score_pairs"):
        find_trainer()
