"""A report page as a document: what stands where, and what it refuses."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import html5lib
import pandas as pd
import pytest
from report_pages import NAN, PLANTED, make_check, make_page, make_rows

from probing.report.page import write_report
from probing.report.page_parts import write_table
from probing.report.parts import Page, RowTable, Section


class Outline(HTMLParser):
    """Headings of a document with their levels, ids, links within the page, and addresses of anything else."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.ids, self.links, self.elsewhere = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])
        self.ids += [given["id"]] if "id" in given else []
        address = given.get("href", given.get("src", "#"))
        (self.links if address.startswith("#") else self.elsewhere).append(address.removeprefix("#"))

    def handle_data(self, data):
        if self.headings:
            self.headings[-1][1] += data


@pytest.fixture(scope="module")
def document():
    return write_report(make_page()).text


def test_the_document_is_valid_and_the_same_each_time(document):
    # The strict parser raises at the first error of the syntax.
    html5lib.HTMLParser(strict=True).parse(document)
    assert document == write_report(make_page()).text


def test_every_link_leads_somewhere_and_nothing_is_loaded(document):
    outline = Outline(document)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link for link in outline.links if link} <= set(outline.ids)
    assert outline.elsewhere == []
    assert "default-src 'none'" in document
    assert "url(" not in document
    assert "@import" not in document


def test_headings_are_in_order_and_checks_come_first(document):
    levels = [level for level, _ in Outline(document).headings]
    assert levels[:2] == [1, 2]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    titles = [text.split("\n")[0] for _, text in Outline(document).headings]
    assert titles[1].startswith("2 of 5 checks warn; 1 is unclear; 1 was not judged")
    order = re.findall(r'<span aria-hidden="true">.</span> ([\w ]+)</strong>', document)
    assert order == ["WARN", "WARN", "unclear", "not judged", "ok"]
    assert "the whole 95 % interval lies beyond the threshold" in document


@pytest.mark.parametrize(
    ("states", "headline"),
    [
        ([], "No check was made"),
        (["ok"], "None of 1 check warns"),
        (["WARN"], "1 of 1 check warns"),
        (["ok", "WARN", "unclear", "unclear"], "1 of 4 checks warns; 2 are unclear"),
        (["not judged", "not judged"], "None of 2 checks warns; 2 were not judged"),
    ],
)
def test_the_headline_counts_in_words(states, headline):
    page = Page("t", [make_check(state) for state in states], [Section("fell", "q", "r")], [], [])
    assert f">{headline}</h2>" in write_report(page).text


def test_planted_texts_are_spelled_out_in_the_document(document):
    fixed = document[: document.index('<script type="application/json"')]
    for text in PLANTED[:5]:
        assert text not in fixed
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028\u2066-\u2069\ud800-\udfff]", document)
    assert document.count("</script") == 2
    assert document.count("<!--") == 0


def test_a_small_table_has_four_digits_and_says_what_is_missing():
    table = pd.DataFrame({"name": ["a", "b"], "value": [1234.5678, NAN], "n": [1234567, 2], "is": [True, False]})
    written = write_table("T", table.assign(other=["x", None]))
    assert (
        '<th scope="row"><bdi>a</bdi></th><td class="number">1235</td><td class="number">1234567</td><td>yes</td>'
        in written
    )
    assert '<td class="number"><span class="none">none</span></td><td class="number">2</td><td>no</td>' in written
    assert written.count("none</span>") == 2
    assert '<th scope="col" class="number">value</th>' in written
    assert "<tr><td></td><th" in write_table("T", pd.DataFrame({"": ["a"], "b": [1]}))
    assert write_table("T", table[:0]) == '<p class="caption">T: none</p>\n'


def test_sections_of_one_question_stand_side_by_side(document):
    assert len(re.findall(r'<section class="question">', document)) == 2
    first = document[document.index('class="question"') : document.index("Is it real?</h2>")]
    assert first.count('<section class="run"') == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sections": [Section("a b", "q", "r")]}, "names of sections and tables must be unique"),
        ({"sections": [Section("fell", "q", "r")] * 2}, "names of sections and tables must be unique"),
        (
            {"sections": [Section("rows-pairs", "q", "r")]},
            "must be unique, of letters, digits and hyphens: .'rows-pairs'.",
        ),
        ({"sections": [Section("fell", "q", "r", rows="nobody")]}, "there is no table of rows 'nobody'"),
        ({"sections": []}, "checks refer to sections that are not there"),
        ({"rows": []}, "there is no table of rows 'pairs'"),
        ({"rows": [make_rows(3, 60, 5), RowTable("t", "t", [], [], first="x")]}, "sorted by a column"),
    ],
)
def test_names_that_lead_nowhere_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        write_report(replace(make_page(), **change))


def test_a_figure_whose_column_is_not_there_is_refused():
    page = make_page()
    page.sections[0].figures[0]["rows"]["column"] = "nobody"
    with pytest.raises(ValueError, match="refers to rows that are not on the page"):
        write_report(page)


def test_a_page_that_stays_larger_than_asked_is_written_and_it_is_said():
    document = write_report(make_page(), 1_000)
    told = " ".join(document.left_out)
    assert len(document.text) > 1_000
    assert re.search(r"The page has [\d.]+ MB, more than 0\.001 MB", told)
    assert "were left out to keep the page under 0.001 MB" in told
    assert not write_report(make_page()).left_out
