"""Jobs called from Python, with the options of their commands, and with models and rows in memory."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from probing.data.memory import table_from_memory
from probing.errors import UsageError
from probing.runs.common.held import InMemory
from probing.runs.common.options import DeviceOptions
from probing.runs.common.watching import run_watched
from probing.types import Report

Config = TypeVar("Config", bound=DeviceOptions)
OF_FILES = ("wrote", "next")
"""Facts of a report that name files and what can be done with them."""
OF_LOADING = ("dtype", "trust_remote_code", "revision", "reference_revision", "policy_revision")


def call_job(config_type: type[Config], run: Callable[[Config], Report], options: Mapping[str, Any]) -> Report:
    """Do what a command does, with models and rows in memory where its options name files.

    Args:
        config_type: class of the command's options.
        run: runs the command.
        options: options of the command with underscores; ``probing COMMAND --help`` lists them. A model may be given
            as whatever ``probing.models.in_memory.as_language_model`` takes: a ``LanguageModel``, a tuple of a
            transformers model and its tokenizer, or a trainer, wrapped or not; a list is several models. Data may be
            given as a list of dicts, a ``pandas.DataFrame`` or a ``datasets.Dataset``. Without ``out`` no files are
            kept; with it the record holds hashes of the weights and rows in memory, and an interrupted run goes on
            only with the same ones.

    Returns:
        The tables of the command as frames, by title, and the facts of the run. Models are as they were before.

    Raises:
        TypeError: an option that the command does not have, or an object that is neither a model nor rows; names the
            option.
        ValueError: a value out of bounds.
        ProbingError: see ``probing.errors``.
    """
    models: list[InMemory] = []
    given = _hold_objects(config_type, options, models)
    kept = given.get("out") is not None
    with contextlib.ExitStack() as stack:
        if not kept:
            given["out"] = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"
        config = config_type(**given)
        if models:
            _check_loaded(config)
        report = _run_guarded(run, config, models, kept)
    if kept:
        return report
    facts = {name: fact for name, fact in report.facts.items() if name not in OF_FILES}
    return dataclasses.replace(report, facts=facts)


def _hold_objects(
    config_type: type[DeviceOptions], options: Mapping[str, Any], models: list[InMemory]
) -> dict[str, Any]:
    """The options, with names in place of the objects in memory; the models among these are added to ``models``."""
    holds = {entry.name: entry.metadata.get("holds") for entry in dataclasses.fields(config_type)}
    given = dict(options)
    for name, value in options.items():
        if value is None or holds.get(name) is None:
            continue
        if holds[name] == "rows":
            given[name] = _hold_rows(name, value)
        elif isinstance(value, list):
            given[name] = [_hold_model(name, each, models) for each in value]
        else:
            given[name] = _hold_model(name, value, models)
    return given


def _hold_rows(name: str, value: Any) -> str | list[str]:
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str | PurePath) for each in value):
        return [str(each) for each in value]
    named = f"{name} in memory"
    return InMemory(named, table_from_memory(value, named))


def _hold_model(name: str, value: Any, models: list[InMemory]) -> str:
    if isinstance(value, str | PurePath):
        return str(value)
    from probing.models.in_memory import as_language_model, name_in_memory

    try:
        model = as_language_model(value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    named = name_in_memory(model)
    models.append(InMemory(f"{named} ({len(models) + 1})" if models else named, model))
    return models[-1]


def _check_loaded(config: DeviceOptions) -> None:
    """Raise ``UsageError`` for options of how models are loaded: one in memory stays as it is."""
    given = [entry.name for entry in dataclasses.fields(config) if getattr(config, entry.name) != entry.default]
    wrong = next((name for name in OF_LOADING if name in given), None)
    if wrong is not None:
        raise UsageError(f"a model in memory stays as it is; leave out {wrong}")


def _name_command(run: Callable[..., Report]) -> str:
    """The command of a job's function: that of ``probing.runs.score.job`` is "score"."""
    return run.__module__.removeprefix("probing.runs.").removesuffix(".job").replace(".", " ")


def _run_guarded(run: Callable[[Config], Report], config: Config, models: Sequence[InMemory], kept: bool) -> Report:
    """Run a job on a caller's models, which are put back into the state that they were in."""
    if not models:
        return run_watched(run, config, _name_command(run))
    from probing.engine.guard import LeaveAsFound
    from probing.engine.stream import ONE_AT_A_TIME
    from probing.models.in_memory import identify

    first, *others = models
    whole = first.held.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        if kept:
            first.held = identify(first.held, str(first))
        return _run_guarded(run, config, others, kept)
