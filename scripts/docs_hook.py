"""Lets mkdocstrings read the package: a copy of its sources in which every folder has an ``__init__.py``.

griffe, which reads them for it, takes a folder without that file for scripts, and Python does not. See ``mkdocs.yml``.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
_copy = Path(tempfile.mkdtemp(prefix="probing-docs-"))


def copy_sources(to: Path) -> None:
    """Copy the sources, and add what is missing."""
    ignored = shutil.ignore_patterns("bundled", "__pycache__")
    shutil.copytree(ROOT / "probing", to / "probing", ignore=ignored, dirs_exist_ok=True)
    for folder in {path.parent for path in (to / "probing").rglob("*.py")}:
        (folder / "__init__.py").touch()


# mkdocstrings reads the configuration at the same event.
@event_priority(100)
def on_config(config: Any) -> None:
    """Have the copy read."""
    copy_sources(_copy)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(_copy)]


def on_shutdown() -> None:
    """Remove the copy."""
    shutil.rmtree(_copy, ignore_errors=True)
