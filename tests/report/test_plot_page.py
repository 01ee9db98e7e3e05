import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from probing.report.figures import choose_edges, make_figure, make_histogram, make_line, mark_value, name_places
from probing.report.plot_page import NAME_WIDTH, About, make_plots, name_sources, shorten_path, write_plots

HOSTILE = "<script>alert(1)</script>\x1b]0;t\x07\u202e\"'<b>"
ABOUT = About(
    "probing score --model m",
    {"model": "m", "data": "d.jsonl"},
    "2026-11-27",
    {"torch": "2.13", "trl": "not installed"},
)


def make_some():
    values = np.arange(10.0)
    return [
        make_figure([make_histogram(values, choose_edges(values), "pairs", "red")], "Some values", "value", "pairs")
    ]


def test_sources_are_told_by_the_last_parts_of_long_paths():
    assert name_sources(model="bundled", data=["pairs.jsonl"]) == {"model": "bundled", "data": "pairs.jsonl"}
    assert name_sources(model=None, states="out/states", data=[]) == {"states": "out/states"}
    many = name_sources(model=["a", "b"], data=[f"{n}.jsonl" for n in range(5)])
    assert many == {"model": "a, b", "data": "0.jsonl, 1.jsonl, 2.jsonl, and 2 more"}
    assert (
        shorten_path("/data/of/an/organisation/with/a/long/name/runs/dpo/checkpoint-500/")
        == "with/a/long/name/runs/dpo/checkpoint-500"
    )
    assert shorten_path("m" * 100) == "m" * (NAME_WIDTH - 1) + "…"
    assert shorten_path("/tmp/\x1b[31mred\u202e") == "/tmp/\\x1b[31mred\\u202e"
    assert shorten_path("/") == ""


def test_a_page_says_command_model_data_day_and_versions():
    page = make_plots(make_some(), ABOUT)
    told = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert told == {
        "command": "probing score --model m",
        "model": "m",
        "data": "d.jsonl",
        "date": "2026-11-27 (UTC)",
        "versions": "torch 2.13",
    }
    assert "<title>Plots of probing score</title>" in page


def test_a_page_is_whole_needs_no_network_and_no_script():
    page = make_plots(make_some(), ABOUT)
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert not re.search(r"<script|<link|<img|@import|url\(|https?:", page)
    assert len(page) < 12_000
    # Apart from its first lines, which have no closing tags, it is XML too.
    body = page[page.index("<body>") : page.index("</html>")]
    assert len(ElementTree.fromstring(body).findall(".//figure")) == 1


def test_nothing_is_written_where_nothing_is_drawn(tmp_path):
    assert not write_plots([], tmp_path / "p.html", ABOUT)
    assert not list(tmp_path.iterdir())
    assert write_plots(make_some(), tmp_path / "p.html", ABOUT)
    assert (tmp_path / "p.html").read_text() == make_plots(make_some(), ABOUT)


def test_a_page_needs_no_plotly(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "<svg" in make_plots(make_some(), ABOUT)


def make_hostile():
    trace = make_line([HOSTILE], [1], "lines+markers", HOSTILE) | {"text": [HOSTILE]}
    figure = make_figure([trace, trace], HOSTILE, HOSTILE, HOSTILE)
    return mark_value(name_places(figure, [HOSTILE]), 1.0, HOSTILE), About(
        HOSTILE, {HOSTILE: HOSTILE}, HOSTILE, {HOSTILE: HOSTILE}
    )


class Tags(HTMLParser):
    """The tags and attributes of a page, and its texts."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.values = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.values += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)


def test_hostile_texts_stay_text_on_a_page():
    figure, about = make_hostile()
    found = Tags()
    page = make_plots([figure], about)
    found.feed(page)
    assert not found.tags & {"script", "b"}
    assert sum("<script>alert(1)</script>" in text for text in found.texts) >= 12
    for character in "\x1b\x07\u202e":
        assert character not in page


def read_figure(page):
    """What a browser reads of the only figure of an interactive page."""
    own = page[page.rindex("Plotly.newPlot(") :]
    data, end = json.JSONDecoder().raw_decode(own, own.index("[{"))
    layout, _ = json.JSONDecoder().raw_decode(own, own.index("{", end))
    return data, layout


def list_texts(value):
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for each in inner for text in list_texts(each)]
    return [value] if isinstance(value, str) else []


def test_hostile_texts_are_spelled_out_and_escaped_everywhere_on_an_interactive_page():
    """Plotly takes marks of HTML in its texts for marks."""
    pytest.importorskip("plotly")
    figure, about = make_hostile()
    page = make_plots([figure], about, interactive=True)
    data, layout = read_figure(page)
    texts = list_texts([data, {name: part for name, part in layout.items() if name != "template"}])
    assert sum("alert(1)" in text for text in texts) >= 12
    for text in texts:
        assert "<" not in text.replace("<br>", "")
        assert text.isprintable()
    head = page[: page.index("plotly.js")]
    assert "<script>alert" not in head
    for character in "\x1b\x07\u202e":
        assert character not in page[page.rindex("Plotly.newPlot(") :]
        assert character not in head


def test_an_interactive_page_is_json_that_a_browser_reads():
    pytest.importorskip("plotly")
    data, layout = read_figure(make_plots(make_some(), ABOUT, interactive=True))
    assert sum(data[0]["y"]) == 10
    assert layout["xaxis"]["title"]["text"] == "value"


@pytest.mark.parametrize("interactive", [False, True])
def test_a_page_is_the_same_to_the_byte_whenever_it_is_made(interactive):
    pytest.importorskip("plotly")
    assert make_plots(make_some(), ABOUT, interactive) == make_plots(make_some(), ABOUT, interactive)
