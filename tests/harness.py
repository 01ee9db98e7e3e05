"""What tests of jobs share: rows and files of data, options, damage, interrupts and kill -9."""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

from filelock import FileLock

PATIENCE_SECONDS = 240
WORDS = "near nearer never no yes always sorry help boat wood glue string paper answer".split()
# A process runs as fast as its disk: its user has time to interrupt it between any two files, on every machine.
ON_A_SLOW_DISK = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of several that run tests ignores it
plain = os.fsync
os.fsync = lambda file: (time.sleep(0.05), plain(file))[1]
from probing.cli import main
main()
"""


def phrase(generator, least, most):
    """So many random words."""
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(least, most)))


def make_pairs(count, seed=0):
    """Preference pairs of random words."""
    generator = random.Random(seed)
    return [
        {
            "id": f"r{n}",
            "prompt": f"Q: {phrase(generator, 1, 9)}",
            "chosen": f" {phrase(generator, 1, 30)}",
            "rejected": f" {phrase(generator, 1, 30)}",
        }
        for n in range(count)
    ]


def make_rollouts(count, seed=0):
    """Groups of two to five responses of random words, with rewards of 0 and 1, both of which occur."""
    generator = random.Random(seed)
    rows = []
    for n in range(count):
        size = generator.randint(2, 5)
        rewards = [1, 0, *(generator.randint(0, 1) for _ in range(size - 2))]
        responses = [f" {phrase(generator, 1, 12)}" for _ in range(size)]
        prompt = f"Q: {phrase(generator, 1, 9)}"
        rows.append({"id": f"g{n}", "prompt": prompt, "responses": responses, "rewards": rewards})
    return rows


def write(path, rows):
    """Rows as lines of JSON, compressed if the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def notes(report):
    return "\n".join(report.tables["Notes"]["note"])


def as_options(values):
    """Options of a job as they are written on a command line; a list is an option several times."""
    given = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            given += [f"--{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return given


def override(given, arguments):
    """Options without those that the arguments give anew, and then the arguments: no option may be given twice."""
    anew = {str(part).partition("=")[0] for part in arguments if str(part).startswith("--")}
    kept, dropping = [], False
    for part in map(str, given):
        if part.startswith("--"):
            dropping = part.partition("=")[0] in anew
        if not dropping:
            kept.append(part)
    return [*kept, *arguments]


def damage_end(path):
    """Other values in the last tensor of a file."""
    path.write_bytes(path.read_bytes()[:-8] + b"12345678")


def note_calls(patch, owner, name, stop=None):
    """The arguments of the calls of a function from now on; an interrupt comes where ``stop`` calls have been made."""
    plain, calls = getattr(owner, name), []

    def noted(*arguments, **options):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(arguments)
        return plain(*arguments, **options)

    patch.setattr(owner, name, noted)
    return calls


def interrupt_when(patch, until):
    """From now on, the first file that is written while ``until`` is true brings an interrupt."""
    plain = os.fsync

    def fsync(file):
        if until():
            raise KeyboardInterrupt
        plain(file)

    patch.setattr(os, "fsync", fsync)


@contextlib.contextmanager
def started(command, values, said, until):
    """A job in a process of its own, which still runs and has made the files that ``until`` waits for.

    Args:
        command: ``score``, say.
        values: its options.
        said: the file to which its output and errors are added.
        until: called again and again; true when there is enough.
    """
    program = [sys.executable, "-c", ON_A_SLOW_DISK, command, *as_options(values)]
    with said.open("ab") as errors, subprocess.Popen(program, stdout=errors, stderr=errors) as process:
        try:
            while not until():
                assert process.poll() is None, f"it ended by itself, with {process.returncode}: {said.read_text()}"
                time.sleep(0.005)
            yield process
        finally:
            process.kill()


def kill(command, values, said, until):
    """Kill -9, some moment after a job has made what ``until`` waits for."""
    with started(command, values, said, until) as process:
        time.sleep(random.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, said.read_text()


def make_once(tmp_path_factory, name, make):
    """What ``make`` gives of a folder, as JSON holds it: made by the first of several processes that run tests.

    Args:
        tmp_path_factory: the fixture.
        name: of the folder.
        make: given the folder.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made.json").exists():
            folder.mkdir()
            (folder / "made.json").write_text(json.dumps(make(folder)))
    return json.loads((folder / "made.json").read_text())


def count_shards(folder):
    """How many parts of a run are whole."""
    return len(list((folder / "shards").glob("[0-9]*.parquet")))


def make_texts(count):
    """Texts with an id and one of two labels."""
    generator = random.Random(0)
    return [{"id": f"t{n}", "text": phrase(generator, 2, 20), "label": f"l{n % 2}"} for n in range(count)]


def read_files(folder):
    """The bytes of the tables and states of a run."""
    kept = (path for path in sorted(folder.rglob("*")) if path.suffix in (".parquet", ".safetensors"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def wait_for(wanted, process):
    """Wait until a function answers something true; returns that."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := wanted()):
        assert process.poll() is None, f"it ended by itself: {process.communicate()}"
        assert time.monotonic() < until
        time.sleep(0.01)
    return found
