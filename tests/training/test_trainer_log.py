import sys
from types import SimpleNamespace

import pytest

from probing.training.trainer_log import send_alert


def trainer_of(*trackers, first=True):
    return SimpleNamespace(args=SimpleNamespace(report_to=list(trackers)), is_world_process_zero=lambda: first)


@pytest.fixture
def sent(monkeypatch):
    found = []
    for name in ("wandb", "trackio"):
        tracker = SimpleNamespace(alert=lambda title, text, name=name: found.append((name, title, text)))
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

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(alert=fail))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    send_alert(trainer_of("wandb", "trackio"), "short", "A sentence.")
    assert "wandb did not take the alert 'short': no network" in caplog.text
