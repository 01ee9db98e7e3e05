"""The bars that the datasets library draws while it reads and writes."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def hide_bars() -> Iterator[None]:
    """No bars of the datasets library in this block; afterwards they are as the caller had set them.

    Bars of what is fetched from the hub are another library's, and are shown.
    """
    import datasets

    # Bars that the environment asks for cannot be hidden, and trying warns.
    shown = not datasets.are_progress_bars_disabled() and datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is None
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
