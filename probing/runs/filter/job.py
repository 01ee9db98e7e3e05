"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from probing.data.addresses import check_free_address, is_address, put, remove
from probing.data.filters import check_rule
from probing.data.formats import check_ending
from probing.instruments.filtering import warn_of_direction
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.data import check_same_runs, read_scores, stamp_files
from probing.store.files import check_output_name
from probing.types import Report


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it; or compare rules.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    if config.compare is not None:
        runs = [read_scores(folder) for folder in config.folders]
        check_same_runs(runs)
        from probing.runs.filter.stages import compare_on_rows

        return compare_on_rows(config, config.compare, runs)
    warn_of_direction(config.column, check_rule(**config.rule)[0])
    if is_address(str(config.out)):
        return _filter_to_address(config, str(config.out))
    return _filter(config, str(config.out))


def _filter_to_address(config: FilterConfig, address: str) -> Report:
    """Write into a folder of this machine, and copy what is there to an address when it is whole."""
    from probing.runs.filter.files import plots_path, side_path

    parent, name = address.rstrip("/").rsplit("/", 1)
    plain = Path(name)
    beside = [] if address.endswith("/") else [side_path(plain).name, plots_path(plain).name]
    targets = [f"{parent}/{each}" for each in (name, *beside)]
    for target in targets:
        check_free_address(target, config.overwrite)
    with TemporaryDirectory() as folder:

        def find_address(path: str) -> str:
            return parent + path.removeprefix(folder)

        local = f"{folder}/{name}{'/' if address.endswith('/') else ''}"
        report = _filter(replace(config, out=local), address)
        files = [str(path) for path in Path(folder).rglob("*") if path.is_file()]
        for target in targets:
            remove(target)
        # The rows that are kept come last: where they are, all is.
        put([(Path(path), find_address(path)) for path in sorted(files, key=lambda path: path == local)])
    wrote = [find_address(path) for path in report.facts["wrote"]]
    hashes = {find_address(path): sha256 for path, sha256 in report.facts["sha256"].items()}
    return replace(report, facts={**report.facts, "wrote": wrote, "sha256": hashes})


def _filter(config: FilterConfig, named: str) -> Report:
    """Filter into a file or a folder of this machine, which is shown under another name."""
    check_output_name(Path(config.out or ""))
    if not config.makes_folder:
        check_ending(config.target, config.format)
    [scores] = map(read_scores, config.folders)
    before = stamp_files(config)
    from probing.runs.filter.stages import filter_rows

    return filter_rows(config, scores, before, named)
