"""What is refused of a model that is to be split over processes, before any process waits for another."""

from dataclasses import make_dataclass

import pytest
import tiny
import torch
import transformers
from harness import as_options

from probing import cli, load, ranks
from probing.errors import ModelInvalid, UsageError
from probing.instruments.gradient_rates import GradientRates
from probing.models import tensor_parallel
from probing.models.layers import find_backbone
from probing.models.tensor_parallel import begin_sharing
from probing.ranks import Ranks


@pytest.fixture
def processes(monkeypatch):
    """This process is the first of so many that share a model; the others are not there."""

    def launch(size):
        monkeypatch.setattr(ranks, "_current", Ranks(0, size, share_model=True))
        monkeypatch.setattr(Ranks, "open_group", lambda *_: pytest.fail("the others are asked to come"))

    return launch


def refusal_of(size, processes, **changes):
    processes(size)
    with pytest.raises(ModelInvalid) as refused:
        begin_sharing("m", transformers.LlamaConfig(**{**tiny.SHAPE, **changes}), torch.device("cpu"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("heads", "size", "advice"),
    [
        ((9, 3), 2, "of 9 and 3 heads (queries, and keys and values); launch 3"),
        ((8, 4), 3, "of 8 and 4 heads (queries, and keys and values); launch 2 or 4"),
        ((4, 1), 2, "no number of processes can"),
    ],
)
def test_attention_that_cannot_be_split_into_whole_heads(heads, size, advice, processes):
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "hidden_size": 8 * heads[0]}
    told = refusal_of(size, processes, **changes)
    assert told.startswith(f"m: {size} processes cannot split its attention")
    assert advice in told


def test_quantised_weights(processes):
    assert "quantised weights are not split" in refusal_of(2, processes, quantization_config={"quant_method": "fp8"})


def test_a_family_without_a_plan(processes):
    processes(2)
    with pytest.raises(ModelInvalid, match=r"m: transformers .* has no plan how to split a model of the type 'gpt2'"):
        begin_sharing("m", transformers.GPT2Config(), torch.device("cpu"))


def test_a_library_without_plans(processes, monkeypatch):
    monkeypatch.setattr(tensor_parallel, "DistributedConfig", make_dataclass("Older", []))
    assert "needs a newer transformers" in refusal_of(2, processes)


def test_one_process_has_nobody_to_share_with(model_folder, tmp_path, capsys):
    with pytest.raises(UsageError, match="launch the command with torchrun"):
        load(str(model_folder), device="tensor-parallel")
    words = as_options({"model": model_folder, "data": "bundled", "out": tmp_path / "out", "device": "tensor-parallel"})
    with pytest.raises(SystemExit) as left:
        cli.main(["score", *words])
    assert left.value.code == 2
    assert "launch the command with torchrun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "status"), [("0", 2), ("1", 0)])
def test_commands_that_need_whole_weights_are_refused_once(rank, status, model_folder, tmp_path, capsys, monkeypatch):
    for name, value in {"RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    data = {"data": "bundled", "target": "bundled", "out": tmp_path / "out"}
    words = as_options({"model": model_folder, **data, "device": "tensor-parallel"})
    with pytest.raises(SystemExit) as left:
        cli.main(["influence", *words])
    assert left.value.code == status
    told = "--device tensor-parallel is for commands that read states and likelihoods alone (score, "
    assert capsys.readouterr().err.count(told) == (rank == "0")


def test_blocks_are_not_compiled():
    from probing.runs.score import ScoreConfig

    with pytest.raises(ValueError, match="leave out compile"):
        ScoreConfig(model="m", data="d", out="o", device="tensor-parallel", compile=True)


def test_actors_of_ray_have_whole_models():
    pytest.importorskip("ray")
    from probing.runs.score import ScoreConfig

    with pytest.raises(UsageError, match="leave out one of them"):
        ScoreConfig(model="m", data="d", out="o", device="tensor-parallel", engine="ray")


def test_states_of_a_store_need_no_split(tmp_path):
    from probing.runs import probe

    with pytest.raises(UsageError, match="the states of a store need none"):
        probe.run(probe.ProbeConfig(store=tmp_path, data="bundled", out=tmp_path / "out", device="tensor-parallel"))


def test_gradients_and_adapters_need_whole_weights(monkeypatch, tmp_path):
    model = tiny.make_model()
    stack = find_backbone(model)
    monkeypatch.setattr(type(model.model), "tp_size", 2)
    with pytest.raises(ModelInvalid, match="exact rates and influences need gradients of whole weights"):
        GradientRates(stack)
    with pytest.raises(ModelInvalid, match="an adapter changes whole weights"):
        model.adapted(str(tmp_path))
