"""Checkpoints whose configs ask for tuples, the states of every layer or attention maps are read like others."""

import json

import families
import pandas as pd
import pytest
import tiny
import torch
from torch import nn

from probing import Capture, Place, capture, load, score_pairs
from probing.errors import ModelInvalid
from probing.models.layers import find_backbone
from probing.models.passes import last_hidden_state, logits_of, run_backbone, trial_ids, use_eval_mode

SETTINGS = {
    "tuples": {"return_dict": False},
    "every layer": {"output_hidden_states": True, "output_attentions": True, "output_router_logits": True},
}
NAMES = ("llama", "gpt2", "gemma2", "opt", "falcon", "mixtral", "mamba2", "llava", "bert")
PAIRS = [
    {"prompt": "Is it ok?", "chosen": " Yes, always.", "rejected": " No. Never."},
    {"prompt": "Is it ok?", "chosen": " Sure", "rejected": " I am sorry"},
]
COLUMNS = ("all", "displacement_rate_exact")


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request, tmp_path_factory):
    """A folder, and what is read from it."""
    folder = tmp_path_factory.mktemp(request.param)
    language_model = families.make(request.param)
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return folder, read(folder)


def read(folder):
    """States of every token, the scores where there are any, and the config before and after."""
    loaded = load(str(folder))
    before = dict(vars(loaded.model.config))
    states = capture(loaded, [pair["prompt"] for pair in PAIRS], Capture([Place("resid_post", 1)], "mean")).values
    scores = None
    if loaded.model.get_output_embeddings() is not None:
        scores = score_pairs(loaded, PAIRS, columns=COLUMNS)
        assert scores["status"].eq("ok").all()
    assert vars(loaded.model.config) == before
    return states, scores


def say(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    config |= settings
    if "text_config" in config:
        config["text_config"] |= settings
    return json.dumps(config)


@pytest.mark.parametrize("asked", SETTINGS)
def test_what_a_config_asks_for_changes_no_number(checkpoint, tmp_path, asked):
    plain, (states, scores) = checkpoint
    for path in plain.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(say(plain, SETTINGS[asked]))
    others, others_scores = read(tmp_path)
    torch.testing.assert_close(others, states, rtol=0, atol=0)
    if scores is not None:
        pd.testing.assert_frame_equal(others_scores, scores, check_exact=True)


def test_a_pass_keeps_no_layers_and_the_config_is_as_it_was():
    language_model = tiny.make_model("llama", output_hidden_states=True, return_dict=False)
    stack = find_backbone(language_model)
    config, ids = language_model.model.config, trial_ids(language_model, 1)
    with torch.inference_mode(), use_eval_mode(language_model.model):
        output = run_backbone(stack.backbone, ids)
    assert set(output) == {"last_hidden_state"}
    assert (config.return_dict, config.output_hidden_states) == (False, True)
    with pytest.raises(ZeroDivisionError), use_eval_mode(language_model.model):
        raise ZeroDivisionError
    assert (config.return_dict, config.output_hidden_states) == (False, True)


class Tupled(nn.Module):
    """As code that a checkpoint brings: a tuple, whatever is asked for."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, use_cache=False):
        return self.inner(input_ids=input_ids, use_cache=use_cache).to_tuple()


def test_tuples_whatever_was_asked_for():
    model = tiny.make_model("llama").model
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        assert torch.equal(last_hidden_state(Tupled(model.model), ids), last_hidden_state(model.model, ids))
        assert torch.equal(logits_of(Tupled(model), ids), logits_of(model, ids))


def test_a_setting_that_the_library_does_not_take(model_folder, tmp_path):
    for path in model_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(say(model_folder, {"use_return_dict": False}))
    with pytest.raises(ModelInvalid, match=r"cannot be loaded as a language model: .*use_return_dict"):
        load(str(tmp_path))
