"""Versions of what the numbers pass through."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "probing",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "datasets",
    "peft",
    "rapidfuzz",
    "jinja2",
)


def versions() -> dict[str, str]:
    """Versions of Python and of every library that can change a number or a byte of the output."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[name] = "not installed"
    return found
