"""The scripts that complete commands, options and values, run by the shells that they are for."""

import contextlib
import io
import shlex
import shutil
import subprocess

import pytest

from probing.cli import COMMANDS, main
from probing.completion import SCRIPTS

# What is typed, with the cursor at its end; what must be offered, and what must not. Nothing: the shell offers files.
TYPED = {
    "a command": (["probing", "cl"], ["clusters"], ["score"]),
    "every command": (["probing", ""], [command.split()[0] for command in COMMANDS], ["--dtype", "extract"]),
    "a command of a family": (["probing", "refusal", "se"], ["select"], ["score", "extract"]),
    "every command of a family": (["probing", "refusal", ""], ["extract", "select", "audit"], ["score"]),
    "an option of a family": (["probing", "refusal", "select", "--kl"], ["--kl-most"], ["--rank"]),
    "a choice of a family": (["probing", "refusal", "extract", "--method", "l"], ["logistic"], ["--limit"]),
    "a general option": (["probing", "--v"], ["--version"], ["clusters"]),
    "a shell": (["probing", "--print-completion", "z"], ["zsh"], ["bash"]),
    "an option": (["probing", "score", "--col"], ["--columns"], ["--dtype"]),
    "an option of another command": (["probing", "demo", "--dt"], [], ["--dtype"]),
    "a switch": (["probing", "capture", "--places", "x", "--no-c"], ["--no-chat"], ["--chat"]),
    "a choice": (["probing", "clusters", "--scaling", "w"], ["whiten"], ["standardize"]),
    "every choice": (["probing", "probe", "--pooling", ""], ["last", "first", "mean", "sum"], ["tokens"]),
    "a choice behind =": (["probing", "score", "--dtype", "=", "bf"], ["bf16"], ["fp16"]),
    "every choice behind =": (["probing", "score", "--dtype", "="], ["bf16", "fp16"], ["--columns"]),
    "a file": (["probing", "score", "--data", ""], [], ["--columns", "score"]),
}
ZSH = """
compadd() { [[ $1 == -- ]] && shift; print -l -- "$@" }
_describe() { local name; for name in "${(@P)2}"; do print -r -- "${name%%:*}"; done }
_files() { : }
compset() { PREFIX=${PREFIX#*=} }
compdef() { : }
"""


def shell(name, script):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed on this machine")
    # Without the user's own settings.
    plain = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[name]
    done = subprocess.run([name, plain, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # Fish writes a description behind every word.
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


def ask_bash(script, words):
    typed = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}"
    return shell("bash", f'{script}\n{typed}; _probing\nprintf "%s\\n" "${{COMPREPLY[@]}}"')


def ask_zsh(script, words):
    joined = join_equals(words)
    typed = f"words=({' '.join(map(shlex.quote, joined))}); CURRENT={len(joined)}; PREFIX={shlex.quote(joined[-1])}"
    found = shell("zsh", f"{ZSH}\n{script}\n{typed}\n_probing\n")
    prefix = joined[-1].rpartition("=")[2]
    return [word for word in found if word.startswith(prefix)]


def ask_fish(script, words):
    line = " ".join(join_equals(words))
    found = shell("fish", f"{script}\ncomplete -C {shlex.quote(line)}")
    return [word.rpartition("=")[2] for word in found]


def join_equals(words):
    """The words as shells other than bash have them: ``--option=value`` is one."""
    text = " ".join(words).replace(" = ", "=").replace(" =", "=")
    return text.split(" ")


ASK = {"bash": ask_bash, "zsh": ask_zsh, "fish": ask_fish}


@pytest.fixture(scope="module")
def scripts():
    return {name: print_script(name) for name in SCRIPTS}


def print_script(name):
    written = io.StringIO()
    with contextlib.redirect_stdout(written), pytest.raises(SystemExit) as left:
        main(["--print-completion", name])
    assert left.value.code == 0
    return written.getvalue()


@pytest.mark.parametrize("case", TYPED)
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_offered(scripts, name, case):
    words, offered, not_offered = TYPED[case]
    found = ASK[name](scripts[name], words)
    assert set(offered) <= set(found)
    assert not set(not_offered) & set(found)


def test_the_script_is_printed(probing, scripts):
    assert probing("--print-completion=bash") == (0, scripts["bash"], "")
    for arguments, said in ((["--print-completion", "tcsh"], ", not 'tcsh'"), (["--print-completion"], "")):
        status, out, errors = probing(*arguments)
        assert (status, out) == (2, "")
        assert errors == f"probing: --print-completion must be one of bash, zsh, fish{said}\n"
