"""What the pages of a run say of it: its command, models, data, day and versions."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from probing.report.plot_page import About, name_sources
from probing.runs.common.options import Options
from probing.runs.common.versions import versions
from probing.store.manifest import RunFolder

BEGAN = "began"
"""Key of the record with the day on which the run began; records of earlier versions have none."""
RENDERED = "rendered"
"""Key of the identity that holds what chat templates wrote when the run began."""


def today() -> str:
    """The day of universal time; that of SOURCE_DATE_EPOCH, in seconds since 1970, where it is set."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(given), UTC) if given.isdecimal() else datetime.now(UTC)
    return now.date().isoformat()


def describe_run(folder: RunFolder, config: Options, **sources: str | Path | Sequence[str] | None) -> About:
    """What the pages of a run say of it; the same whenever it is resumed.

    Args:
        folder: folder of the run, which has begun.
        config: the job's options.
        sources: paths or hub ids of models, data and so on, by what they are.
    """
    facts = folder.facts()
    used = facts.get("identity", {}).get("versions", {})
    # What a record says is not believed: it is shown.
    return About(
        write_command(folder.command, config),
        name_sources(**sources),
        str(facts.get(BEGAN, "")),
        {str(name): str(version) for name, version in used.items()},
    )


def describe_now(command: str, config: Options, **sources: str | Path | Sequence[str] | None) -> About:
    """The same of a command that keeps no record, and is run now."""
    return About(write_command(command, config), name_sources(**sources), today(), versions())


def write_command(command: str, config: Options) -> str:
    """The command as it is typed: see ``spell_command``."""
    return spell_command(command, {entry.name: getattr(config, entry.name) for entry in fields(config)}, type(config))


def spell_command(command: str, options: Mapping[str, Any], known: type[Options]) -> str:
    """A command as it is typed, with every option that has another value than its default.

    The output, which can be moved, is left out: what says this lies in it.

    Args:
        command: name of the command ("refusal extract").
        options: options by name, as a job or its record has them.
        known: the class of the job's options; those that it does not have are left out.
    """
    words = ["probing", *command.split()]
    for entry in fields(known):
        value = options.get(entry.name, entry.default)
        if entry.name == "out" or value is None or value == entry.default:
            continue
        flag = entry.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [f"--{flag}", str(each)]
    return shlex.join(words)
