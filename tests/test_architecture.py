"""Imports go down or sideways, never up; and what is optional is not imported before it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "types": 0,
    "errors": 0,
    "kernels": 1,
    "metrics": 2,
    "probes": 2,
    "directions": 2,
    "models": 3,
    "data": 3,
    "store": 3,
    "engine": 4,
    "runs": 5,
    "training": 5,
    "distributed": 5,
    "report": 5,
    "cli": 6,
}
# Floors 0 to 2 never see a model, a tokenizer, a table, a file or the network.
OUTSIDE = {"transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "pandas", "pathlib", "huggingface_hub"}


def modules(root):
    """(dotted name, path) of every module of the package, the kernels by the name they are imported under."""
    for path in sorted(root.rglob("*.py")):
        if not path.is_symlink() and "kernels" not in path.relative_to(root).parts:
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
    for path in sorted((root.parent / "kernels").glob("*.py")):
        yield f"probing.kernels.{path.stem}", path


def imported(path):
    """Every module that a file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(name):
    parts = name.split(".")
    return FLOORS[parts[1]] if len(parts) > 1 else None


def violations(root):
    found = []
    for name, path in modules(root):
        here = floor(name)
        if here is None:  # the package itself names everything, lazily
            continue
        for target in imported(path):
            parts = target.split(".")
            if parts[0] == "probing" and (len(parts) == 1 or FLOORS.get(parts[1], 99) > here):
                found.append(f"{name} (floor {here}) imports {target}")
            if here <= 2 and parts[0] in OUTSIDE and not (here == 0 and parts[0] == "pandas"):
                found.append(f"{name} (floor {here}) imports {target}")
    return found


def test_no_import_goes_up():
    assert len(list(modules(ROOT / "probing"))) > 25
    assert violations(ROOT / "probing") == []


def test_every_module_has_a_floor():
    for name, _ in modules(ROOT / "probing"):
        assert name == "probing" or name.split(".")[1] in FLOORS, f"{name} has no floor"


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("metrics", "from probing.models.load import load"),
        ("metrics", "import transformers"),
        ("data", "def late():\n    import probing.engine.stream"),
        ("engine", "from probing.runs import demo"),
        ("store", "from probing import cli"),
        ("runs", "import probing.cli"),
        ("models", "import probing"),
    ],
)
def test_an_upward_import_is_found(tmp_path, place, line):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "probing" / place).mkdir(parents=True)
    (tmp_path / "probing" / place / "good.py").write_text("import math\nfrom probing.errors import DataInvalid\n")
    assert violations(tmp_path / "probing") == []
    (tmp_path / "probing" / place / "planted.py").write_text(line + "\n")
    assert violations(tmp_path / "probing") != []


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_probing_brings_nothing_optional():
    """Every public name is touched, since they are imported when first used.

    torch imports triton by itself where it finds it (transformers has it import its compiler), so here it finds none.
    """
    code = (
        "import sys; sys.modules['triton'] = None; import probing; "
        "[getattr(probing, name) for name in probing.__all__]; "
        "print([name for name in ('trl', 'ray', 'plotly') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_triton_is_imported_to_launch_a_kernel_and_not_before():
    """Importing every kernel, asking for its variants and running a torch form do without."""
    code = (
        "import importlib, pathlib, sys, torch; "
        f"names = [path.stem for path in pathlib.Path({str(ROOT / 'kernels')!r}).glob('*.py')]; "
        "modules = [importlib.import_module(f'probing.kernels.{name}') for name in names]; "
        "[module.compile_variants() for module in modules if hasattr(module, 'compile_variants')]; "
        "end = torch.tensor([1]); "
        "importlib.import_module('probing.kernels.segment_pool').segment_sum(torch.ones(1, 1), end, end); "
        "print(len(modules) > 2, 'triton' in sys.modules)"
    )
    assert run_python(code) == "True False"


def test_importing_probing_alone_is_cheap():
    code = (
        "import probing, sys; print([n for n in ('torch', 'transformers', 'pandas', 'datasets') if n in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_public_names_are_all_there():
    import probing

    assert set(probing.__all__) == set(probing._PLACES)
    for name in probing.__all__:
        assert getattr(probing, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = probing.nonsense


def test_kernels_is_a_link_without_a_package_of_its_own():
    """A top-level package 'kernels' would hide the one that transformers imports."""
    assert (ROOT / "probing" / "kernels").is_symlink()
    assert (ROOT / "probing" / "kernels").resolve() == (ROOT / "kernels").resolve()
    assert not (ROOT / "kernels" / "__init__.py").exists()
