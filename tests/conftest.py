import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Read when the libraries are imported below, and by every process that a test starts: no test may wait for a hub, and
# none computes with more than one thread, since the models are tiny and several processes run tests at a time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

# Its own check of shapes, in words, is what a user meets and what its tests look at.
import probing.metrics.likelihood  # noqa: F401

# Shapes in signatures are checked while the tests run, and only then: of the functions that others call with tensors,
# not of what these call a thousand times, which would take longer to check than to run.
CHECKED = (
    *(
        f"probing.kernels.{name}"
        for name in ("ccs_step", "pair_distances", "project_out", "segment_pool", "token_stats")
    ),
    *(f"probing.metrics.clusters.{name}" for name in ("evaluate", "indices", "preparation")),
    *(
        f"probing.metrics.{name}"
        for name in ("displacement", "drift", "group_advantages", "layer_pooling", "ranking", "similarity")
    ),
    *(f"probing.directions.{name}" for name in ("edits", "extract", "refusal_score", "surrogate", "trace")),
    *(f"probing.engine.{name}" for name in ("readouts", "stream")),
    *(f"probing.probes.{name}" for name in ("ccs", "contrast", "polarity", "prompts", "supervised")),
)
install_import_hook(CHECKED, "beartype.beartype")

import torch  # noqa: E402

from probing.cli import main  # noqa: E402
from probing.kernels import dispatch  # noqa: E402

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """A process for each core that may be used; a worker takes about 1.5 GB, so not more than eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores, 8)


def pytest_collection_modifyitems(items):
    """Slow tests come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def nothing_ran_slower_yet(monkeypatch):
    """What one test makes run slower is in no other test's record, and is said aloud again."""
    monkeypatch.setattr(dispatch, "_slower", {})


@pytest.fixture(autouse=True)
def nothing_is_proved_yet():
    """What one test proved of a model that several use is no other test's, which may change how attention works."""
    if "probing.models.proofs" in sys.modules:
        sys.modules["probing.models.proofs"].PROOFS.clear()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    import tiny  # with it comes transformers, which tests of kernels do without

    return tiny.save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def refusal_run(tmp_path_factory):
    """What every command of refusals wrote for the bundled model: folders of their names, and prompts.jsonl."""
    import refusal_runs
    from harness import make_once

    def make(runs):
        refusal_runs.write_prompts(runs / "prompts.jsonl")
        for command in refusal_runs.COMMANDS:
            with pytest.raises(SystemExit) as left:
                main(refusal_runs.options_of(command, runs / "prompts.jsonl", runs, runs / command))
            assert left.value.code == 0
        return str(runs)

    return Path(make_once(tmp_path_factory, "refusal", make))


@pytest.fixture(name="probing")
def run_in_process(capsys):
    """Run a command in this process: (status, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return run


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data():
    folder = os.environ.get("PROBING_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PROBING_REAL_DATA names no folder with the public datasets")
    return Path(folder)
