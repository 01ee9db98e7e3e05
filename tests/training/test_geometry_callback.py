"""The callback for states, in runs of the plain trainer on small random models."""

import json

import numpy as np
import pytest
import tiny
import torch
import transformers
from training_runs import QUIET, our_rows

from probing import LanguageModel, aqi, capture, cluster_indices, refusal_log_odds
from probing.errors import DataInvalid, ProbingError, SourceMismatch, UsageError
from probing.metrics.drift import centroid_shift, linear_cka
from probing.store.directions import save_direction
from probing.training.geometry import GeometryCallback, first_component
from probing.types import Capture, Direction, Place, Source

TEXTS = {"a": ["The answer is near.", "Is it ok?", "Sure, here is glue."], "b": ["No. Never.", "A small boat", "I am"]}
ALL = [text for own in TEXTS.values() for text in own]
LABELS = [label for label, own in TEXTS.items() for _ in own]


def direction_at(place, position=-1, seed=0, **known):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction(vector, Place.parse(place), position, Source("elsewhere"), **known)


def train(callbacks, folder, language_model, steps=4, **settings):
    model, tokenizer = language_model.model, language_model.tokenizer
    rows = [{"input_ids": (ids := tokenizer(text).input_ids), "labels": ids} for text in ALL]
    known = QUIET | {"per_device_train_batch_size": 1, "max_steps": steps, "learning_rate": 1e-2} | settings
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(output_dir=str(folder), **known),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


@pytest.fixture
def language_model():
    return tiny.make_model("llama")


def states_of(model, place, position=-1):
    request = Capture((place,), "tokens", "prompt", chat=True)
    found = capture(model, ALL, request)
    return torch.stack([rows[position, 0] for rows in torch.tensor_split(found.values, found.offsets[1:-1])])


def test_numbers_are_those_of_the_library(tmp_path, language_model):
    directions = {"last": direction_at("resid_post:1"), "before": direction_at("resid_pre:2", -3, 1)}
    before = {place: states_of(language_model, place) for place in ("resid_post:0", "resid_post:2")}
    projected = states_of(language_model, "resid_pre:2", -3).double() @ directions["before"].vector
    callback = GeometryCallback(
        TEXTS, every=2, layers=[0, -1], directions=directions, refusal_tokens=[7, 9], strict=True
    )
    trainer = train([callback], tmp_path, language_model)
    row = our_rows(trainer)[4]
    for place, old in before.items():
        new = states_of(language_model, place)
        assert row[f"cka/{place}"] == pytest.approx(linear_cka(old, new, debiased=True), rel=1e-5)
        assert row[f"mean_shift/{place}"] == pytest.approx(centroid_shift(old, new).relative, rel=1e-4)
        assert row[f"dunn/{place}"] == pytest.approx(float(cluster_indices(new, LABELS)["dunn"]), rel=1e-4)
        assert row[f"aqi_size_free/{place}"] == pytest.approx(float(aqi(new, LABELS, form="size_free")), rel=1e-4)
        noise = centroid_shift(old, new)
        assert row[f"mean_shift_noise/{place}"] == pytest.approx(noise.relative * noise.noise / noise.norm, rel=1e-3)
    length = directions["before"].vector.norm()
    again = states_of(language_model, "resid_pre:2", -3).double() @ directions["before"].vector
    assert row["projection/before"] == pytest.approx(float(again.mean() / length), rel=1e-4)
    assert row["projection/before/b"] == pytest.approx(float(again[3:].mean() / length), rel=1e-4)
    assert row["projection_change/before"] == pytest.approx(float((again - projected).mean() / length), rel=1e-3)
    odds = refusal_log_odds(language_model, ALL, [7, 9])
    assert row["refusal_log_odds"] == pytest.approx(float(odds.mean()), rel=1e-4)
    assert row["refusal_log_odds/a"] == pytest.approx(float(odds[:3].mean()), rel=1e-4)
    assert row["projection/last_low"] < row["projection/last"] < row["projection/last_high"]
    course = np.array([[entry.row()[f"projection_change/{name}"] for name in directions] for entry in callback.history])
    assert (row["projection_drift"], row["projection_drift_share"]) == pytest.approx(first_component(course))
    assert "projection_drift" not in our_rows(trainer)[2]


def test_the_first_component_of_a_line_is_the_line():
    assert first_component(np.array([[1.0, 2.0], [2.0, 4.0]])) == pytest.approx((20**0.5, 1.0))
    assert first_component(np.array([[-3.0, 0.0], [0.0, 1.0]])) == pytest.approx((0.0, 0.9))
    along, share = first_component(np.zeros((2, 3)))
    assert along == 0
    assert np.isnan(share)


def test_prompts_without_labels_have_no_clusters(tmp_path, language_model):
    trainer = train([GeometryCallback(ALL, every=4, layers="resid_pre:all", strict=True)], tmp_path, language_model)
    row = our_rows(trainer)[4]
    assert {name.partition("/")[0] for name in row} == {"cka", "mean_shift", "mean_shift_noise"}
    assert {name.partition("/")[2] for name in row} == {f"resid_pre:{layer}" for layer in (1, 2)}
    # The last token of the template is the same in all prompts, so that there is no geometry before the first block.


def test_an_alarm_on_a_label_saves_a_checkpoint(tmp_path, language_model):
    callback = GeometryCallback(
        TEXTS,
        every=2,
        layers=0,
        refusal_tokens=[7],
        alarms={"refusal_log_odds/a": "< 100"},
        on_alarm="save",
        strict=True,
    )
    train([callback], tmp_path, language_model)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_directions_from_files_are_called_after_them(tmp_path, language_model):
    (tmp_path / "warm").mkdir()
    save_direction(tmp_path / "warm/direction.safetensors", direction_at("resid_post:1"))
    save_direction(tmp_path / "cold.safetensors", direction_at("resid_post:1", seed=3))
    files = [str(tmp_path / "warm/direction.safetensors"), tmp_path / "cold.safetensors"]
    callback = GeometryCallback(ALL, every=4, layers=0, directions=files, strict=True)
    row = our_rows(train([callback], tmp_path / "out", language_model))[4]
    assert {"projection/warm", "projection/cold"} <= set(row)
    history = [json.loads(line) for line in (tmp_path / "out/probing/geometry/history.jsonl").read_text().splitlines()]
    assert history[0]["projection/warm"] == row["projection/warm"]
    again = direction_at("resid_post:1")
    with pytest.raises(DataInvalid, match="two directions are called 'cold'"):
        GeometryCallback(ALL, directions=[files[1], files[1]])
    assert GeometryCallback(ALL, directions=again)._probe.columns() == ["projection/direction-1"]


@pytest.mark.parametrize(
    ("prompts", "settings", "said"),
    [
        (["a", "b"], {}, "at least 4"),
        ([], {}, "no rows"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], {}, "has no label"),
        (ALL, {"every": -1}, "every"),
        (ALL, {"alarms": {"cka": "< 0.9"}}, "'cka' is not measured"),
        (ALL, {"directions": ["/nowhere"]}, "nowhere"),
        (
            ALL,
            {"directions": {"two": direction_at("resid_post:1")}, "alarms": {"projection/one": "> 1"}},
            "projection/two",
        ),
        ("nowhere.jsonl", {}, "no such file"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_run(prompts, settings, said):
    with pytest.raises(ProbingError, match=said):
        GeometryCallback(prompts, **settings)


WIDE = Direction(torch.ones(64), Place("resid_post", 1), -1, Source("elsewhere"))
STRANGER = Direction(torch.ones(32), Place("resid_post", 1), -1, Source("elsewhere", template_sha256="0" * 64))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"layers": 7}, ProbingError, "has 3 layers"),
        ({"layers": "here"}, ValueError, "here"),
        ({"directions": WIDE}, SourceMismatch, "a width of 64"),
        ({"directions": STRANGER}, SourceMismatch, "chat template"),
        ({"directions": direction_at("resid_post:9")}, ProbingError, "has 3 layers"),
        ({"directions": direction_at("resid_post:1", -400)}, DataInvalid, "fewer than 400 tokens"),
        ({"refusal_tokens": ["no such token"]}, UsageError, "no such token"),
    ],
)
def test_what_does_not_fit_the_model_is_said_when_the_run_begins(tmp_path, language_model, settings, error, said):
    with pytest.raises(error, match=said):
        train([GeometryCallback(ALL, strict=True, **settings)], tmp_path, language_model, steps=1)


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    bare = LanguageModel(tiny.make_model("llama").model, tiny.make_tokenizer(template=None))
    with pytest.raises(ProbingError, match="template"):
        train([GeometryCallback(ALL, strict=True)], tmp_path, bare, steps=1)


def test_weights_that_are_split_between_processes_are_refused(tmp_path, language_model):
    language_model.model.lm_head.weight.ds_id = 3
    with pytest.raises(UsageError, match=r"lm_head.weight are split between processes .* 'probing displacement"):
        train([GeometryCallback(ALL, strict=True)], tmp_path, language_model, steps=1)


def test_a_trainer_without_a_tokenizer_needs_one(tmp_path, language_model):
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]
    settings = QUIET | {"per_device_train_batch_size": 1, "max_steps": 1}

    def run(callback):
        args = transformers.TrainingArguments(output_dir=str(tmp_path), **settings)
        trainer = transformers.Trainer(language_model.model, args, train_dataset=rows, callbacks=[callback])
        trainer.train()
        return our_rows(trainer)

    with pytest.raises(TypeError, match="without its tokenizer"):
        run(GeometryCallback(ALL, layers=1, strict=True))
    assert run(GeometryCallback(ALL, layers=1, strict=True, tokenizer=language_model.tokenizer))[1]
