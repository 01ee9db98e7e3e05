import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from probing.training.trainer_log import log_table, send_alert


def trainer_of(*trackers, first=True):
    return SimpleNamespace(
        args=SimpleNamespace(report_to=list(trackers)),
        state=SimpleNamespace(global_step=7),
        is_world_process_zero=lambda: first,
    )


@pytest.fixture
def sent(monkeypatch):
    found = []
    for name in ("wandb", "trackio"):
        tracker = SimpleNamespace(
            __name__=name,
            alert=lambda title, text, name=name: found.append((name, title, text)),
            log=lambda values, name=name: found.append((name, values)),
            Table=lambda dataframe: dataframe,
        )
        monkeypatch.setitem(sys.modules, name, tracker)
    return found


def test_alerts_go_to_the_trackers_that_report(sent):
    send_alert(trainer_of("wandb", "tensorboard"), "short", "A sentence.")
    send_alert(trainer_of("trackio"), "short", "A sentence.")
    send_alert(trainer_of("tensorboard"), "short", "A sentence.")
    send_alert(trainer_of("trackio", "wandb", first=False), "short", "A sentence.")
    assert sent == [("wandb", "short", "A sentence."), ("trackio", "short", "A sentence.")]


def test_an_alert_that_fails_is_logged(monkeypatch, caplog):
    def fail(**_):
        raise ConnectionError("no network")

    tracker = SimpleNamespace(__name__="wandb", alert=fail, Table=fail, log=fail)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    send_alert(trainer_of("wandb", "trackio"), "short", "A sentence.")
    log_table(trainer_of("wandb", "trackio"), "tokens", pd.DataFrame())
    assert "wandb did not take the table 'tokens': no network" in caplog.text
    assert "wandb did not take the alert 'short': no network" in caplog.text


def test_tables_go_to_the_trackers_that_take_them(sent):
    table = pd.DataFrame({"token": ["a"]})
    log_table(trainer_of("trackio", "tensorboard"), "tokens", table)
    log_table(trainer_of("wandb", first=False), "tokens", table)
    assert sent == [("trackio", {"train/probing/tokens": table, "train/global_step": 7})]
