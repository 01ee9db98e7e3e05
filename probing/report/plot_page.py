"""Pages of plots: all figures below each other, and what they were made from; they need no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from probing.report.figures import Figure
from probing.report.layout import shorten
from probing.report.plotly_page import make_plotly_page
from probing.report.svg import SVG_STYLE, draw_svg
from probing.shown import to_message, to_page_text
from probing.store.files import new_file

NAME_WIDTH = 40
SHOWN_NAMES = 3
_STYLE = """body{background:var(--paper);color:var(--ink);font:16px/1.45 system-ui,sans-serif;margin:0}
main{padding:1rem;max-width:62rem;margin:auto}
h1{font-size:1.3rem;margin:.2rem 0 .6rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1rem .8rem;margin:0 0 1.6rem;font-size:.88rem}
dt{font-weight:600}
dd{margin:0;overflow-wrap:anywhere}
"""
# The rules hold braces, so that only what surrounds them is a pattern.
_HEAD = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>
{(SVG_STYLE + _STYLE).replace("{", "{{").replace("}", "}}")}</style>
</head>
<body>
<main>
<h1>{{title}}</h1>
<dl>"""


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
    facts = list_facts(about)
    if interactive:
        return make_plotly_page(figures, facts)
    # The first two words name the command, or three where it has two names.
    title = to_page_text(f"Plots of {facts['command'].split(' --')[0]}")
    lines = [f"<dt>{to_page_text(name)}</dt><dd>{to_page_text(text)}</dd>" for name, text in facts.items()]
    pictures = [draw_svg(figure, f"figure-{number}") for number, figure in enumerate(figures, 1)]
    return "\n".join([_HEAD.format(title=title), *lines, "</dl>", *pictures, "</main>", "</body>", "</html>", ""])


def list_facts(about: About) -> dict[str, str]:
    """The lines at the head of a page, by name."""
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items() if version != "not installed")
    facts = {"command": about.command, **about.sources, "date": about.date and f"{about.date} (UTC)"}
    return {name: text for name, text in (facts | {"versions": versions}).items() if text}
