"""Tests of Triton kernels: on a card where there is one, and in Triton's interpreter where it is switched on.

``test_interpreted.py`` runs them in the interpreter, each file in a process of its own.
"""

import pytest
import torch

from probing.kernels.dispatch import interpreting, triton_installed

if not (triton_installed() and (interpreting() or torch.cuda.is_available())):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device():
    return torch.device("cpu" if interpreting() else "cuda")
