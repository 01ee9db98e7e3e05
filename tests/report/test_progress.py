import io
import sys

from probing.report.progress import Progress


def test_the_bar_shows_pairs_tokens_and_the_time_left(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("probing.report.progress.DELAY_SECONDS", 0)
    monkeypatch.setattr("probing.report.progress.QUIET_INTERVAL_SECONDS", 0)
    with Progress(10, done=4) as bar:
        bar.advance(2.5, 1000)
        bar.advance(3.5, 1000)
    shown = stream.getvalue()
    assert "40%" in shown
    assert "10/10 pairs" in shown
    assert "tokens/s" in shown


def test_a_short_job_shows_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(10) as bar:
        bar.advance(10, 1000)
    assert stream.getvalue() == ""
