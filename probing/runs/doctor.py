"""The job ``probing doctor``: what this machine can do, what will run, and why."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probing.runs.common.options import DeviceOptions, HubOptions, option
from probing.types import Report

EXTRAS = {
    "cuda": ["triton"],
    "train": ["trl", "peft"],
    "report": ["plotly"],
    "metrics": ["prometheus_client"],
    "ray": ["ray"],
}
USES = {
    "cuda": "kernels run in Triton on a CUDA card",
    "train": "adapters (peft); trl for scripts/validate_displacement.py",
    "report": "--interactive: pages of plots that can be zoomed (plotly)",
    "metrics": "--metrics-port: progress for Prometheus (prometheus_client)",
    "ray": "--engine ray: rows run by the actors of a cluster (ray)",
}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(HubOptions, DeviceOptions):
    """Print device, versions, and what will run here and why; and where the places of a model are.

    Args:
        model: folder or hub id of a model to look into, or "bundled".
    """

    model: str | None = option(None, identity=False)


def run(config: DoctorConfig) -> Report:
    """Look at the machine, and into a model if one is named; nothing is changed.

    Raises:
        LayerNotFound: the structure of the model is not recognised; lists what was found.
    """
    import pandas as pd

    from probing.runs.common.versions import versions

    machine, plan = _describe_machine(), _describe_plan()
    tables = {
        "Machine": pd.DataFrame(machine, columns=["what", "found"]),
        "What will run": pd.DataFrame(plan, columns=["what", "choice", "why"]),
        "Versions": pd.DataFrame(sorted(versions().items()), columns=["library", "version"]),
    }
    model_tables = _look_into(config) if config.model is not None else {}
    for title, rows in model_tables.items():
        tables[title] = pd.DataFrame(rows)
    return Report(
        tables,
        {
            **({"model": model_tables} if model_tables else {}),
            "machine": dict(machine),
            "plan": [dict(zip(("what", "choice", "why"), row, strict=True)) for row in plan],
            "versions": versions(),
        },
    )


def _look_into(config: DoctorConfig) -> dict[str, list[dict[str, str]]]:
    """Find the parts of a model, the writes of each block, and the way in which it will be run."""
    from probing.engine.modes import choose_mode
    from probing.models.layers import find_stack
    from probing.models.load import load

    assert config.model is not None
    model = load(config.model, config.revision, config.dtype, config.device, config.trust_remote_code)
    stack = find_stack(model)
    head = model.model.get_output_embeddings()
    facts = {
        "family": stack.family,
        "kind": "causal" if stack.causal else "bidirectional (an encoder)",
        "embedding": stack.name_of(model.model.get_input_embeddings()),
        "blocks": f"{len(stack.blocks)} in {stack.name_of(stack.blocks[0]).rpartition('.')[0]}",
        "width": str(stack.width),
        "positions": "no limit" if model.max_positions is None else str(model.max_positions),
        "final norm": stack.name_of(stack.final_norm) if stack.final_norm is not None else "none",
        "output head": "none" if head is None else stack.name_of(head),
        "logits": "none" if head is None else _describe_logits(stack),
        "device, dtype": f"{model.placement}, {str(model.dtype).removeprefix('torch.')}",
        "run": choose_mode(stack).describe(),
    }
    blocks: dict[tuple[str, str, str], list[int]] = {}
    for layer, writes in enumerate(stack.writes):
        attention, mlp = (
            " + ".join(part.describe() for part in side) or "-" for side in (writes.attention, writes.mlp)
        )
        blocks.setdefault((attention, mlp, writes.form), []).append(layer)
    return {
        "Model": [{"what": what, "found": value} for what, value in facts.items()],
        "What the blocks add to the residual stream": [
            {"layers": format_ranges(layers), "attn_out": attention, "mlp_out": mlp, "form": form}
            for (attention, mlp, form), layers in blocks.items()
        ],
    }


def _describe_logits(stack: Any) -> str:
    """Describe how states become logits, or why likelihoods of this model are refused."""
    from probing.errors import ProbingError
    from probing.models.heads import find_head

    try:
        head = find_head(stack)
    except ProbingError as error:
        return str(error)
    parts = [f"{len(head.weight)} tokens", "a bias" if head.bias is not None else ""]
    parts += [f"times {head.scale:g}" if head.scale != 1 else ""]
    parts += [f"soft cap {head.soft_cap:g}" if head.soft_cap is not None else ""]
    return ", ".join(filter(None, parts))


def format_ranges(numbers: list[int]) -> str:
    """``0..3, 5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _describe_machine() -> list[tuple[str, str]]:
    import torch

    facts = [("this package", _describe_package())]
    facts += [("processor cores", str(os.cpu_count())), ("torch threads", str(torch.get_num_threads()))]
    if not torch.cuda.is_available():
        return [*facts, ("CUDA cards", "none")]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        description = f"{card.name}, sm_{card.major}{card.minor}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        facts.append((f"cuda:{index}", description))
    return facts


def _describe_package() -> str:
    """Version and place of this package, and whether another distribution of the same import name is installed."""
    from probing.runs.common.versions import DISTRIBUTION, find_namesakes, version_of

    here = f"{DISTRIBUTION} {version_of(DISTRIBUTION)} in {Path(__file__).parents[1]}"
    others = find_namesakes()
    if not others:
        return here
    shadow = ", ".join(others)
    return (
        f"{here}. Also installed: {shadow}, whose import name is 'probing' too; its files can shadow these: "
        f"pip uninstall {others[0].split()[0]}, then pip install --force-reinstall --no-deps {DISTRIBUTION}"
    )


def _describe_plan() -> list[tuple[str, str, str]]:
    import torch

    from probing.engine.budget import CPU_BATCH_TOKENS, MOST_BATCH_TOKENS
    from probing.kernels.ccs_step import LOGIT_TYPES
    from probing.kernels.dispatch import choose
    from probing.kernels.jit import ELEMENT_TYPES
    from probing.kernels.token_stats import ROW_TYPES
    from probing.models.devices import choose_device

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
        ("row_stats", *choose("row_stats", "auto", torch.empty(0, device=device), ROW_TYPES)),
        ("ccs_gradient", *choose("ccs_gradient", "auto", torch.empty(0, device=device), LOGIT_TYPES)),
        ("pair_distances", *choose("pair_distances", "auto", torch.empty(0, device=device), ELEMENT_TYPES)),
        ("project_out", *choose("project_out", "auto", torch.empty(0, device=device), ELEMENT_TYPES)),
        *(_describe_extra(name, modules) for name, modules in EXTRAS.items()),
    ]


def _describe_extra(name: str, modules: list[str]) -> tuple[str, str, str]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return f"extra '{name}'", "off", f"not installed: {', '.join(missing)} (pip install 'model-probing[{name}]')"
    return f"extra '{name}'", "installed", USES[name]
