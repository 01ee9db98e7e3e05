"""What a bare machine with a card holds, the wheels that are brought along, and how they are installed offline.

Nothing but the standard library is imported here: ``card_wheels.sh`` runs this file where nothing is installed.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRESENT = (
    "accelerate",
    "hypothesis",
    "jaxtyping",
    "jinja2",
    "numpy",
    "pandas",
    "peft",
    "pip",
    "psutil",
    "pyarrow",
    "pytest",
    "pytest-timeout",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "setuptools",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "triton",
)
"""Distributions of a bare machine that probing, its tests and these measurements use; what they need is there too."""
WHEELS = {
    "beartype": "beartype",
    "docstring-parser": "docstring_parser",
    "jsonargparse": "jsonargparse",
    "rapidfuzz": "rapidfuzz",
    "typeshed-client": "typeshed_client",
}
"""Distributions that probing and its tests need and a bare machine does not have, with the names to import."""


def normal(name: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(constraints: str) -> list[str]:
    """The wheels to bring, each with its version from the text of ``constraints.txt``.

    Raises:
        ValueError: a version is missing there.
    """
    lines = (line.strip() for line in constraints.splitlines())
    versions = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    known = {normal(name): version for name, version in versions.items()}
    missing = [name for name in WHEELS if name not in known]
    if missing:
        raise ValueError(f"constraints.txt names no version of {', '.join(missing)}")
    return [f"{name}=={known[name]}" for name in WHEELS]


def missing_modules() -> list[str]:
    """Names to import, of those that the wheels bring, that cannot be imported here."""
    return [module for module in WHEELS.values() if find_spec(module) is None]


def install(wheels: Path, target: Path) -> None:
    """Install every wheel of a folder into ``target``, with no network, and put it on the path of this process.

    Raises:
        FileNotFoundError: the folder holds no wheel.
        subprocess.CalledProcessError: pip refused them; what it said is on stderr.
    """
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        raise FileNotFoundError(f"{wheels} holds no wheels; scripts/card_wheels.sh fetches them")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *files], check=True, stdout=sys.stderr)
    sys.path.insert(0, str(target))


def child_environment(*folders: Path) -> dict[str, str]:
    """The environment for child processes: these folders and the repository's root on their path, no hub.

    Tests that a child runs are not those of a worker of pytest-xdist that this process may be.
    """
    before = os.environ.get("PYTHONPATH")
    path = [*map(str, folders), str(ROOT), *([before] if before else [])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    print("\n".join(pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))))
