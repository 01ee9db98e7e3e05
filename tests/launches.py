"""What tests of launches share: commands in several processes, which may be ended one by one."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from harness import ON_A_SLOW_DISK, PATIENCE_SECONDS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@contextlib.contextmanager
def launched(words, count, program=ON_A_SLOW_DISK):
    """A command in so many processes; it is ended with the block."""
    given = [*TORCHRUN, str(count), "--no-python", sys.executable, "-c", program, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def launch(words, count, program=ON_A_SLOW_DISK):
    """Run a command in so many processes; returns the status of the launcher, and what was printed and said."""
    with launched(words, count, program) as process:
        printed, said = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, printed, said


def find_rank(launcher, rank):
    """Process id of one of the processes of a launch; None while it is not there."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            own = f"PPid:\t{launcher.pid}\n" in status.read_text()
            if own and f"\0RANK={rank}\0" in f"\0{(status.parent / 'environ').read_text()}":
                return int(status.parent.name)
    return None
