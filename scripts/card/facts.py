"""Stage ``facts``: what this machine is, so that every later line can be read."""

import contextlib
import importlib
import inspect
import platform
import subprocess
from typing import Any

import torch

from card.bare import ROOT, missing_modules
from card.run import Run

LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "numpy", "pandas", "pyarrow", "scipy", "sklearn")
COMMIT_FILE = "COMMIT"


def facts(run: Run) -> None:
    """The first line: device, versions, commit, and what torch's attention of varying length takes."""
    run.say(
        device=torch.cuda.get_device_name() if run.card else f"{platform.machine()} cpu",
        small=run.small,
        python=platform.python_version(),
        **versions(),
        commit=commit(run.commit),
        varlen_attn=varlen_signature(),
        missing=missing_modules(),
        **(card_facts() if run.card else {"threads": torch.get_num_threads()}),
    )


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on; without those that are not installed."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            found[name] = str(importlib.import_module(name).__version__)
    return found


def commit(given: str | None) -> str:
    """The commit of this tree: as given, from git, or from a file ``COMMIT`` at its root."""
    if given:
        return given
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    file = ROOT / COMMIT_FILE
    return file.read_text(encoding="utf-8").strip() if file.exists() else "unknown"


def varlen_signature() -> str:
    """How ``varlen_attn`` is called in this version of torch; older ones have none."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("torch.nn.attention.varlen")
        return str(inspect.signature(module.varlen_attn))
    return "not in this torch"


def card_facts() -> dict[str, Any]:
    """Of the card itself."""
    found = torch.cuda.get_device_properties(0)
    return {
        "multiprocessors": found.multi_processor_count,
        "memory_gib": found.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
