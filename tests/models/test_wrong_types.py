"""Files of a checkpoint that hold values of other types than the libraries expect: one error of ours, in seconds."""

import json
import shutil

import pytest

from probing import load
from probing.errors import ProbingError

WHOLE = [
    (name, value)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for value in ([], "text", None, 3, [[1]])
]
PARTS = [
    ("config.json", "hidden_size", "32"),
    ("config.json", "hidden_size", -1),
    ("config.json", "hidden_size", 10**12),
    ("config.json", "num_hidden_layers", 1000000),
    ("config.json", "num_hidden_layers", None),
    ("config.json", "vocab_size", []),
    ("config.json", "num_attention_heads", 0),
    ("config.json", "model_type", 3),
    ("config.json", "architectures", 3),
    ("config.json", "dtype", "float99"),
    ("config.json", "rope_parameters", 3),
    ("config.json", "hidden_act", 3),
    ("config.json", "quantization_config", 3),
    ("config.json", "auto_map", 3),
    ("tokenizer.json", "model", 3),
    ("tokenizer.json", "added_tokens", 3),
    ("tokenizer.json", "pre_tokenizer", 3),
    ("tokenizer.json", "post_processor", {"type": 3}),
    ("tokenizer_config.json", "tokenizer_class", 3),
    ("tokenizer_config.json", "model_max_length", "x"),
    ("tokenizer_config.json", "bos_token", 3),
    ("tokenizer_config.json", "added_tokens_decoder", 3),
]


@pytest.fixture
def model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def load_or_refuse(model):
    """Some values do not matter to the libraries; all others are an error of ours, in one line."""
    try:
        load(str(model))
    except ProbingError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "value"), WHOLE)
def test_a_file_that_is_something_else(model, name, value):
    (model / name).write_text(json.dumps(value))
    load_or_refuse(model)


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "key", "value"), PARTS)
def test_a_value_that_is_something_else(model, name, key, value):
    content = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**content, key: value}))
    load_or_refuse(model)


@pytest.mark.parametrize("value", [1000000, -1])
def test_a_size_that_no_model_has_is_named(model, value):
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "num_hidden_layers": value}))
    with pytest.raises(ProbingError, match="num_hidden_layers"):
        load(str(model))
