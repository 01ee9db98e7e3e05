"""Scripts that complete commands, options and their values in a shell; they run without Python."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

LONGEST_HELP = 60
GENERAL = ("--help", "--version", "--print-completion")
"""What may stand in place of a command."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: as it is typed.
        description: its help.
        takes_value: whether a value follows it.
        choices: the values that it takes; empty where these are not known, so that files are completed.
    """

    name: str
    description: str
    takes_value: bool
    choices: tuple[str, ...] = ()


Options = Mapping[str, Sequence[Option]]
"""The options of each command."""


def write_bash(commands: Mapping[str, str], options: Options) -> str:
    """The script for bash.

    Args:
        commands: descriptions of the commands, by name.
        options: options of each command.
    """
    names = [f"        '{command}') options={_join(_names(of_command))} ;;" for command, of_command in options.items()]
    firsts = [*_list_first_words(commands), *GENERAL]
    families = [
        f"        {first}) if [[ $COMP_CWORD -eq 2 ]]; then COMPREPLY=($(compgen -W {_join(seconds)} -- "
        f'"$current")); return; fi; command+=" ${{COMP_WORDS[2]}}" ;;'
        for first, seconds in _list_families(commands).items()
    ]
    return "\n".join(
        [
            "# Load it with: source <(probing --print-completion bash), or add that line to ~/.bashrc.",
            "_probing() {",
            "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} options='' values=''",
            "    COMPREPLY=()",
            "    # Bash takes the equals sign of --option=value for a word.",
            '    if [[ $current == "=" ]]; then current=""',
            '    elif [[ $previous == "=" ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi',
            "    if [[ $COMP_CWORD -eq 1 ]]; then",
            f'        COMPREPLY=($(compgen -W {_join(firsts)} -- "$current")); return',
            "    fi",
            "    local command=${COMP_WORDS[1]}",
            '    case "$command" in',
            *families,
            "    esac",
            '    case "$command $previous" in',
            f"        '--print-completion --print-completion') values={_join(SCRIPTS)} ;;",
            *_list_cases(options, lambda choices: f"values={_join(choices)}", "return"),
            "    esac",
            '    if [[ -n $values ]]; then COMPREPLY=($(compgen -W "$values" -- "$current")); return; fi',
            '    case "$command" in',
            *names,
            "    esac",
            '    if [[ $current == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$current")); fi',
            "}",
            "# Where there is nothing to complete, bash completes names of files.",
            "complete -o default -F _probing probing",
        ]
    )


def write_zsh(commands: Mapping[str, str], options: Options) -> str:
    """The script for zsh; see ``write_bash``."""
    described = [f"{name}:{what}" for name, what in _list_first_words(commands).items()]
    families = [
        f"        {first}) if (( CURRENT == 3 )); then commands=("
        f"{_quote(second + ':' + commands[first + ' ' + second] for second in seconds)}); "
        f'_describe command commands; return; fi; command+=" $words[3]" ;;'
        for first, seconds in _list_families(commands).items()
    ]
    names = [
        f"        '{command}') options=({_quote(f'{option.name}:{_shorten(option)}' for option in of_command)}) ;;"
        for command, of_command in options.items()
    ]
    return "\n".join(
        [
            "#compdef probing",
            "# Load it with: source <(probing --print-completion zsh), or save it as _probing in a folder of $fpath.",
            "_probing() {",
            "    local previous=$words[CURRENT-1]",
            "    local -a commands options",
            "    if (( CURRENT == 2 )); then",
            f"        commands=({_quote([*described, *GENERAL])})",
            "        _describe command commands; return",
            "    fi",
            "    if [[ $PREFIX == --*=* ]]; then previous=${PREFIX%%=*}; compset -P 1 '*='; fi",
            "    local command=$words[2]",
            "    case $command in",
            *families,
            "    esac",
            '    case "$command $previous" in',
            f"        '--print-completion --print-completion') compadd -- {_quote(SCRIPTS)}; return ;;",
            *_list_cases(options, lambda choices: f"compadd -- {_quote(choices)}; return", "_files; return"),
            "    esac",
            "    case $command in",
            *names,
            "    esac",
            "    if [[ $PREFIX == -* ]]; then _describe option options; else _files; fi",
            "}",
            'if [[ $funcstack[1] == _probing ]]; then _probing "$@"; else compdef _probing probing; fi',
        ]
    )


def write_fish(commands: Mapping[str, str], options: Options) -> str:
    """The script for fish; see ``write_bash``."""
    lines = ["# Load it with: probing --print-completion fish | source"]
    first = "complete -c probing -n __fish_use_subcommand"
    lines += [f"{first} -f -a {name} -d {_quote_fish(what)}" for name, what in _list_first_words(commands).items()]
    for family, seconds in _list_families(commands).items():
        when = f"'{_seen(family)}; and not {_seen(' '.join(seconds))}'"
        lines += [
            f"complete -c probing -n {when} -f -a {second} -d {_quote_fish(commands[family + ' ' + second])}"
            for second in seconds
        ]
    lines += [f"{first} -f -l {name.removeprefix('--')}" for name in GENERAL[:-1]]
    lines.append(f"{first} -x -l print-completion -a {_quote_fish(' '.join(SCRIPTS))}")
    for command, of_command in options.items():
        for option in of_command:
            choices = f" -x -a {_quote_fish(' '.join(option.choices))}" if option.choices else " -r"
            lines.append(
                f"complete -c probing -n '{'; and '.join(map(_seen, command.split()))}' "
                f"-l {option.name.removeprefix('--')}"
                f"{choices if option.takes_value else ''} -d {_quote_fish(_shorten(option))}"
            )
    return "\n".join(lines)


SCRIPTS: Mapping[str, Callable[[Mapping[str, str], Options], str]] = {
    "bash": write_bash,
    "zsh": write_zsh,
    "fish": write_fish,
}
"""What writes the script of each shell."""


def _seen(words: str) -> str:
    return f"__fish_seen_subcommand_from {words}"


def _list_families(commands: Iterable[str]) -> dict[str, list[str]]:
    """Second words of the commands that have two, by the first."""
    families: dict[str, list[str]] = {}
    for command in commands:
        first, _, second = command.partition(" ")
        if second:
            families.setdefault(first, []).append(second)
    return families


def _list_first_words(commands: Mapping[str, str]) -> dict[str, str]:
    """First words of all commands with descriptions; those of a family are described by their second words."""
    families = _list_families(commands)
    return {
        command.partition(" ")[0]: ", ".join(families.get(command.partition(" ")[0], [what]))
        for command, what in commands.items()
    }


def _list_cases(options: Options, choose: Callable[[Sequence[str]], str], otherwise: str) -> list[str]:
    """Branches of a ``case`` over "COMMAND --option", for the options that a value follows."""
    lines = []
    for command, of_command in options.items():
        free = [f"'{command} {option.name}'" for option in of_command if option.takes_value and not option.choices]
        lines += [
            f"        '{command} {option.name}') {choose(option.choices)} ;;" for option in of_command if option.choices
        ]
        lines += [f"        {'|'.join(free)}) {otherwise} ;;"] if free else []
    return lines


def _names(options: Sequence[Option]) -> list[str]:
    return [option.name for option in options]


def _join(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _quote(words: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, words))


def _quote_fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _shorten(option: Option) -> str:
    """The beginning of the help, up to the first mark; a colon would end it in zsh."""
    beginning = option.description.split(":")[0].split(";")[0].split(". ")[0].rstrip(".")
    return beginning if len(beginning) <= LONGEST_HELP else f"{beginning[: LONGEST_HELP - 1]}…"
