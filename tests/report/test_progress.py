import io
import re
import sys
import types
import warnings

import pytest
from tqdm import notebook, tqdm
from tqdm import std as tqdm_std

from probing.models import hashes
from probing.report import progress
from probing.report.progress import Progress, describe_failures, open_bar
from probing.store.progress import Worker


def watch(monkeypatch):
    """What stands on stderr, where every report is due at once."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("probing.report.progress.DELAY_SECONDS", 0)
    monkeypatch.setattr("probing.report.progress.QUIET_INTERVAL_SECONDS", 0)
    return stream


@pytest.fixture
def kernel(monkeypatch):
    """A Jupyter kernel as far as a bar can see."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(notebook, "IProgress", None)
    return shell


class Widget:
    """As much of a widget as a bar uses."""

    def __init__(self, **values):
        self.layout, self.style = types.SimpleNamespace(), types.SimpleNamespace()
        self.value, self.bar_style = 0, ""
        self.__dict__.update(values)

    def close(self):
        self.closed = True


def test_the_bar_shows_pairs_tokens_and_the_time_left(monkeypatch):
    stream = watch(monkeypatch)
    with Progress(10, done=4) as bar:
        bar.advance(2.5, 1000)
        bar.advance(3.5, 1000)
    shown = stream.getvalue()
    assert "40%" in shown
    assert "10/10 pairs" in shown
    assert "tokens/s" in shown


def test_every_report_is_a_line_where_there_is_no_terminal(monkeypatch):
    stream = watch(monkeypatch)
    with Progress(3) as bar:
        for _ in range(3):
            bar.advance(1, 10)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert all(line.startswith("scoring ") for line in lines)
    assert len(lines) >= 3


def test_a_short_job_shows_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10) as bar:
        bar.advance(10, 1000)
    assert stream.getvalue() == ""


def test_in_a_kernel_it_is_the_bar_of_the_notebook(kernel, monkeypatch):
    stream = watch(monkeypatch)
    shown = []
    for name in ("IProgress", "HTML", "TqdmHBox"):
        monkeypatch.setattr(notebook, name, Widget, raising=False)
    monkeypatch.setattr(notebook, "display", shown.append, raising=False)
    with Progress(10, doing="capturing", unit="rows") as bar:
        bar.advance(4, 100)
        bar.advance(6, 100)
    (box,) = shown
    left, middle, right = box.children
    assert middle.value == 10
    assert middle.bar_style == "success"
    assert "capturing" in left.value
    assert "10/10 rows" in right.value.replace("\u2007", " ")
    assert stream.getvalue() == ""


def test_a_kernel_without_widgets_has_lines_and_no_warning(kernel, monkeypatch):
    stream = watch(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Progress(10) as bar:
            bar.advance(10, 100)
    assert type(bar._bar) is tqdm
    assert "10/10 pairs" in stream.getvalue()
    kernel.config.clear()
    assert progress._find_kind() is tqdm


def test_a_shell_that_is_no_kernel_has_the_plain_bar(kernel, monkeypatch):
    monkeypatch.setattr(notebook, "IProgress", Widget)
    assert progress._find_kind() is notebook.tqdm_notebook
    kernel.config.clear()
    assert progress._find_kind() is tqdm
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert progress._find_kind() is tqdm


def test_hidden_progress_hides_every_bar(monkeypatch, tmp_path):
    stream = watch(monkeypatch)
    (tmp_path / "w.safetensors").write_bytes(b"x" * 10)

    def hash_it():
        with hashes.FilesHash([tmp_path / "w.safetensors"]) as files:
            return files.digest()

    monkeypatch.setattr(progress, "_hidden", True)
    with Progress(10, done=4) as bar, open_bar(total=3):
        bar.advance(6, 10)
    hash_it()
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "_hidden", False)
    hash_it()
    assert stream.getvalue().startswith("hashing the weights")
    assert "\r" not in stream.getvalue()


def test_rates_and_failures_are_shown(monkeypatch):
    stream = watch(monkeypatch)
    with Progress(10, done=4) as bar:
        bar.count({"ok": 3, "truncated": 1}, earlier=True)
        bar.advance(4, 1000)
        bar.count({"ok": 1, "truncated": 1, "refused": 2})
        bar.advance(2, 1000)
    last = stream.getvalue().splitlines()[-1]
    assert re.search(r"10/10 pairs \[\d\d:\d\d<\d\d:\d\d, [\d,.]+ pairs/s, [\d,]+ tokens/s, failed: ", last)
    assert last.endswith("failed: 2 truncated, 2 refused]")


def test_of_many_kinds_of_failures_the_most_frequent_are_named():
    counts = {"truncated": 5, "refused": 1, "identical": 2, "empty_prompt": 1000, "extra_bos": 1}
    assert describe_failures(counts) == "1,000 empty_prompt, 5 truncated, 2 identical, 2 others"


def test_what_several_processes_do_is_shown_together_and_apart(monkeypatch):
    stream = watch(monkeypatch)
    with Progress(100) as bar:
        bar.advance(10, 500)
        bar.own.seconds = 2.0
        bar.hear({1: Worker(rows=30, tokens=300, seconds=4.0), 2: Worker()})
    last = stream.getvalue().splitlines()[-1]
    assert "40/100 pairs" in last
    assert "10.0 pairs/s, 200 tokens/s, 3 workers with 0.0 to 7.5" in last
    assert bar.work.seconds_left == 6.0


class Clock:
    """Seconds that pass when they are told to, for the bar and for tqdm."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("probing.report.progress.time", self)
        # tqdm takes the time from here when a bar is made.
        monkeypatch.setattr(tqdm_std, "time", self.time)

    def time(self):
        return self.now

    monotonic = time


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock(monkeypatch)
    with Progress(600) as bar:
        # Otherwise a thread of tqdm's draws a line every ten seconds.
        assert not bar._bar.dynamic_miniters
        for _ in range(600):
            clock.now += 1
            bar.advance(1, 100)
    lines = stream.getvalue().splitlines()
    shown = [int(re.search(r"(\d+)/600 pairs", line)[1]) for line in lines]
    assert shown == [*range(60, 601, 60), 600]
    assert all("1.0 pairs/s, 100 tokens/s" in line for line in lines)
    assert "[05:00<05:00, " in lines[4]


@pytest.mark.parametrize(("seconds", "lines"), [(1, 0), (3, 1), (59, 1), (61, 2)])
def test_a_work_of_a_few_seconds_has_one_last_line(monkeypatch, seconds, lines):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    clock = Clock(monkeypatch)
    with Progress(seconds) as bar:
        for _ in range(seconds):
            clock.now += 1
            bar.advance(1, 100)
    shown = stream.getvalue().splitlines()
    assert len(shown) == lines
    assert all(f"{seconds}/{seconds} pairs" in line for line in shown[-1:])
