"""Every command with ``--device balanced``: the numbers of one device, and a model spread over several is read."""

import io
import json
import random

import accelerate
import pandas as pd
import pytest
import refusal_runs
import tiny
import torch
from cards import FIRST, HOST, SECOND, Cards, spread
from harness import WORDS, make_rollouts, override, read_lines, write

from probing import cli, score_pairs
from probing.data.bundled import bundled_data
from probing.errors import OutOfMemory, UsageError
from probing.models import load as loading
from probing.models.devices import choose_device, device_names, devices_of, free_memory
from probing.runs.common.states import check_memory

PAIRS = [
    {"prompt": "Is it ok?", "chosen": " Yes, always.", "rejected": " No. Never."},
    {"prompt": "Is it ok?", "chosen": " Sure", "rejected": " I am sorry"},
    {"prompt": "Why", "chosen": " The answer is near", "rejected": " no"},
]
QUICK = ["--places", "resid_post:2", "--resamples", "10", "--folds", "3"]
COMMANDS = {
    "score": ["--columns", "all,displacement_rate,displacement_rate_exact", "--pull"],
    "rollouts": [],
    "displacement": ["--top", "2"],
    "capture": ["--places", "resid_post:all,attn_out:0,final_norm"],
    "ccs": [*QUICK, *"--epochs 10 --restarts 2 --pairings 1 --random 4 --refits 2 --permutations 10".split()],
    "probe": [*QUICK, "--refits", "2"],
    "clusters": [*QUICK, "--permutations", "10", "--no-tsne"],
}
LIKELIHOODS = ("score", "displacement")
NOT_REPEATED = {"ccs": ("results.parquet", "controls.parquet", "probes.safetensors")}
"""VINC finds nothing but rounding in these few statements, so that it differs between any two runs."""
BYTES = (".parquet", ".safetensors")
RECORDS = ("run.json", "manifest.json")


def texts():
    generator = random.Random(0)
    return [
        {"id": f"r{n}", "text": f"{' '.join(generator.choices(WORDS, k=4))} {n}", "label": "ab"[n % 2]}
        for n in range(24)
    ]


def statements():
    """Some of every category of the bundled ones, as many true as false."""
    rows = read_lines(bundled_data("statements"))
    kinds = {}
    for row in rows:
        kinds.setdefault((row["category"], row["formulation"], row["label"]), row)
    return sorted(kinds.values(), key=lambda row: row["category"])[:24]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, model_folder):
    """The data of every command, and another model."""
    folder = tmp_path_factory.mktemp("devices")
    data = {
        "score": PAIRS,
        "displacement": PAIRS,
        "rollouts": make_rollouts(6),
        "capture": texts(),
        "ccs": statements(),
    }
    data |= {"probe": texts(), "clusters": texts()}
    for name, rows in data.items():
        write(folder / f"{name}.jsonl", rows)
    tiny.save_model(folder / "policy", seed=1)
    return folder


def run(name, shared, model, out, device):
    """One command; answers with the content of its files of numbers, and its records."""
    models = ["--model", str(model)]
    if name == "displacement":
        models = ["--reference", str(model), "--policy", str(shared / "policy")]
    given = [*models, "--data", str(shared / f"{name}.jsonl"), "--out", str(out), "--device", device]
    with pytest.raises(SystemExit) as ended:
        cli.main([name, *given, *COMMANDS[name]])
    assert ended.value.code == 0
    written = {
        str(path.relative_to(out)): path for path in out.rglob("*") if path.name not in NOT_REPEATED.get(name, ())
    }
    records = {name: json.loads(path.read_text()) for name, path in written.items() if name.endswith(RECORDS)}
    return {name: path.read_bytes() for name, path in written.items() if name.endswith(BYTES)}, records


def without_exact(numbers):
    """Scores without the exact rate, and that: gradients are summed in another order when tensors are copied."""
    frame = pd.read_parquet(io.BytesIO(numbers["scores.parquet"]))
    return frame.drop(columns="displacement_rate_exact"), frame["displacement_rate_exact"]


def check_spread(name, found, expected):
    if name != "score":
        assert found == expected
        return
    (left, left_exact), (right, right_exact) = without_exact(found), without_exact(expected)
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    pd.testing.assert_series_equal(left_exact, right_exact, rtol=1e-5)


@pytest.mark.parametrize("name", COMMANDS)
def test_balanced_gives_the_numbers_of_one_device(name, shared, model_folder, tmp_path, monkeypatch):
    """On a machine without cards it is the CPU; then with the model on two cards and its head on either."""
    expected, records = run(name, shared, model_folder, tmp_path / "cpu", "cpu")
    assert expected
    found, others = run(name, shared, model_folder, tmp_path / "balanced", "balanced")
    assert found == expected
    for file, record in records.items():
        assert others[file]["identity"] == record["identity"], file
    read = loading._from_pretrained
    for number, head in enumerate((FIRST, SECOND) if name in LIKELIHOODS else (SECOND,)):

        def on_cards(*given, head=head):
            model, info = read(*given)
            return spread(model, head), info

        monkeypatch.setattr(loading, "_from_pretrained", on_cards)
        with Cards():
            found, others = run(name, shared, model_folder, tmp_path / f"spread-{number}", "balanced")
        check_spread(name, found, expected)
        assert '"cpu:1, cpu:2"' in json.dumps(others)


@pytest.mark.parametrize("command", ["select", "export"])
def test_refusals_on_several_devices(command, refusal_run, tmp_path, monkeypatch):
    """The numbers of one device, with the model on two cards; what is exported is the same, bit for bit."""
    expected = refusal_run / command
    given = refusal_runs.options_of(command, refusal_run / "prompts.jsonl", refusal_run, tmp_path / "out")
    if command == "export":
        # PEFT makes parameters anew, which then have forgotten on which of the emulated cards they are.
        given, expected = override(given, ["--format=model"]), tmp_path / "plain"
        with pytest.raises(SystemExit) as ended:
            cli.main(override(given, [f"--out={expected}"]))
    read = loading._from_pretrained

    def on_cards(*given):
        model, info = read(*given)
        return spread(model, SECOND), info

    monkeypatch.setattr(loading, "_from_pretrained", on_cards)
    with Cards(), pytest.raises(SystemExit) as ended:
        cli.main([*given, "--device", "balanced"])
    assert ended.value.code == 0
    kept = [path for path in expected.iterdir() if path.suffix in BYTES]
    assert kept
    for path in kept:
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_emulated_cards_do_not_mix():
    with Cards():
        left, right = torch.ones(2).to(FIRST), torch.ones(2).to(SECOND)
        assert (left.device, (left + 1).device, left.cpu().device) == (FIRST, FIRST, HOST)
        with pytest.raises(RuntimeError, match="add: tensors on cpu:1, cpu:2"):
            left + right
        assert (left + right.to(left.device)).device == FIRST


def test_devices_of_a_model():
    model = tiny.make_model()
    assert devices_of(model) == [HOST]
    assert model.placement == "cpu"
    spread(model.model)
    assert devices_of(model) == [FIRST, SECOND]
    assert model.device == FIRST
    assert device_names(devices_of(model)) == "cpu"


def test_names_of_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ("H100", "H100", "H200")[device.index])
    cards = [torch.device("cuda", number) for number in range(3)]
    assert device_names(cards[:1]) == device_names(cards[:2]) == "H100"
    assert device_names([*cards, HOST]) == "H100 + H200 + cpu"


def test_what_is_computed_beside_a_balanced_model_has_one_device():
    assert choose_device("balanced") == choose_device("auto")


def test_weights_in_the_memory_of_the_host():
    """Brought to the device module by module; scores are the same, and exact rates are refused."""
    plain, offloaded = tiny.make_model(), tiny.make_model()
    accelerate.cpu_offload(offloaded.model, execution_device=HOST)
    assert {parameter.device.type for parameter in offloaded.model.parameters()} == {"meta"}
    assert devices_of(offloaded) == [HOST]
    columns = ["all", "displacement_rate"]
    pd.testing.assert_frame_equal(
        score_pairs(offloaded, PAIRS, columns=columns), score_pairs(plain, PAIRS, columns=columns), check_exact=True
    )
    with pytest.raises(UsageError, match="exact rates need every weight on a device, and some are offloaded"):
        score_pairs(offloaded, PAIRS, columns=["displacement_rate_exact"])


def test_memory_that_torch_holds_is_free(monkeypatch):
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * 2**30)
    assert free_memory(card) == 7 * 2**30
    check_memory(7 * 2**30, card, "probing")
    with pytest.raises(OutOfMemory, match=r"probing needs about 7\.5 GiB, 7\.0 are free on the cuda"):
        check_memory(15 * 2**29, card, "probing")
