"""Versions of the software that numbers depend on."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version

DISTRIBUTION = "model-probing"
"""The name under which this package is installed; its import name is ``probing``."""
LIBRARIES = (
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
    own = {"python": platform.python_version(), "probing": version_of(DISTRIBUTION)}
    return own | {name: version_of(name) for name in LIBRARIES}


@functools.cache
def version_of(distribution: str) -> str:
    """The version of an installed distribution; ours has none where it runs from a source tree."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def find_namesakes() -> list[str]:
    """Other distributions that install an import package ``probing`` too: files of either may have replaced ours."""
    names = packages_distributions().get("probing", [])
    return sorted({f"{name} {version_of(name)}" for name in names if name != DISTRIBUTION})
