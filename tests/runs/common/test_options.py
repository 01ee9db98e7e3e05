"""The options of all jobs: each declared, described and bounded once, and part of every run's identity or of none."""

import dataclasses
import importlib
import inspect
import typing
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from docstring_parser import parse

from probing import cli
from probing.runs.ccs.config import CCSConfig
from probing.runs.clusters.config import ClustersConfig
from probing.runs.common.options import Options, RunOptions, option
from probing.runs.probe.config import ProbeConfig
from probing.runs.score.config import ScoreConfig


def config_of(command):
    run = importlib.import_module(f"probing.runs.{command.replace(' ', '.')}").run
    return typing.get_type_hints(run)["config"]


CONFIGS = {command: config_of(command) for command in cli.COMMANDS}
CLASSES = {each for config in CONFIGS.values() for each in config.__mro__ if dataclasses.is_dataclass(each)}
# Options that mean something else in a job, so that they are described anew there.
MEANS_ANOTHER_THING = {
    "model": "causal models only; several; none at all",
    "store": "states of statements; several",
    "out": "a file; a folder of everything",
    "data": "what was scored",
    "split": "by default the one that was scored",
    "id_column": "by default the one that was used for scoring",
    "pooling": "every token",
    "label_column": "truth of a statement",
    "chat": "a question is asked",
    "split_by": "pairs that share a text",
    "by": "what is ordered, not filtered",
    "format": "of an edit, not of rows",
    "overwrite": "a file that is exported",
    "direction": "of an export, which needs one; of an evaluation, which can do with an edited model",
    "mode": "of an export, which can hold two of the edits",
    "place": "of a direction among many; of both models",
    "coefficient": "of an export, which cannot hold a share",
    "answers": "of an evaluation; two words for yes and no",
    "loss": "of preference training; of contrast-consistent probes",
    "prompt_column": "of groups of responses",
    "learning_rate": "of probes; of a pilot",
    "optimizer": "of probes; of the training that is foretold",
    "seed": "of folds and permutations; of batches and null draws",
    "folders": "finished runs, of a report; runs however far they are; of all shards of one",
    "policy": "one of three ways to name what is compared; the only one",
}
# Options that count in one job and not in another, and why.
IDENTITY_DIFFERS = {
    "places": "a capture records them as what they are in the model",
    "answers": "two words that are compared; or a folder, which is told apart by its content",
    "beta": "of the loss that rates are about; of one line of the summary of a displacement",
}


def declared(each):
    return [name for name in inspect.get_annotations(each) if name in each.__dataclass_fields__]


def described(each):
    return {entry.arg_name: entry.description for entry in parse(each.__doc__ or "").params}


def test_every_option_has_a_home():
    count = sum(len(declared(each)) for each in CLASSES)
    names = {name for each in CLASSES for name in declared(each)}
    assert len(names) >= 90
    assert count <= 1.3 * len(names), f"{count} declarations of {len(names)} options"


def test_every_description_is_of_an_option_and_every_option_has_one():
    for each in CLASSES:
        names = {entry.name for entry in dataclasses.fields(each)}
        assert set(described(each)) <= names, f"{each.__name__} describes what is no option of it"
    for config in CONFIGS.values():
        words = {name for each in config.__mro__ if dataclasses.is_dataclass(each) for name in described(each)}
        assert {entry.name for entry in dataclasses.fields(config)} == words


def test_no_option_is_described_twice_unless_it_means_another_thing():
    words = defaultdict(list)
    for each in CLASSES:
        for name, text in described(each).items():
            words[name].append(text)
    again = {name: texts for name, texts in words.items() if len(texts) > 1}
    assert set(again) == set(MEANS_ANOTHER_THING)
    for name, texts in again.items():
        assert len(set(texts)) == len(texts), f"{name} is described twice in the same words: inherit it"


def test_an_option_is_part_of_the_identity_of_every_run_or_of_none():
    found = defaultdict(set)
    for config in CONFIGS.values():
        for entry in dataclasses.fields(config):
            found[entry.name].add(entry.metadata.get("identity", True))
    assert {name for name, counts in found.items() if len(counts) > 1} == set(IDENTITY_DIFFERS)
    for name in ("data", "out", "model", "store", "device", "dtype", "revision", "split", "id_column", "label_column"):
        assert found[name] == {False}, f"{name} changes no byte, or is told apart by content"
    for name in ("max_length", "batch_tokens", "eos", "compile", "columns", "seed", "folds", "over", "chat", "pooling"):
        assert found[name] == {True}


def test_the_identity_of_a_run_that_lacks_an_option_has_its_default():
    config = ScoreConfig(model="m", data="d", out="o", compile=True)
    earlier = {name: value for name, value in config.plain().items() if name != "compile"}
    assert config.identity()["compile"] is True
    assert config.recorded_identity(earlier) == {**config.identity(), "compile": False}
    assert config.recorded_identity({**config.plain(), "split": "train"}) == config.identity()


@dataclass(frozen=True, kw_only=True)
class Bounded(Options):
    count: int | None = option(None, least=2, most=1000)
    rate: float = option(0.5, above=0)
    share: float = option(0.5, least=0, most=1)
    form: str = option("last:1", form="last:[1-9]")
    spoken: str = option("a", form="a|b", written="a or b")
    word: typing.Literal["a", "b"] = "a"
    other: typing.Literal["a", "b"] | None = None
    switch: bool = False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1}, "count must be at least 2, not 1"),
        ({"rate": 0.0}, "rate must be above 0, not 0.0"),
        ({"rate": float("inf")}, "rate must be above 0 and finite, not inf"),
        ({"rate": float("nan")}, "rate must be above 0, not nan"),
        ({"share": 1.5}, r"share must be in \[0, 1\], not 1.5"),
        ({"share": -0.5}, "share must be at least 0, not -0.5"),
        ({"count": 10**13}, r"count must be in \[2, 1000\], not 10000000000000"),
        ({"rate": float("inf")}, "rate must be above 0 and finite"),
        ({"form": "last:0"}, r"form must be of the form last:\[1-9\], not 'last:0'"),
        ({"form": 3}, "form must be of the form .*, not 3"),
        ({"spoken": "c"}, "spoken must be a or b, not 'c'"),
        ({"word": "c"}, "word must be one of a, b, not 'c'"),
        ({"word": None}, "word must have a value"),
        ({"other": ["a"]}, r"other must be one of a, b, not \['a'\]"),
        ({"count": "2"}, "count must be a whole number, not '2'"),
        ({"count": 2.5}, "count must be a whole number, not 2.5"),
        ({"rate": "1"}, "rate must be a number, not '1'"),
        ({"switch": "no"}, "switch must be true or false, not 'no'"),
    ],
)
def test_bounds_are_checked(values, message):
    assert Bounded(count=2, rate=1e-9, share=1.0)
    assert Bounded().count is None
    assert Bounded(count=np.int64(3), rate=np.float32(1), other="b", switch=True).other == "b"
    with pytest.raises(ValueError, match=message):
        Bounded(**values)


def test_standard_input_is_read_by_one_option_alone(tmp_path):
    for config, name, given in ((ProbeConfig, "fresh", {"model": "m"}), (ClustersConfig, "control", {"model": "m"})):
        with pytest.raises(ValueError, match=f"{name} and data are both standard input"):
            config(data="-", out=tmp_path, **given, **{name: "-"})


def test_options_of_a_capture_say_nothing_beside_a_store(tmp_path):
    of_capture = {entry.name for entry in dataclasses.fields(ProbeConfig) if entry.metadata.get("of_capture")}
    expected = {"revision", "dtype", "trust_remote_code", "batch_tokens", "max_length", "compile"}
    assert of_capture == expected | {"pooling", "over", "chat"}
    of_forms = {entry.name for entry in dataclasses.fields(CCSConfig) if entry.metadata.get("of_capture")}
    assert of_forms == expected | {"token"}
    with pytest.raises(ValueError, match="leave out --over, --chat"):
        ProbeConfig(data="d", out=tmp_path, store=tmp_path, over="content", chat=True)
    with pytest.raises(ValueError, match="leave out --batch-tokens"):
        ClustersConfig(data="d", out=tmp_path, store=["a", "b"], batch_tokens=5)
    with pytest.raises(ValueError, match="give one of --model and --store"):
        ProbeConfig(data="d", out=tmp_path)


def test_the_same_bounds_hold_wherever_an_option_stands():
    bounds = {
        entry.name: entry.metadata["bounds"] for entry in dataclasses.fields(RunOptions) if "bounds" in entry.metadata
    }
    assert bounds["batch_tokens"] == {"least": 1, "most": 10**8}
    for config in CONFIGS.values():
        for entry in dataclasses.fields(config):
            if entry.name == "batch_tokens":
                assert entry.metadata["bounds"] == bounds["batch_tokens"]


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_lists_every_option_under_the_heading_of_its_class(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert done.value.code == 0
    for entry in dataclasses.fields(CONFIGS[command]):
        typed = entry.name.upper() if entry.metadata.get("positional") else f"--{entry.name.replace('_', '-')}"
        assert typed in out
    assert "None" not in out
    if command == "probe":
        for heading in ("The dataset, and where to write", "What is held out, and what stays together"):
            assert f"{heading}:" in out


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_what_print_config_writes_can_be_read_again(command, capsys, tmp_path):
    def printed(*arguments):
        with pytest.raises(SystemExit) as done:
            cli.main([*command.split(), *arguments, "--print-config"])
        assert done.value.code == 0
        return capsys.readouterr().out

    given = printed()
    assert {line.split(":")[0] for line in given.splitlines()} - {"json", "full", "quiet"} == {
        entry.name for entry in dataclasses.fields(CONFIGS[command])
    }
    (tmp_path / "job.yaml").write_text(given)
    assert printed("--config", str(tmp_path / "job.yaml")) == given


ABSURD = {
    "score": ["--rate-parameters=last:0", "--rate-parameters=last:-1", "--rate-parameters=", "--batch-tokens=10**12"],
    "clusters": ["--permutations=1000000000000", "--folds=100000", "--resamples=1000000000", "--seed=99999999999"],
    "ccs": ["--random=1000000000", "--epochs=1000000000000", "--restarts=100000000", "--learning-rate=1e300"],
    "displacement": ["--top=100000000", "--beta=1e300", "--shard-pairs=1000000000000"],
    "capture": ["--shard-rows=1000000000000"],
}


@pytest.mark.parametrize(("command", "value"), [(name, value) for name, values in ABSURD.items() for value in values])
def test_absurd_values_are_refused_before_anything_is_read(probing, tmp_path, command, value):
    models = ["--reference=bundled", "--policy=bundled"] if command == "displacement" else ["--model=bundled"]
    places = ["--places=final_norm"] if command == "capture" else []
    status, _, errors = probing(command, *models, *places, f"--data={tmp_path}/no.jsonl", f"--out={tmp_path}/o", value)
    name = value.partition("=")[0].removeprefix("--")
    assert (status, errors.count("\n")) == (2, 1)
    assert name in errors.replace("_", "-")


def test_every_number_has_a_greatest_value():
    for config in CONFIGS.values():
        for entry in dataclasses.fields(config):
            if {"least", "above"} & set(entry.metadata.get("bounds", {})):
                assert "most" in entry.metadata["bounds"], f"{config.__name__}.{entry.name}"
