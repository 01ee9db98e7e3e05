"""The job ``probing doctor``: what this machine can do, what will run, and why."""

import importlib.util
import os
from dataclasses import dataclass

from probing.types import Report

EXTRAS = {"cuda": ["triton"], "train": ["trl", "peft"], "ray": ["ray"], "report": ["plotly", "jinja2"]}


@dataclass(frozen=True)
class DoctorConfig:
    """Print device, versions, and what will run here and why."""


def run(config: DoctorConfig) -> Report:
    """Look at the machine; nothing is loaded or changed."""
    import pandas as pd

    from probing.runs.versions import versions

    machine, plan = _machine(), _plan()
    tables = {
        "Machine": pd.DataFrame(machine, columns=["what", "found"]),
        "What will run": pd.DataFrame(plan, columns=["what", "choice", "why"]),
        "Versions": pd.DataFrame(sorted(versions().items()), columns=["library", "version"]),
    }
    return Report(
        tables,
        {
            "machine": dict(machine),
            "plan": [dict(zip(("what", "choice", "why"), row, strict=True)) for row in plan],
            "versions": versions(),
        },
    )


def _machine() -> list[tuple[str, str]]:
    import torch

    facts = [("processor cores", str(os.cpu_count())), ("torch threads", str(torch.get_num_threads()))]
    if not torch.cuda.is_available():
        return [*facts, ("CUDA cards", "none")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{card.name}, sm_{card.major}{card.minor}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        facts.append((f"cuda:{index}", found))
    return facts


def _plan() -> list[tuple[str, str, str]]:
    import torch

    from probing.engine.stream import CPU_BATCH_TOKENS, MOST_BATCH_TOKENS
    from probing.kernels.dispatch import choose
    from probing.kernels.jit import ELEMENT_TYPES
    from probing.models.load import choose_device

    device = choose_device()
    card = device.type == "cuda"
    return [
        ("device", str(device), "the first CUDA card" if card else "torch finds no CUDA card"),
        (
            "dtype",
            "the checkpoint's" if card else "float32",
            "an accelerator is there" if card else "half precision is slow on a CPU",
        ),
        (
            "batch",
            f"up to {MOST_BATCH_TOKENS} tokens" if card else f"{CPU_BATCH_TOKENS} tokens",
            "fills half of the free memory" if card else "larger batches are no faster on a CPU",
        ),
        ("segment_sum", *choose("segment_sum", "auto", torch.empty(0, device=device), ELEMENT_TYPES)),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
    ]


def _extra(name: str, modules: list[str]) -> tuple[str, str, str]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"extra '{name}'", "off", f"not installed: {', '.join(missing)} (pip install 'probing[{name}]')"
    used = "kernels run in Triton on a CUDA card" if name == "cuda" else "nothing in this version uses it yet"
    return f"extra '{name}'", "installed", used
