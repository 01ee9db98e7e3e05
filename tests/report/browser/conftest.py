"""A browser for tests of pages: the Chromium of the machine, driven by playwright."""

import shutil

import pytest
from report_pages import make_page

from probing.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of a file."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of a page with planted texts."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(write_report(make_page()).text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def contexts(browser):
    """Contexts by their options: one is used for all pages that need no other, since each starts a process."""
    made = {}

    def find(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = browser.new_context(**options)
        return made[key]

    return find


@pytest.fixture
def visit(contexts):
    """Opens an address: visit(address, width=1280, scheme="light", ...) returns the page.

    At the end of a test nothing was asked of a network, nothing was said on the console, and no planted text has run.
    """
    pages, heard = [], []

    def open_page(address, width=1280, scheme="light", **options):
        page = contexts(**options).new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        page.set_default_timeout(10_000)
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or heard.append(request.url))
        page.goto(address)
        return page

    yield open_page
    canaries = [page.evaluate("typeof window.canary") for page in pages]
    for page in pages:
        page.close()
    assert heard == []
    assert set(canaries) <= {"undefined"}
