"""A report page used as a person uses it: searched, sorted, filtered, linked to, by mouse and by keyboard."""

import math
import re
import time
from statistics import median

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from report_pages import PLANTED, make_page, make_planted_rows, make_pulled_rows, make_rows

from probing.report.page import write_report
from probing.report.page_data import show_ids, show_text
from probing.report.parts import Page

PAIRS, PLANTED_ROWS = "#rows-pairs", "#rows-planted"
OPENED = ".opened"


def status_of(page, table=PAIRS):
    return page.locator(f"{table} > [role=status]")


def list_cells(page, column, table=PAIRS):
    """Texts of a column of the rows that are shown: 0 is the ids."""
    read = "([lines, at]) => [...document.querySelectorAll(lines)].map((line) => line.children[at].textContent)"
    return page.evaluate(read, [f"{table} tr[data-row]", column])


def sort_by(page, name):
    page.locator(f"{PAIRS} thead").get_by_role("button", name=name).click()


@pytest.fixture(scope="module")
def values():
    """Numbers of the first column by id, as the page has them."""
    rows = make_rows(320, 60, 5)
    return dict(zip(rows.ids, rows.columns[0].values, strict=True))


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory):
    """Address of a page with few rows: rules are tried on every cell of them."""
    path = tmp_path_factory.mktemp("few") / "report.html"
    path.write_text(write_report(make_page(8)).text, encoding="utf-8")
    return path.as_uri()


def test_fifty_rows_are_shown_and_fifty_more(visit, report):
    page = visit(report)
    expect(status_of(page)).to_have_text("Showing 50 of 320 rows")
    assert page.locator(f"{PAIRS} tr[data-row]").count() == 50
    more = page.locator(PAIRS).get_by_role("button", name="50 more")
    for shown in (100, 150, 200, 250, 300, 320):
        more.click()
        expect(status_of(page)).to_have_text(f"Showing {shown} of 320 rows")
    assert len(set(list_cells(page, 0))) == 320
    expect(more).to_be_hidden()
    # Who pressed the button that is gone stands on the first new row.
    assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 301


def test_search_finds_ids_and_texts_of_any_case(visit, report):
    page = visit(report)
    search = page.locator(PAIRS).get_by_role("searchbox", name="Search ids and texts")
    search.fill("PAIRS-0007")
    expect(status_of(page)).to_have_text("Showing 10 of 10 rows that match, of 320")
    assert sorted(list_cells(page, 0)) == [f"pairs-{row:05d}" for row in range(70, 80)]
    search.fill("rejected 123 ")
    expect(status_of(page)).to_have_text("Showing 1 of 1 row that match, of 320")
    search.fill("nowhere")
    expect(status_of(page)).to_have_text("Showing 0 of 0 rows that match, of 320")
    search.fill("")
    expect(status_of(page)).to_have_text("Showing 50 of 320 rows")


def test_sorted_by_any_column_with_missing_values_last(visit, report, values):
    page = visit(report)
    known = sorted((name for name in values if not math.isnan(values[name])), key=values.get)
    head = page.locator(f"{PAIRS} thead th", has_text="change of ln p(chosen)")
    assert list_cells(page, 0) == known[:50]
    assert head.get_attribute("aria-sort") == "ascending"
    sort_by(page, "change of ln p(chosen)")
    assert list_cells(page, 0) == known[::-1][:50]
    assert head.get_attribute("aria-sort") == "descending"
    for _ in range(6):
        page.locator(PAIRS).get_by_role("button", name="50 more").click()
    assert list_cells(page, 0)[-1] == "pairs-00160"
    assert list_cells(page, 1)[-1] == "none"
    sort_by(page, "id")
    assert list_cells(page, 0)[:2] == ["pairs-00000", "pairs-00001"]
    assert head.get_attribute("aria-sort") is None
    sort_by(page, "kind of pair")
    assert set(list_cells(page, 3)) == {"far"}
    sort_by(page, "displaced")
    assert set(list_cells(page, 2)) == {"no"}


def test_lowest_median_and_highest_rows_are_one_press_away(visit, report, values):
    page = visit(report)
    known = sorted((name for name in values if not math.isnan(values[name])), key=values.get)
    views = page.locator(PAIRS).get_by_role("group", name="By change of ln p(chosen), nats:")
    views.get_by_role("button", name="highest").click()
    assert list_cells(page, 0) == known[::-1][:50]
    views.get_by_role("button", name="median").click()
    expect(status_of(page)).to_have_text("Showing rows 135 to 184 of 320 rows")
    assert list_cells(page, 0) == known[134:184]
    assert views.get_by_role("button", name="median").get_attribute("aria-pressed") == "true"
    page.locator(PAIRS).get_by_role("button", name="50 before").click()
    assert list_cells(page, 0) == known[84:184]
    views.get_by_role("button", name="lowest").click()
    assert list_cells(page, 0) == known[:50]
    sort_by(page, "kind of pair")
    expect(page.locator(PAIRS).get_by_role("button", name="median")).to_be_hidden()


def test_numbers_have_four_digits_in_the_table_and_five_in_the_row(visit, report):
    page = visit(f"{report}#pair=pairs-00007")
    rows = make_rows(320, 60, 5)
    line = page.locator("tr", has=page.get_by_role("link", name="pairs-00007", exact=True)).first
    shown = line.locator("td").all_inner_texts()
    opened = dict(
        zip(page.locator(f"{OPENED} dt").all_inner_texts(), page.locator(f"{OPENED} dd").all_inner_texts(), strict=True)
    )
    for at, column in enumerate(rows.columns):
        if column.kind == "number":
            assert float(shown[at]) == float(f"{column.values[7]:.5g}") or float(shown[at]) == pytest.approx(
                column.values[7], rel=6e-4
            )
            assert float(opened[column.title]) == float(f"{column.values[7]:.5g}")
    assert opened["displaced"] == ("yes" if rows.columns[1].values[7] else "no")


def test_an_opened_row_shows_texts_and_its_tokens_with_their_numbers(visit, report):
    page = visit(f"{report}#pair=pairs-00007")
    rows = make_rows(320, 60, 5)
    assert page.locator(f"{OPENED} .text").all_inner_texts() == [rows.texts[kind][7] for kind in rows.texts]
    tokens = rows.tokens["chosen"]
    changes = [after - before for before, after in zip(tokens.before[35:40], tokens.after[35:40], strict=True)]
    colored = page.locator(f"{OPENED} .tokens").first
    assert [piece.text_content() for piece in colored.locator(".piece").all()] == tokens.tokens[35:40]
    for number, change in zip(colored.locator(".change").all_inner_texts(), changes, strict=True):
        assert float(number) == pytest.approx(change, abs=0.0061)
    for token, change in zip(colored.locator(".token").all(), changes, strict=True):
        level = sum(abs(change) >= limit for limit in (0.1, 0.3, 1, 3))
        side = "lost" if change < 0 else "won"
        assert token.get_attribute("class").split() == ["token", *([f"{side}-{level}"] if level else [])]
    details = page.locator(f"{OPENED} details").first
    details.locator("summary").click()
    # The table is made when it is opened, and texts are read without waiting for it.
    details.locator("tbody tr").nth(2).wait_for()
    cells = details.locator("tbody tr").nth(2).locator("td").all_inner_texts()
    assert float(cells[3]) == pytest.approx(math.exp(tokens.before[37]), rel=0.006)
    assert float(cells[4]) == pytest.approx(math.exp(tokens.after[37]), rel=0.006)
    text, before, after = tokens.gained[37][0]
    assert text.strip() in cells[5]
    assert f"{before:.3g} → {after:.3g}" in cells[5] or float(cells[5].split()[1]) == pytest.approx(before, rel=0.01)
    fell = page.get_by_role("group", name="Tokens that fell most").first
    shown = [float(row.locator("td").nth(2).inner_text()) for row in fell.locator("tbody tr").all()]
    assert shown == sorted(shown)
    assert shown[0] == pytest.approx(min(changes), abs=0.0061)


def test_tokens_with_pulls_are_coloured_by_their_share_of_the_largest(visit, tmp_path):
    rows = make_pulled_rows()
    path = tmp_path / "report.html"
    path.write_text(write_report(Page("Pulls", [], [], [rows], [])).text, encoding="utf-8")
    page = visit(f"{path.as_uri()}#pulled=g%231")
    colored = page.locator(f"{OPENED} .tokens")
    shown = [token.get_attribute("class").split()[1:] for token in colored.locator(".token").all()]
    assert shown == [["lost-4"], ["won-2"], ["lost-1"], [], [], [], ["lost-1"]]
    numbers = colored.locator(".change").all_inner_texts()
    assert numbers == ["250", "-80", "30", "0", "0", "none", "12.6"]
    assert "7 tokens, sum of pulls 213" in page.locator(OPENED).inner_text()
    most = page.get_by_role("group", name="Tokens that pull most")
    assert [row.locator("td").nth(2).inner_text() for row in most.locator("tbody tr").all()] == ["250", "30", "12.6"]
    page.locator(f"{OPENED} details summary").click()
    cells = page.locator(f"{OPENED} details tbody tr").nth(3).locator("td")
    cells.first.wait_for()
    assert cells.all_inner_texts() == ["3", " cannot", "0.01"]
    assert page.evaluate("window.canary") is None


def test_links_to_rows_work_on_load_and_back_and_forward(visit, report):
    page = visit(f"{report}#pair=pairs-00300")
    heading = page.locator(f"{OPENED} h4")
    expect(heading).to_have_text("pairs-00300")
    expect(heading).to_be_focused()
    expect(heading).to_be_in_viewport()
    other = page.locator(f"{PAIRS} tr[data-row] a").first
    name = other.inner_text()
    other.click()
    expect(heading).to_have_text(name)
    assert page.url.endswith(f"#pair={name}")
    page.go_back()
    expect(heading).to_have_text("pairs-00300")
    page.go_forward()
    expect(heading).to_have_text(name)
    page.keyboard.press("Escape")
    expect(heading).to_have_count(0)
    assert "#" not in page.url
    expect(page.get_by_role("link", name=name)).to_be_focused()
    page.go_back()
    expect(heading).to_have_text(name)
    page.get_by_role("link", name=name, exact=True).click()
    expect(heading).to_have_count(0)


def test_a_link_finds_its_row_behind_a_search_and_in_its_own_table(visit, report):
    page = visit(report)
    page.locator(PAIRS).get_by_role("searchbox").fill("pairs-0001")
    expect(status_of(page)).to_contain_text("10 of 10")
    page.evaluate("location.hash = '#pair=pairs-00200'")
    expect(page.locator(f"{OPENED} h4")).to_have_text("pairs-00200")
    expect(status_of(page)).to_contain_text("of 320 rows")
    page.evaluate("location.hash = '#planted=' + encodeURIComponent('right to left/%&=#?')")
    expect(page.locator(f"{PLANTED_ROWS} {OPENED} h4")).to_have_text("right to left/%&=#?")
    page.evaluate("location.hash = '#pair=nobody%ff'")
    expect(page.get_by_text("This page has no row nobody%ff.")).to_be_visible()
    expect(page.locator(OPENED)).to_have_count(0)


def test_the_link_of_a_row_is_copied(visit, report):
    page = visit(f"{report}#pair=pairs-00007", permissions=("clipboard-read", "clipboard-write"))
    page.get_by_role("button", name="copy link").click()
    expect(page.locator(f"{OPENED} .buttons")).to_contain_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page = visit(f"{report}#pair=pairs-00007")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    page.get_by_role("button", name="copy link").click()
    expect(page.get_by_role("textbox", name="Link to this row")).to_have_value(page.url)


@pytest.mark.parametrize("key", ["click", "Enter", "Space"])
def test_a_bar_leads_to_its_rows(visit, report, values, key):
    page = visit(report)
    bar = page.get_by_role("button", name="-1 to 0").first
    if key == "click":
        bar.click()
    else:
        bar.focus()
        page.keyboard.press(key)
    inside = sorted((name for name in values if -1 <= values[name] < 0), key=values.get)
    expect(status_of(page)).to_have_text(f"Showing 50 of {len(inside)} rows that match, of 320")
    assert list_cells(page, 0) == inside[:50]
    expect(page.locator(PAIRS)).to_be_focused()
    expect(page.locator(f"{PAIRS} h3")).to_be_in_viewport()
    page.get_by_role("button", name="Remove the filter change of ln p(chosen), nats: -1 to 0").click()
    expect(status_of(page)).to_have_text("Showing 50 of 320 rows")


def test_the_last_bar_holds_its_upper_end(visit, report, values):
    page = visit(report)
    page.get_by_role("button", name="2 to 3: ").first.click()
    assert set(list_cells(page, 0)) == {name for name in values if 2 <= values[name] <= 3}
    assert "pairs-00001" in list_cells(page, 0)


def test_the_page_is_used_by_keyboard_alone(visit, report):
    page = visit(report)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the checks")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the checks")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.checks') !== null")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator(PAIRS).get_by_role("searchbox").focus()
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent"))
    first = list_cells(page, 0)[0]
    assert seen[:3] == ["lowest", "median", "highest"]
    assert first in seen
    page.get_by_role("link", name=first, exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator(f"{OPENED} h4")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name=first, exact=True)).to_be_focused()


def test_planted_texts_stay_text(visit, report):
    page = visit(report)
    rows = make_planted_rows()
    shown = show_ids(rows.ids)
    assert set(list_cells(page, 0, PLANTED_ROWS)) == set(shown)
    texts = list(rows.texts.values())
    for row, name in enumerate(shown):
        page.evaluate("name => { location.hash = '#planted=' + encodeURIComponent(name) }", name)
        expect(page.locator(f"{OPENED} h4")).to_have_text(name)
        page.evaluate("for (const some of document.querySelectorAll('.opened .text button')) some.click()")
        expected = [show_text(some[row]) for some in texts if some[row] is not None]
        assert [place.text_content() for place in page.locator(f"{OPENED} .text").all()] == expected
    assert page.locator("main img, main script").count() == 0
    assert page.locator("h1").inner_text() == f"A report {PLANTED[1]}"
    everything = page.content()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028\u2066-\u2069]", everything)


def test_long_texts_are_cut_until_they_are_asked_for(visit, report):
    page = visit(f"{report}#planted=long")
    text = page.locator(f"{OPENED} .text").first
    assert len(text.inner_text()) < 2_100
    text.get_by_role("button", name="show all 100,000 characters").click()
    assert text.inner_text() == "x" * 100_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_right_to_left_text_is_set_from_its_own_side(visit, report):
    page = visit(f"{report}#planted=right%20to%20left%2F%25%26%3D%23%3F")
    assert page.evaluate("getComputedStyle(document.querySelector('.opened .text')).direction") == "rtl"
    assert page.evaluate("getComputedStyle(document.querySelector('.opened dl')).direction") == "ltr"


def test_a_missing_number_is_none_and_never_a_number(visit, report):
    page = visit(f"{report}#planted=n")
    assert page.locator(f"{OPENED} dd").all_inner_texts() == ["none", "none"]
    # A token whose probability before is not known.
    page.locator(f"{OPENED} summary").click()
    assert page.locator(f"{OPENED} details td").all_inner_texts()[2:5] == ["none", "none", "none"]
    assert "NaN" not in page.locator("body").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_fault_of_accessibility_and_no_sideways_scrolling(visit, few_rows, width, scheme):
    # The rules run as a script that the policy of the page would refuse.
    page = visit(f"{few_rows}#pair=pairs-00003", width, scheme, bypass_csp=True)
    page.evaluate("for (const some of document.querySelectorAll('details')) some.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


def test_without_scripts_the_page_is_whole_but_for_its_rows(visit, report):
    page = visit(report, java_script_enabled=False)
    for text in ("2 of 5 checks warn; 1 is unclear; 1 was not judged", "It did not.", "0.1235", "/runs/b"):
        expect(page.get_by_text(text, exact=True).first).to_be_visible()
    told = page.locator(f"{PAIRS} noscript p")
    expect(told).to_be_visible()
    assert told.text_content().startswith("The 320 rows of this table are shown, searched and sorted by a script.")
    assert page.locator("svg").count() == 2


def test_on_paper_nothing_that_is_pressed_is_printed(visit, report):
    page = visit(report)
    page.emulate_media(media="print")
    # A sheet of A4 without its margins.
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator(PAIRS).get_by_role("searchbox")).to_be_hidden()
    expect(page.get_by_role("button", name="50 more").first).to_be_hidden()
    expect(page.get_by_role("link", name="pairs-").first).to_be_visible()
    assert len(page.pdf()) > 10_000


def test_ten_thousand_pairs_are_small_and_open_fast(visit, tmp_path):
    path = tmp_path / "large.html"
    path.write_text(write_report(Page("Large", [], [], [make_rows(10_000, 600, 40)], [])).text, encoding="utf-8")
    assert 7_500_000 < path.stat().st_size < 8_000_000
    opened, searched = [], []
    for _ in range(3):
        begun = time.perf_counter()
        page = visit(path.as_uri())
        expect(status_of(page)).to_have_text("Showing 50 of 10,000 rows")
        opened.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        page.get_by_role("searchbox").fill("rejected 99")
        expect(status_of(page)).to_contain_text("that match")
        searched.append(time.perf_counter() - begun)
    print(f"10,000 pairs: opened in {median(opened):.2f} s, searched in {median(searched):.2f} s")
    # They take under 2 s and 0.5 s; a machine may be busy.
    assert median(opened) < 6
    assert median(searched) < 1.5
    page.goto(f"{path.as_uri()}#pair=pairs-05000")
    page.reload()
    left_out = "The tokens of this row were left out to keep the page under 8 MB."
    expect(page.locator(OPENED)).to_contain_text(left_out)
