"""One model split over two processes: the numbers of one process, or a refusal by name."""

import os
import signal

import families
import pandas as pd
import pytest
import torch
from harness import PATIENCE_SECONDS, as_options, count_shards, make_pairs, wait_for, write
from launches import find_rank, launch, launched

from probing import open_store
from probing.errors import SourceMismatch
from probing.runs import capture, displacement, score
from probing.store.manifest import read_run

pytestmark = pytest.mark.distributed

# Sums over the hidden width are split in two, which changes the last digits of float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WITHOUT_SUMS = """
from transformers.distributed.tensor_parallel import RowwiseParallel
RowwiseParallel.transform_output_post_forward = lambda self, module, output, mesh: output
from probing.cli import main
main()
"""
"""The command in a library that forgets to add up the parts of a product."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "pairs.jsonl", make_pairs(24))
    for name, seed in (("llama", 0), ("llama", 1), ("qwen3", 0), ("gemma2", 0)):
        made = families.make(name, seed)
        for part in (made.model, made.tokenizer):
            part.save_pretrained(folder / (name if not seed else f"{name}-{seed}"))
    return folder


def options(inputs, model, out, **more):
    """A scoring in parts of a few pairs."""
    return {"model": f"{inputs / model}", "data": f"{inputs / 'pairs.jsonl'}", "out": out, "shard_pairs": 4, **more}


def words(command, values):
    """The command line of a run over the processes of a launch."""
    return [command, *as_options({**values, "device": "tensor-parallel"})]


def launch_well(command, values):
    """Run a command over two processes; it has to end well, and to say once what it wrote."""
    status, _, said = launch(words(command, values), 2)
    assert status == 0, said
    assert said.count("wrote ") == 1


def assert_same_tables(one, other, name):
    frame, expected = (pd.read_parquet(folder / name) for folder in (one, other))
    assert len(expected) > 0
    pd.testing.assert_frame_equal(frame, expected, check_exact=False, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_scores_are_those_of_one_process(family, inputs, tmp_path):
    launch_well("score", options(inputs, family, tmp_path / "two", columns="all", pull=True))
    score.run(score.ScoreConfig(**options(inputs, family, tmp_path / "one", columns="all", pull=True)))
    for name in ("scores.parquet", "tokens.parquet"):
        assert_same_tables(tmp_path / "two", tmp_path / "one", name)
    facts, plain = (read_run(tmp_path / name, "run.json") for name in ("two", "one"))
    assert facts["identity"]["device"] == "cpu, tensor parallel over 2"
    assert facts["model"]["device"] == "cpu, tensor parallel over 2"
    assert facts["identity"]["model"] == plain["identity"]["model"]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_states_of_every_place_are_those_of_one_process(family, inputs, tmp_path):
    places = "resid_pre:all,attn_out:all,mlp_out:all,resid_post:all,final_norm"
    values = {"model": f"{inputs / family}", "data": f"{inputs / 'pairs.jsonl'}", "shard_rows": 20, "places": places}
    launch_well("capture", {**values, "out": tmp_path / "two"})
    capture.run(capture.CaptureConfig(**values, out=tmp_path / "one"))
    stores = [open_store(tmp_path / name) for name in ("two", "one")]
    assert stores[0].ids == stores[1].ids
    assert len(stores[0].places) == 4 * families.LAYERS + 1
    for place in stores[0].places:
        torch.testing.assert_close(*(store.read(place) for store in stores), **CLOSE)


def test_two_models_are_compared_as_by_one_process(inputs, tmp_path):
    values = options(inputs, "llama", tmp_path / "two") | {"policy": f"{inputs / 'llama-1'}"}
    values["reference"] = values.pop("model")
    launch_well("displacement", values)
    displacement.run(displacement.DisplacementConfig(**values | {"out": tmp_path / "one"}))
    assert_same_tables(tmp_path / "two", tmp_path / "one", "displacement.parquet")


def test_a_run_whose_process_was_killed_goes_on_with_as_many(inputs, tmp_path):
    values = options(inputs, "llama", tmp_path / "out", pull=True, shard_pairs=2)
    with launched(words("score", values), 2) as launcher:
        rank = wait_for(lambda: count_shards(tmp_path / "out") > 2 and find_rank(launcher, 1), launcher)
        os.kill(rank, signal.SIGKILL)
        assert launcher.wait(PATIENCE_SECONDS) != 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("0*.parquet")}
    assert 2 < len(kept) < 12
    with pytest.raises(SourceMismatch, match="device was cpu, tensor parallel over 2, is cpu"):
        score.run(score.ScoreConfig(**values))
    with launched(words("score", values), 2) as launcher:
        wait_for(lambda: count_shards(tmp_path / "out") > len(kept), launcher)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert launcher.wait(PATIENCE_SECONDS) == 0
    score.run(score.ScoreConfig(**values | {"out": tmp_path / "one"}))
    for name in ("scores.parquet", "tokens.parquet"):
        assert_same_tables(tmp_path / "out", tmp_path / "one", name)


def test_shares_that_do_not_add_up_are_refused(inputs, tmp_path):
    status, _, said = launch(words("score", options(inputs, "llama", tmp_path / "out")), 2, WITHOUT_SUMS)
    assert status != 0
    assert "'model.layers.0' of LlamaForCausalLM does not compute what it computes with whole weights" in said
    assert not (tmp_path / "out").exists()
