"""The record and the card of an export."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from probing.models.edited_checkpoints import WrittenTensor
from probing.report.card import CARD_FILE, write_code
from probing.runs.common.versions import versions
from probing.runs.refusal.export.config import ExportConfig
from probing.runs.refusal.export.models import Exported
from probing.shown import LONGEST_MESSAGE, escape_controls
from probing.store.files import file_sha256
from probing.store.manifest import MANIFEST, RunFolder
from probing.types import Direction

COMMAND = "refusal export"


def gather_facts(config: ExportConfig, direction: Direction, exported: Exported) -> dict[str, Any]:
    """Facts for the record."""
    return {
        "status": "done",
        "config": config.plain(),
        "format": config.format,
        "mode": config.edit,
        "model": asdict(exported.source),
        "computed_in": exported.dtype.removeprefix("torch."),
        "direction": {
            "place": str(direction.place),
            "position": direction.position,
            "rank": direction.rank,
            "method": direction.method,
            "facts": direction.facts,
        },
        "proof": exported.proof,
        "notes": exported.notes,
        "changed": sum(tensor.changed for tensor in exported.tensors),
        "tensors": [asdict(tensor) | {"changed": tensor.changed} for tensor in exported.tensors],
        "base_weights_that_stay": exported.based_on,
        "versions": versions(),
    }


def write_record(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write manifest.json, with the hashes of the files beside it."""
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    RunFolder(folder, COMMAND, MANIFEST).write({**facts, "sha256": hashes})


def write_card(folder: Path, config: ExportConfig, direction: Direction, exported: Exported) -> None:
    """Write README.md: what was done to the model, what was proved, what was not edited, how it is undone."""
    what = {
        ("model", "project"): "A model with a direction removed",
        ("model", "add"): "A model with a direction added",
        ("lora", "project"): "An adapter that removes a direction",
        ("gguf", "add"): "A control vector that adds a direction",
    }
    lines = [
        f"# {what[config.format, config.edit]}",
        "",
        f"Made from {write_code(exported.source.model)}"
        + (f" (revision {write_code(config.revision)})" if config.revision else "")
        + ".",
        f"sha256 of its weights: `{exported.source.weights_sha256}`.",
        "",
        "## What was done",
        "",
        *_tell_edit(config, direction),
        "",
        "## The direction",
        "",
        f"- read at `{direction.place}`, position {direction.position} (counted from the end of the prompt)",
        f"- rank {direction.rank}, width {direction.width}; found as: {write_code(direction.method)}",
        f"- prompts and what else is known: {write_code(json.dumps(direction.facts, default=str), LONGEST_MESSAGE)}",
        "",
        "## What was found, edited and proved",
        "",
        f"- {exported.proof}",
        f"- {_count_changed(exported.tensors)}",
        *(f"- {note}" for note in exported.notes),
        "",
        "## What was not edited",
        "",
        *_tell_rest(config),
        "",
        "## How it is undone",
        "",
        *_tell_undo(config),
        "",
    ]
    # Names of models and what a file says of its direction may hold anything; a card is often shown in a terminal.
    (folder / CARD_FILE).write_text("\n".join(map(escape_controls, lines)), encoding="utf-8")


def _tell_edit(config: ExportConfig, direction: Direction) -> list[str]:
    if config.format == "gguf":
        return [
            f"The file holds the direction times {config.coefficient:g}, for llama.cpp (`--control-vector`). It is "
            "added to the residual stream at one layer, at every token. **It adds. It cannot remove a direction**: "
            "with a negative scale it moves every state by the same vector, whatever the state holds.",
        ]
    if config.edit == "add":
        return [
            f"The direction times {config.coefficient:g} was added to the residual stream at `{direction.place}`, at "
            "every token, by a constant vector in the weights that are named below. If the direction is the one along "
            "which the model refuses, the model refuses more (below zero: less), also where it should not. **It adds. "
            "It does not remove a direction.** Nothing else was trained or filtered.",
        ]
    kept = " Each vector of a weight kept its length." if config.norm_preserving else ""
    how = (
        "from the weights through which the model writes to its residual stream: W - V'V W, with orthonormal rows V"
        if config.format == "model"
        else "by an adapter of the rank of the direction on every module that writes to the residual stream: B = -V', "
        "A = V W, so that W + B A = W - V'V W"
    )
    return [
        f"The direction was removed {how}.{kept} If the direction is the one along which the model refuses, the model "
        "refuses less, also where it should refuse. Nothing else was trained or filtered.",
    ]


def _tell_rest(config: ExportConfig) -> list[str]:
    if config.format == "gguf":
        return ["Everything: the model itself stays as it is, and is not in this folder."]
    if config.edit == "add":
        return ["- everything but the vector: no matrix of a block was changed"]
    rest = ["- the output head, the final norm, and all weights that only read the residual stream"]
    if config.embedding == "skip":
        rest.append("- the embedding: the direction still enters the residual stream through it")
    return rest


def _tell_undo(config: ExportConfig) -> list[str]:
    if config.format == "lora":
        return [
            "Load the model without the adapter, or switch the adapter off (`disable_adapter()` of PEFT): the weights "
            "of the model stay as they are; `manifest.json` lists their hashes. Where the embedding and the output "
            "head share their weights, do not merge the adapter with old versions of PEFT, which change the head."
        ]
    if config.format == "gguf":
        return ["Run the model without the control vector."]
    if config.edit == "add":
        return [
            "Subtract the vector again, or take the tensors that changed from the model named above: `manifest.json` "
            "holds the sha256 of every tensor before and after. Biases that are new are left out, and the settings in "
            "`config.json` that gave them are set back to false."
        ]
    return [
        "The removed components are not in these weights and cannot be computed from them. `manifest.json` holds the "
        "sha256 of every tensor before and after: take the tensors that changed from the model named above."
    ]


def _count_changed(tensors: list[WrittenTensor]) -> str:
    new = sum(tensor.before is None for tensor in tensors)
    changed = sum(tensor.changed for tensor in tensors) - new
    return f"{changed} tensors changed, {new} are new, {len(tensors) - changed - new} are what they were, bit for bit"
