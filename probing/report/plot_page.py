"""Pages of plots: all figures below each other, and what they were made from; they need no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from probing.report.figures import Figure
from probing.report.layout import shorten
from probing.report.plotly_page import make_plotly_page
from probing.report.screen import to_message
from probing.store.files import new_file

NAME_WIDTH = 40
SHOWN_NAMES = 3


@dataclass(frozen=True)
class About:
    """What a page was made from.

    Attributes:
        command: the command with its options, as it is typed.
        sources: models, data and so on, by what they are.
        date: day on which the run began, of universal time: "2026-11-27"; empty where that is not known.
        versions: versions of the software, by name.
    """

    command: str
    sources: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def name_sources(**sources: str | Path | Sequence[str] | None) -> dict[str, str]:
    """What a run was made from, shortened for a line each.

    Args:
        sources: paths or hub ids by what they are, None or empty for what there is not; long ones are shortened to
            their last parts.
    """
    told = {}
    for kind, given in sources.items():
        if not given:
            continue
        names = [str(given)] if isinstance(given, str | Path) else list(given)
        more = [f"and {len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
        told[kind] = ", ".join([*map(shorten_path, names[:SHOWN_NAMES]), *more])
    return told


def shorten_path(name: str) -> str:
    """As many of the last parts of a path as fit into 40 characters; at least the last one, or its beginning."""
    parts = to_message(name).rstrip("/").split("/")
    first = next((at for at in range(len(parts)) if len("/".join(parts[at:])) <= NAME_WIDTH), len(parts) - 1)
    return shorten("/".join(parts[first:]), NAME_WIDTH)


def write_plots(figures: Sequence[Figure], path: Path, about: About, interactive: bool = False) -> bool:
    """Write a page with all figures; returns False, and writes nothing, where there are none."""
    if figures:
        with new_file(path) as temporary:
            temporary.write_text(make_plots(figures, about, interactive), encoding="utf-8")
    return bool(figures)


def make_plots(figures: Sequence[Figure], about: About, interactive: bool = False) -> str:
    """A page with all figures below each other.

    Args:
        figures: at least one.
        about: what they were made from.
        interactive: draw them by plotly, which has to be installed.
    """
    return make_plotly_page(figures, list_facts(about))


def list_facts(about: About) -> dict[str, str]:
    """The lines at the head of a page, by name."""
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items() if version != "not installed")
    facts = {"command": about.command, **about.sources, "date": about.date and f"{about.date} (UTC)"}
    return {name: text for name, text in (facts | {"versions": versions}).items() if text}
