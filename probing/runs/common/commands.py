"""A run as the command that makes it: options that are not at their defaults, spelled as they are typed."""

import dataclasses
import importlib
import shlex
import typing
from collections.abc import Mapping
from typing import Any


def spell_recorded(command: str, recorded: Mapping[str, Any]) -> str:
    """The command with the options of its record, as it is typed; without those at their defaults.

    Args:
        command: name of the command ("refusal extract").
        recorded: options, as ``Options.plain`` gives them; those that this version does not know are left out.
    """
    job = importlib.import_module(f"probing.runs.{command.replace(' ', '.')}")
    entries = {entry.name: entry for entry in dataclasses.fields(typing.get_type_hints(job.run)["config"])}
    words = ["probing", *command.split()]
    for name, value in recorded.items():
        if name in entries and value is not None and value != entries[name].default:
            words += _spell_option(name.replace("_", "-"), value)
    return shlex.join(words)


def _spell_option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [word for each in value for word in (f"--{name}", str(each))]
    return [f"--{name}", str(value)]
