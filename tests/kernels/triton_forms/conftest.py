"""Tests of Triton kernels: on a card where there is one, and in Triton's interpreter where it is switched on.

``test_interpreted.py`` runs them in the interpreter, in a process of their own.
"""

from pathlib import Path

import pytest
import torch

from probing.kernels.dispatch import has_triton, is_interpreting

if not (has_triton() and (is_interpreting() or torch.cuda.is_available())):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    """Where they do not run in the interpreter they need the card."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not is_interpreting():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    return torch.device("cpu" if is_interpreting() else "cuda")
