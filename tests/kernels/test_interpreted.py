"""Every Triton kernel in Triton's interpreter, which has to be switched on before triton is first imported.

The tests run in a process of their own, since a kernel that writes out of bounds can take the process with it.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from probing.kernels.dispatch import has_triton

KERNELS = Path(__file__).parents[2] / "kernels"
FORMS = Path(__file__).parent / "triton_forms"
TESTS = sorted(FORMS.glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="triton is not installed (there are wheels for Linux only)")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=KERNELS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ passed in .*", done.stdout.splitlines()[-1]), done.stdout


def test_every_kernel_has_its_tests():
    names = [path.stem for path in sorted(KERNELS.glob("*.py"))]
    with_kernels = [
        name for name in names if hasattr(importlib.import_module(f"probing.kernels.{name}"), "compile_variants")
    ]
    assert [path.stem.removeprefix("test_") for path in TESTS] == with_kernels
