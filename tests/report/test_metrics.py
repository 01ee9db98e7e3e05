"""Progress as Prometheus reads it: what is served, where, and for how long."""

import importlib.util
import socket
import urllib.error
import urllib.request

import pytest
from harness import make_pairs, note_calls, write
from prometheus_client.parser import text_string_to_metric_families

from probing.errors import UsageError
from probing.instruments.pair_scores import PairScorer
from probing.report.metrics import ProgressCollector, serve_metrics
from probing.report.progress import Progress
from probing.runs.common.options import RunOptions
from probing.runs.score import score
from probing.store.progress import Work, Worker


@pytest.fixture
def port():
    """A port that is free."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def fetch(port):
    """What is served, as {(name, further labels): value}; every sample has the labels of the work."""
    # A proxy of the machine is not asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert all({"command", "doing", "unit"} <= set(sample.labels) for sample in samples)
    further = ("worker", "status")
    return {
        (sample.name, *(sample.labels[name] for name in further if name in sample.labels)): sample.value
        for sample in samples
    }


def test_progress_is_served_while_the_work_is_on_and_not_afterwards(port):
    with serve_metrics(("127.0.0.1", port), "score"):
        assert fetch(port) == {}
        with Progress(20, done=4) as bar:
            bar.count({"ok": 4}, earlier=True)
            bar.advance(2.5, 100)
            bar.count({"ok": 1, "truncated": 1})
            bar.hear({1: Worker(rows=3, tokens=50, seconds=2.0, statuses={"ok": 3})})
            served = fetch(port)
            seconds = served.pop(("probing_seconds_total", "0"))
            assert 0 < seconds < 60
            assert served == {
                ("probing_rows_expected",): 20,
                ("probing_rows_done",): 9.5,
                ("probing_rows_total", "earlier", "ok"): 4,
                ("probing_rows_total", "0", "ok"): 1,
                ("probing_rows_total", "0", "truncated"): 1,
                ("probing_rows_total", "1", "ok"): 3,
                ("probing_tokens_total", "0"): 100,
                ("probing_tokens_total", "1"): 50,
                ("probing_seconds_total", "1"): 2,
            }
            bar.advance(4, 10)
            assert fetch(port)[("probing_rows_done",)] == 13.5
        # What has ended is still told, since a counter may not fall.
        assert fetch(port)["probing_tokens_total", "0"] == 110
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(port)
    with Progress(3) as bar:
        bar.advance(1, 1)


def test_work_that_goes_by_the_same_words_is_counted_together():
    collector = ProgressCollector("clusters")
    for tokens in (10, 32):
        work = Work("capturing", "rows", 5, workers={0: Worker(rows=5, tokens=tokens, seconds=1.0, statuses={"ok": 5})})
        collector.hear(work, False)
        collector.hear(work, True)
    collector.hear(Work("judging", "places", 3, workers={0: Worker(rows=1)}), False)
    values = {
        (sample.name, sample.labels["doing"]): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
    assert values["probing_tokens_total", "capturing"] == 42
    assert values["probing_rows_total", "capturing"] == 10
    assert values["probing_rows_expected", "judging"] == 3


def test_a_command_serves_its_progress(probing, model_folder, tmp_path, monkeypatch, port):
    data = write(tmp_path / "pairs.jsonl", make_pairs(12))
    served, plain = [], PairScorer.score_tokenized

    def note(*arguments):
        served.append(fetch(port))
        return plain(*arguments)

    monkeypatch.setattr(PairScorer, "score_tokenized", note)
    out = tmp_path / "out"
    given = ["--model", model_folder, "--data", data, "--out", out, "--shard-pairs", "4", "--metrics-port", port]
    assert probing("score", *given)[0] == 0
    assert [each[("probing_rows_done",)] for each in served] == [0, 4, 8]
    assert served[2]["probing_rows_total", "0", "ok"] == 8
    assert served[2][("probing_rows_expected",)] == 12
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(port)
    # The port is no part of what the run was made from.
    assert probing("score", *given[:-2])[0] == 0
    assert len(served) == 3


def test_a_job_that_is_called_from_python_serves_too(model_folder, tmp_path, monkeypatch, port):
    calls = note_calls(monkeypatch, ProgressCollector, "hear")
    data = write(tmp_path / "pairs.jsonl", make_pairs(4))
    score(model=str(model_folder), data=str(data), metrics_port=port)
    assert {call[0]._command for call in calls} == {"score"}


def test_a_port_that_is_taken_is_told_in_a_sentence(probing, model_folder, tmp_path, port):
    data = write(tmp_path / "pairs.jsonl", make_pairs(4))
    with serve_metrics(("127.0.0.1", port), "score"):
        given = ["--model", model_folder, "--data", data, "--out", tmp_path / "out", "--metrics-port", port]
        status, out, errors = probing("score", *given)
    assert (status, out, errors.count("\n")) == (2, "", 1)
    assert f"--metrics-port 127.0.0.1:{port}: cannot be served there (Address already in use)" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, None),
        (9100, ("127.0.0.1", 9100)),
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::]:65535", ("::", 65535)),
    ],
)
def test_a_port_is_of_this_machine_unless_an_address_is_given(given, address):
    assert RunOptions(metrics_port=given).metrics_address == address


@pytest.mark.parametrize("given", [0, 65536, -1, "x", "host:", "9100.5", ":0", ""])
def test_what_is_no_port_is_refused(given):
    with pytest.raises(ValueError, match="metrics_port must be a port from 1 to 65535, or HOST:PORT"):
        RunOptions(metrics_port=given)


def test_a_port_is_read_from_flags_and_files(probing, tmp_path):
    given = ["score", "--model=bundled", "--data=bundled", f"--out={tmp_path / 'out'}"]
    status, _, errors = probing(*given, "--metrics-port=0.0.0.0:70000")
    assert (status, errors.count("\n")) == (2, 1)
    assert "--metrics-port must be a port from 1 to 65535, or HOST:PORT, not '0.0.0.0:70000'" in errors
    (tmp_path / "job.yaml").write_text("metrics_port: 0.0.0.0:9100\n")
    assert "metrics_port: 0.0.0.0:9100" in probing(*given, "--config", tmp_path / "job.yaml", "--print-config")[1]
    (tmp_path / "job.yaml").write_text("metrics_port: 9100\n")
    assert "metrics_port: 9100" in probing(*given, "--config", tmp_path / "job.yaml", "--print-config")[1]


def test_without_the_library_the_error_says_what_to_install(probing, tmp_path, monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else plain(name))
    out = tmp_path / "out"
    status, _, errors = probing("score", "--model=bundled", "--data=bundled", f"--out={out}", "--metrics-port=9100")
    assert (status, errors.count("\n"), out.exists()) == (2, 1, False)
    assert 'pip install "model-probing[metrics]"' in errors
    with pytest.raises(UsageError):
        RunOptions(metrics_port=9100)
