import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from probing.errors import UsageError
from probing.runs.common.about import BEGAN, describe_now, describe_run, today, write_command
from probing.runs.common.options import PlotOptions
from probing.runs.common.record import begin_run
from probing.runs.common.versions import versions
from probing.runs.score.config import ScoreConfig
from probing.store.manifest import RunFolder


def make_config(**changed):
    return ScoreConfig(**({"data": "my pairs.jsonl", "model": "m", "out": Path("out")} | changed))


def begin(folder, config):
    begin_run(folder, config, {}, [])
    return describe_run(folder, config, model=config.model)


def test_the_day_is_that_of_the_environment_where_it_is_set(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(86_400 * 365))
    assert today() == "1971-01-01"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "tomorrow")
    assert today() > "2026-01-01"


def test_a_run_that_is_resumed_on_another_day_began_when_it_began(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, "score")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = begin(folder, make_config())
    assert first.date == folder.facts()[BEGAN] == "1970-01-01"
    assert first.versions == versions()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000")
    assert begin(folder, make_config()) == first


def test_the_record_of_an_earlier_version_has_no_day(tmp_path):
    folder = RunFolder(tmp_path, "score")
    begin(folder, make_config())
    facts = folder.facts()
    del facts[BEGAN]
    folder.write({name: value for name, value in facts.items() if name != "record_sha256"})
    assert begin(folder, make_config()).date == ""


def test_a_command_is_written_as_it_is_typed():
    assert write_command("score", make_config()) == "probing score --data 'my pairs.jsonl' --model m"
    config = make_config(data=["a", "b"], eos=False, write_ref_logps=False, compile=True, max_length=5)
    typed = "probing refusal trace --data a --data b --no-eos --compile --max-length 5 --model m"
    assert sorted(write_command("refusal trace", config).split()) == sorted(typed.split())
    assert write_command("refusal trace", config).startswith("probing refusal trace --")
    # The page lies in it.
    assert write_command("score", make_config(out=Path("other"))) == write_command("score", make_config())


def test_a_command_without_a_record_is_told_as_it_is_run(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    about = describe_now("score", make_config(), model="m")
    assert (about.date, about.sources, about.versions) == ("1970-01-01", {"model": "m"}, versions())


@dataclass(frozen=True, kw_only=True)
class Drawn(PlotOptions):
    pass


def test_interactive_plots_need_plotly_and_are_the_same_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert not Drawn().interactive
    with pytest.raises(UsageError, match=r"pip install 'model-probing\[report\]'"):
        Drawn(interactive=True)
    with pytest.raises(UsageError):
        replace(Drawn(), interactive=True)
    assert "interactive" not in Drawn().identity()
