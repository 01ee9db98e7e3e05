"""Compile every Triton kernel for Hopper (sm_90), with no card and no driver, and look at the machine code.

    python scripts/check_kernels.py [KERNEL_FILE ...]      (default: all of kernels/)

A kernel's file lists in ``compile_variants()`` the forms in which it is launched. One line is printed for each; the
exit status is 1 if one does not compile, spills registers to memory, or lacks an instruction that it should have.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[1] / "kernels"
CAPABILITY = 90
WARP_SIZE = 32
ALIGNED = [["tt.divisibility", 16]]
# What an instruction is called in the machine code: opcode, modifiers in any number, width.
INSTRUCTIONS = {
    "LDG.128": r"\bLDG\.[\w.]*\b128\b",  # 128 bits a lane from global memory
    "HGMMA": r"\bHGMMA\.",  # the tensor cores, a group of four warps
    "HMMA": r"\bHMMA\.",  # the tensor cores, one warp
    "UTMALDG": r"\bUTMALDG\.",  # a tile by the copy engine
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes of a multiprocessor.

    Attributes:
        registers: of each thread.
        spills: instructions that move registers to and from local memory.
        stack: bytes of local memory of each thread.
        shared: bytes of shared memory of each block.
        counts: how often each of ``INSTRUCTIONS`` occurs.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    counts: dict[str, int]


def compile_variant(variant: Any) -> Resources:
    """Compile one form of a kernel and read its machine code.

    Raises:
        Exception: whatever the compiler raises.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = variant.kernel.jitted
    index = function.arg_names.index
    source = ASTSource(
        fn=function,
        signature={name: variant.types.get(name, "constexpr") for name in function.arg_names},
        constexprs={(index(name),): value for name, value in variant.constants.items()},
        attrs={(index(name),): ALIGNED for name in variant.aligned},
    )
    target = GPUTarget("cuda", CAPABILITY, WARP_SIZE)
    compiled = triton.compile(source, target=target, options={"num_warps": variant.num_warps})
    return read_resources(compiled.asm["cubin"], compiled.metadata.shared)


def read_resources(cubin: bytes, shared: int) -> Resources:
    """Registers, spills and instructions, by the tools that come with triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = output(tools / "nvdisasm", "-c", "-ndf", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing about registers: {usage!r}")
    counts = {name: len(re.findall(pattern, code)) for name, pattern in INSTRUCTIONS.items()}
    return Resources(int(found[1]), len(re.findall(r"\b(?:LDL|STL)\b", code)), int(found[2]), shared, counts)


def output(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def problems(resources: Resources, instructions: tuple[str, ...]) -> list[str]:
    """What is wrong with a compiled kernel; nothing, it is to be hoped."""
    found = [f"no {name}" for name in instructions if not resources.counts[name]]
    if resources.spills or resources.stack:
        found.append(f"spills ({resources.spills} instructions, {resources.stack} bytes a thread)")
    return found


def check(path: Path, variant: Any) -> bool:
    """Compile one form, print its line, and say whether all is well."""
    from triton.errors import TritonError

    name = f"{path.stem}: {variant.kernel.function.__name__}, {variant.label}"
    try:
        resources = compile_variant(variant)
    except (TritonError, RuntimeError) as error:  # RuntimeError: a pass of the compiler gave up
        message = " ".join(str(error).split())
        print(f"FAILED  {name}: does not compile: {type(error).__name__}: {message}")
        return False
    found = problems(resources, variant.instructions)
    counts = "".join(f", {count} {name}" for name, count in resources.counts.items() if count)
    facts = (
        f"{resources.registers} registers, {resources.spills} spills, {resources.shared} bytes of shared memory{counts}"
    )
    print(f"FAILED  {name}: {'; '.join(found)} ({facts})" if found else f"ok      {name}: {facts}")
    return not found


def variants(paths: list[Path]) -> Iterator[tuple[Path, Any]]:
    """Every form of every kernel in these files; a file without ``compile_variants`` has none."""
    for path in paths:
        spec = importlib.util.spec_from_file_location(f"probing.kernels.{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look
        spec.loader.exec_module(module)
        for variant in module.compile_variants() if hasattr(module, "compile_variants") else ():
            yield path, variant


def main() -> None:
    """Read the command line, compile, print, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="files with kernels (default: all of kernels/)")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel has nothing to compile
    if importlib.util.find_spec("triton") is None:
        sys.exit(
            "triton is not installed, so nothing can be compiled: pip install 'model-probing[dev]' on Linux x86-64"
        )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # a result from before proves nothing about the compiler of today
        results = [check(path, variant) for path, variant in variants(options.files or sorted(KERNELS.glob("*.py")))]
    if not results:
        sys.exit("no kernel lists any variant: nothing was checked")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
