"""The command line: ``probing COMMAND --options``; what each command does is in ``probing.runs``."""

import argparse
import contextlib
import dataclasses
import errno
import importlib
import logging
import os
import re
import shutil
import sys
import typing
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from types import ModuleType
from typing import TYPE_CHECKING, Any

from probing.errors import ProbingError, UsageError
from probing.ranks import is_launched, join_ranks
from probing.report.screen import OneLine, guard_screen, to_json
from probing.shown import to_message

if TYPE_CHECKING:
    import docstring_parser
    import pandas

    from probing.types import Report
    from probing.usage import Parser

COMMANDS = {
    "score": "score a preference dataset by CHES and its relatives",
    "filter": "keep the pairs of a scored dataset whose responses look least alike",
    "displacement": "compare two models: which responses lost probability, and where it went",
    "influence": "measure what training on each pair does to a target, and training on all pairs to each",
    "rollouts": "say which groups of responses with rewards lower their correct ones, and which tokens do it",
    "ccs": "train contrast-consistent probes on opposite statements, with the controls that keep them honest",
    "probe": "fit supervised probes to labelled prompts, and try to prove them wrong",
    "clusters": "measure how far labelled prompts lie apart at every layer, of one model or several",
    "refusal extract": "find the direction between harmful and harmless prompts at every layer, and judge it",
    "refusal select": "choose the direction whose removal takes refusal away and little else",
    "refusal evaluate": "measure what an edit of a model changes: refusal, over-refusal, damage",
    "refusal export": "write the edit as a model, as an adapter, or as a control vector, and prove what was written",
    "refusal transfer": "use a direction of one model in another, and measure how far it holds there",
    "refusal trace": "say where in depth and where in the text a model decides to refuse",
    "refusal audit": "say what an edit or a fine-tune did to the weights: was one direction removed, and from where",
    "capture": "write hidden states of texts, at any places of any model",
    "merge": "join the finished shards of an array of jobs into the run that one job would have made",
    "report": "write one page about finished runs: checks, figures, tables, and the rows behind them",
    "show": "print pairs of a finished run, with their texts beside their numbers",
    "status": "say how far runs are, in other shells or ended ones: rows, rates, time left, failures",
    "demo": "run every job on the bundled model and data",
    "doctor": "show what this machine can do and what will run, and why",
}
EXAMPLES = {
    "score": "probing score --model bundled --data pairs.jsonl --out scores",
    "filter": "probing filter --data pairs.jsonl --scores scores --by ches_normalized --drop-highest 0.2 "
    "--out kept.jsonl",
    "displacement": "probing displacement --reference base-model --policy tuned-model --data pairs.jsonl --out moved",
    "influence": "probing influence --model bundled --data pairs.jsonl --target held-out.jsonl --joint --out influence",
    "rollouts": "probing rollouts --model bundled --data rollouts.jsonl --out rates",
    "ccs": "probing ccs --model bundled --data bundled --out ccs",
    "probe": "probing probe --model bundled --data bundled --out probe",
    "clusters": "probing clusters --model base-model --model tuned-model --data prompts.jsonl --out clusters",
    "refusal extract": "probing refusal extract --model bundled --out directions",
    "refusal select": "probing refusal select --model bundled --directions directions --kl-most 5 --out selected",
    "refusal evaluate": "probing refusal evaluate --model bundled --direction directions --place resid_pre:2 "
    "--out evaluated",
    "refusal export": "probing refusal export --model bundled --direction selected --format lora --out adapter",
    "refusal transfer": "probing refusal transfer --from-direction selected --model other-model --out transferred",
    "refusal trace": "probing refusal trace --model bundled --direction directions --place resid_pre:2 --out traced",
    "refusal audit": "probing refusal audit --reference base-model --policy edited-model --out audit",
    "capture": "probing capture --model bundled --data prompts.jsonl --places resid_post:all --out states",
    "merge": "probing merge shard-0 shard-1 shard-2 --out scores",
    "report": "probing report scores moved --out report.html --check",
    "show": "probing show scores --lowest 20",
    "status": "probing status scores",
    "demo": "probing demo --out demo-out",
}
SPREAD = ("score", "displacement", "rollouts", "influence", "ccs", "probe", "clusters", "capture", "refusal evaluate")
"""Commands whose rows are dealt out where they are launched in several processes; of others one process runs all."""
TOGETHER = ("score", "displacement", "rollouts", "ccs", "probe", "clusters", "capture")
"""Commands that run a model which the processes of a launch hold together: they need no gradients and change no
weights."""
SHOWN = ("json", "full", "quiet")
"""Flags of every command that say how its result is shown."""
INTERRUPTED = 130
WRONG_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its status: 0 done, 2 the caller's mistake, 1 anything else, 130 interrupted."""
    with guard_screen():
        status = _run_command(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(status)


def _run_command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_make_overview(), file=sys.stderr if not arguments else sys.stdout)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from probing.runs.common.versions import DISTRIBUTION, version_of

        print(f"probing {version_of(DISTRIBUTION)}")
        return 0
    if arguments[0].partition("=")[0] == "--print-completion":
        return _print_completion(arguments[0].partition("=")[2] or " ".join(arguments[1:]))
    command = _find_command(arguments)
    if command is None:
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A terminal with a narrow encoding must not make a finished run fail while it prints its tables.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _show_warnings()
    return _run_guarded(command, arguments[command.count(" ") + 1 :])


def _show_warnings() -> None:
    """Our own warnings on stderr; other libraries have handlers of their own."""
    ours = logging.getLogger("probing")
    if not logging.getLogger().handlers and not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(OneLine())
        ours.addHandler(handler)


def _find_command(arguments: list[str]) -> str | None:
    """The command that the first one or two words name; where they name none, the commands are listed on stderr."""
    command = next((name for name in (" ".join(arguments[:2]), arguments[0]) if name in COMMANDS), None)
    if command is None:
        family = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
        named = " ".join(arguments[:2]) if family else arguments[0]
        from probing.usage import suggest

        close = suggest(named, family or COMMANDS)
        line = f"probing: no command '{named}'{close}; there are {', '.join(family or COMMANDS)}"
        print(to_message(line), file=sys.stderr)
    return command


def _make_overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: probing COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "probing COMMAND --help lists a command's options.",
            "probing --print-completion {bash,zsh,fish} prints a script with which the shell completes them.",
        ]
    )


def _print_completion(shell: str) -> int:
    """Print the script that completes commands and options in a shell."""
    from probing.completion import SCRIPTS

    if shell not in SCRIPTS:
        line = f"probing: --print-completion must be one of {', '.join(SCRIPTS)}" + (
            f", not '{shell}'" if shell else ""
        )
        print(to_message(line), file=sys.stderr)
        return 2
    parsers = {command: _make_parser(command, _find_config_type(command)) for command in COMMANDS}
    print(SCRIPTS[shell](COMMANDS, {command: parser.list_options() for command, parser in parsers.items()}))
    return 0


def _find_config_type(command: str) -> type:
    """The class of a command's options."""
    job = importlib.import_module(f"probing.runs.{command.replace(' ', '.')}")
    config_type: type = typing.get_type_hints(job.run)["config"]
    return config_type


def _run_guarded(command: str, arguments: list[str]) -> int:
    """Run the command, and turn an error into one line and a status."""
    try:
        return _run(command, arguments)
    except ProbingError as error:
        print(to_message(f"probing {command}: {error}"), file=sys.stderr)
        if "--json" in arguments:
            told = {"type": type(error).__name__, "message": str(error), "exit_status": error.exit_status}
            print(to_json({"error": told}), flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"\nprobing {command}: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Otherwise Python would report the broken pipe once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        line = f"probing {command}: not enough memory ({error}); take fewer rows or draws"
        print(to_message(line), file=sys.stderr)
        return 1
    except OSError as error:
        reason = error.strerror or error
        line = (
            f"probing {command}: {error.filename or 'the output'}: {reason}; nothing partial was left. "
            f"Make room or choose another place, then run the same command again"
        )
        print(to_message(line), file=sys.stderr)
        return 2 if error.errno in WRONG_PLACE else 1


def _run(command: str, arguments: list[str]) -> int:
    job = importlib.import_module(f"probing.runs.{command.replace(' ', '.')}")
    config, shown = _parse(command, _find_config_type(command), arguments)
    if shown["quiet"]:
        from probing.report.progress import hide_progress

        logging.getLogger("probing").setLevel(logging.ERROR)
        hide_progress()
    if is_launched():
        return _run_together(command, job, config, shown)
    return _show(_run_watched(command, job, config), shown)


def _run_together(command: str, job: ModuleType, config: Any, shown: dict[str, bool]) -> int:
    """Run as one of several processes of a launch; those that do not lead show nothing but errors."""
    from probing.models.checkpoints import TENSOR_PARALLEL

    together = getattr(config, "device", None) == TENSOR_PARALLEL
    if command not in (TOGETHER if together else SPREAD):
        if os.environ["RANK"] != "0":
            return 0
        if together:
            raise UsageError(
                f"--device {TENSOR_PARALLEL} is for commands that read states and likelihoods alone "
                f"({', '.join(TOGETHER)}); give another --device"
            )
        logging.getLogger("probing").warning("probing %s runs in one process; the others of this launch end", command)
        return _show(_run_watched(command, job, config), shown)
    with join_ranks(together) as ranks:
        if not ranks.leads:
            from probing.report.progress import hide_progress

            logging.getLogger("probing").setLevel(logging.ERROR)
            hide_progress()
            ranks.wait_for_turn()
            with ranks.let_leader_speak():
                job.run(config)
            return 0
        return _show(_run_watched(command, job, config), shown)
    # A process that does not lead left.
    return 0


def _run_watched(command: str, job: ModuleType, config: Any) -> "Report":
    from probing.runs.common.watching import run_watched

    return run_watched(job.run, config, command)


def _show(report: "Report", shown: dict[str, bool]) -> int:
    """Print what a job answers; returns the exit status."""
    # With it comes pandas, which a mistake is told without.
    from probing.report.columns import name_columns
    from probing.report.tables import name_tables, render

    if shown["json"]:
        titles = name_tables(report.tables)
        columns = {name: name_columns(report.tables[title].columns) for name, title in titles.items()}
        tables = {title: _to_records(report.tables[title], columns[name]) for name, title in titles.items()}
        print(to_json({"titles": titles, "columns": columns, "tables": tables, **report.facts}), flush=True)
        return int(report.exit_status)
    fits = sys.stdout.isatty() and not shown["full"]
    print(report.text or render(report.tables, shutil.get_terminal_size().columns if fits else None), flush=True)
    if "wrote" in report.facts and not shown["quiet"]:
        print("\n" + to_message(f"wrote {', '.join(report.facts['wrote'])}"), file=sys.stderr)
        for command_line in report.facts.get("next", []):
            print(to_message(f"next: {command_line}"), file=sys.stderr)
    return int(report.exit_status)


def _to_records(table: "pandas.DataFrame", names: Iterable[str]) -> list[dict[str, Any]]:
    """Rows with every digit under the stable names of the columns, and null for what has no value."""
    rows = table.set_axis(list(names), axis="columns").to_dict("records")
    return [{str(name): None if value != value else value for name, value in row.items()} for row in rows]


def _parse(command: str, config_type: type, arguments: Sequence[str]) -> tuple[Any, dict[str, bool]]:
    """The job's options from ``--config FILE.yaml`` and from flags, which win; and how the result is shown."""
    parser = _make_parser(command, config_type)
    spelled = _respell(arguments)
    repeatable = [entry.name for entry in dataclasses.fields(config_type) if entry.metadata.get("repeatable")]
    repeated = _collect_repeated(spelled, repeatable)
    _check_arguments(spelled)
    twice = _find_repeated(spelled, repeatable)
    if twice is not None:
        parser.error(twice)
    try:
        values = parser.parse_args(spelled).as_dict() | repeated
    except (argparse.ArgumentError, UnicodeError, RecursionError) as error:
        parser.error(str(error))
    shown = {name: values.pop(name) for name in SHOWN}
    del values["config"]
    try:
        config = config_type(**values)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    return config, shown


def _check_arguments(arguments: Sequence[str]) -> None:
    """Look at what would be read as YAML, before it is."""
    from probing.runs.common.config_files import check_argument, check_config_file

    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        check_argument(argument)
        name, equals, value = argument.partition("=")
        if name == "--config":
            check_config_file(value if equals else following)


def _make_parser(command: str, config_type: type) -> "Parser":
    """A parser with a job's own options, then those that it shares, under the headings of their classes."""
    from probing.usage import Parser

    own, *shared = _describe_classes(config_type)
    required = [entry for entry in dataclasses.fields(config_type) if entry.default is dataclasses.MISSING]
    needed = " ".join(" ".join([_spell_name(entry), entry.name.upper()][_is_positional(entry) :]) for entry in required)
    parser = Parser(
        prog=f"probing {command}",
        usage=" ".join(part for part in (f"probing {command}", needed, "[options]") if part),
        description=_join_lines(own.short_description, own.long_description),
        epilog=f"example: {EXAMPLES[command]}" if command in EXAMPLES else None,
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file with any of these options; flags override its entries",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--full", action="store_true", help="print tables whole, however wide the terminal")
    parser.add_argument("--quiet", action="store_true", help="print no progress and no warnings")
    helps = {parameter.arg_name: parameter.description for each in (*shared, own) for parameter in each.params}
    hints, fields = typing.get_type_hints(config_type), {entry.name: entry for entry in dataclasses.fields(config_type)}
    groups = []
    for described in (own, *shared):
        names = [parameter.arg_name for parameter in described.params if parameter.arg_name in fields]
        groups.append((_join_lines(described.short_description).rstrip("."), [fields.pop(name) for name in names]))
    # The class's own options come first, then the groups in which an option must be given.
    groups[1:] = sorted(
        groups[1:], key=lambda group: all(entry.default is not dataclasses.MISSING for entry in group[1])
    )
    for number, (heading, entries) in enumerate(groups):
        group = parser.add_argument_group(heading) if number else parser
        for entry in entries:
            _add_option(group, entry, hints[entry.name], helps[entry.name] or "")
    parser.describe_options(hints)
    return parser


def _add_option(group: Any, entry: "dataclasses.Field[Any]", hint: Any, described: str) -> None:
    """Add one option to a parser or a group of it."""
    from jsonargparse import ActionYesNo

    from probing.usage import describe_default, metavar_of

    given = entry.default is not dataclasses.MISSING
    how: dict[str, Any] = {"default": entry.default} if given else {}
    if hint is bool:
        how |= {"action": ActionYesNo(no_prefix="no-")}
    elif _is_positional(entry) and typing.get_origin(hint) is list:
        how |= {"type": typing.get_args(hint)[0], "nargs": "+"}
    else:
        how |= {"type": hint, "metavar": metavar_of(hint)}
    if _is_positional(entry):
        how |= {"metavar": entry.name.upper()}
    elif not given:
        how |= {"required": True}
    ending = describe_default(entry.default) if given else " (required)"
    # The parser fills in what stands behind a single percent sign.
    group.add_argument(_spell_name(entry), help=f"{described}{ending}".replace("%", "%%"), **how)


def _is_positional(entry: "dataclasses.Field[Any]") -> bool:
    return bool(entry.metadata.get("positional"))


def _spell_name(entry: "dataclasses.Field[Any]") -> str:
    """An option as it is typed; the bare name of one that is typed without its name."""
    return entry.name if _is_positional(entry) else f"--{entry.name.replace('_', '-')}"


def _describe_classes(config_type: type) -> "list[docstring_parser.Docstring]":
    """Docstrings of a class and of those it inherits options from, from itself on upwards."""
    from docstring_parser import parse

    return [parse(each.__doc__ or "") for each in config_type.__mro__ if dataclasses.is_dataclass(each)]


def _join_lines(*parts: str | None) -> str:
    """Sentences of a docstring as one text without line breaks."""
    return " ".join(" ".join(part.split()) for part in parts if part)


def _collect_repeated(arguments: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Values of the options that were repeated and may be; the parser keeps only the last one."""
    values: dict[str, list[str]] = {}
    for at, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").removesuffix("+").replace("-", "_")  # "--model+" appends, too
        if option.startswith("--") and name in names and (equals or at + 1 < len(arguments)):
            values.setdefault(name, []).append(value if equals else arguments[at + 1])
    return {name: given for name, given in values.items() if len(given) > 1}


def _find_repeated(arguments: Sequence[str], allowed: Sequence[str]) -> str | None:
    """What is wrong with the first option that was given twice, in whatever spelling: only the last value would count.

    Args:
        arguments: arguments, spelled as the parser wants them.
        allowed: options that may be repeated.
    """
    seen: dict[str, str] = {}
    for argument in arguments:
        option = argument.partition("=")[0]
        if not re.fullmatch(r"--[\w-]+", option):
            continue
        name = option.removeprefix("--").replace("-", "_")
        name = name.removeprefix("no_")
        if name in seen and name not in allowed:
            given = (seen[name], option)
            if len(set(given)) == 2:
                return f"{given[0]} and {given[1]} contradict each other; give one of them"
            return f"{option} is given twice; it takes one value"
        seen[name] = option
    return None


def _respell(arguments: Sequence[str]) -> list[str]:
    """Arguments as the parser wants them: ``--batch_tokens`` with a hyphen, ``--below -1e-3`` in one piece."""
    spelled: list[str] = []
    for argument in arguments:
        if re.fullmatch(r"-\.?\d.*", argument) and spelled and re.fullmatch(r"--[\w-]+", spelled[-1]):
            # Otherwise a value that begins with a dash would be taken for an option.
            spelled[-1] += f"={argument}"
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            spelled.append(name + equals + value)
        else:
            spelled.append(argument)
    return spelled
