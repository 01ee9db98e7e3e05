"""The job ``probing merge``: the finished shards of an array become the run that one job would have made."""

from contextlib import ExitStack
from pathlib import Path

from probing.runs.merge.config import MergeConfig
from probing.runs.merge.data import check_apart, find_array, read_whole
from probing.store.manifest import claim
from probing.types import Report


def run(config: MergeConfig) -> Report:
    """Join the shards into ``config.out``.

    Raises:
        ProbingError: see ``probing.errors``; the shards stay as they are, and so does what else is there.
    """
    out = Path(config.out).expanduser()
    array = find_array(config.folders)
    check_apart(array, out)
    with ExitStack() as held:
        whole = read_whole(array, out, config.data, held)
        folder = held.enter_context(claim(out, array.command, array.record_name))
        # Imported only here, so that wrong shards are told without waiting for torch to load.
        from probing.runs.merge.stages import merge_into

        return merge_into(folder, array, whole)
