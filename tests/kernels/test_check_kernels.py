"""scripts/check_kernels.py: every kernel compiles for Hopper, and the check finds those that should not pass."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from probing.kernels.dispatch import has_triton

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kernels.py"
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed (there are wheels for Linux only)")

PLANTED = '''
from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

from probing.kernels.jit import Variant, lazy_jit

if TYPE_CHECKING:
    import triton.language as tl


@lazy_jit
@no_type_check
def copy_twice(values, copies, block: tl.constexpr):
    """Holds a whole block while it reads it again."""
    lanes = tl.arange(0, block)
    first = tl.load(values + lanes)
    tl.debug_barrier()
    second = tl.load(values + lanes, volatile=True)
    tl.debug_barrier()
    tl.store(copies + lanes, first)
    tl.store(copies + lanes, second)


@lazy_jit
@no_type_check
def odd_block(values, copies, block: tl.constexpr):
    tl.store(copies + tl.arange(0, block), tl.load(values + tl.arange(0, block)))


def compile_variants():
    types = {"values": "*fp32", "copies": "*fp32"}
    vectors = {"aligned": ("values", "copies"), "instructions": ("LDG.128",)}
    return [
        Variant(copy_twice, "sound", types, {"block": 1024}, **vectors),
        Variant(copy_twice, "too much for one warp", types, {"block": 16384}, num_warps=1, **vectors),
        Variant(copy_twice, "unaligned", types, {"block": 1024}, instructions=("LDG.128",)),
        Variant(odd_block, "no power of two", types, {"block": 1000}),
    ]
'''


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=os.environ)


@needs_triton
def test_every_kernel_compiles_for_hopper_without_spills():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("ok ") and " registers, 0 spills" in line for line in lines)
    assert len([line for line in lines if "segment_sum_kernel" in line]) == 6
    assert len([line for line in lines if "row_stats_kernel" in line]) == 6
    assert len([line for line in lines if "ccs_gradient_kernel" in line]) == 8
    assert len([line for line in lines if "pair_distances_kernel" in line]) == 6
    assert len([line for line in lines if "project_out_kernel" in line]) == 9


@needs_triton
def test_planted_faults_are_found(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    done = run(planted)
    assert done.returncode == 1, done.stdout + done.stderr
    sound, spilling, unaligned, broken = done.stdout.splitlines()
    assert sound.startswith("ok      planted: copy_twice, sound: ")
    assert spilling.startswith("FAILED  planted: copy_twice, too much for one warp: spills (")
    assert unaligned.startswith("FAILED  planted: copy_twice, unaligned: no LDG.128 (")
    assert "no power of two: does not compile: CompilationError" in broken


@needs_triton
def test_a_check_of_nothing_fails(tmp_path):
    (tmp_path / "empty.py").write_text("")
    done = run(tmp_path / "empty.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing was checked" in done.stderr


@pytest.mark.parametrize(
    ("fields", "instructions", "expected"),
    [
        ({}, (), []),
        ({}, ("LDG.128",), []),
        ({"spills": 3, "stack": 24}, ("LDG.128",), ["spills (3 instructions, 24 bytes a thread)"]),
        ({"stack": 24}, (), ["spills (0 instructions, 24 bytes a thread)"]),
        ({}, ("LDG.128", "HGMMA"), ["no HGMMA"]),
    ],
)
def test_the_judgement(script, fields, instructions, expected):
    sound = {"registers": 40, "spills": 0, "stack": 0, "shared": 0, "counts": {"LDG.128": 4, "HGMMA": 0}}
    assert script.problems(script.Resources(**sound | fields), instructions) == expected
