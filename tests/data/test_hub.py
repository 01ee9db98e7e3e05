"""Names that are on no disk: the hub is asked once whether it answers at all, and its retries are never waited for."""

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import constants

from probing import load
from probing.data import hub
from probing.data.bundled import BUNDLED_MODELS
from probing.data.hub import find_hub_problem
from probing.data.tables import read_table
from probing.errors import DataInvalid, ModelInvalid
from probing.models.checkpoints import check_checkpoint


class Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(status):
    """A server that answers everything so."""
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.status = status
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def address(monkeypatch):
    """Have the hub at an address, whatever the environment says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def move(where):
        monkeypatch.setattr(constants, "ENDPOINT", where)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return move


def find_closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("status", [200, 404, 401, 503])
def test_a_hub_that_answers_is_left_to_its_library(address, status):
    with served(status) as where:
        address(where)
        assert find_hub_problem() is None


def test_a_hub_that_is_not_there_is_known_at_once(address):
    address(f"http://127.0.0.1:{find_closed_port()}")
    began = time.monotonic()
    assert "the hub cannot be reached" in find_hub_problem()
    with pytest.raises(
        ModelInvalid, match=r"^no/such: no such folder, not in the cache of the hub, and the hub cannot"
    ):
        load("no/such")
    with pytest.raises(DataInvalid, match=r"^no/such: no such file or folder, .* and the hub cannot be reached"):
        read_table("no/such")
    # The library would have slept 23 seconds between its tries of one file.
    assert time.monotonic() - began < 10


def test_a_hub_that_takes_calls_and_says_nothing_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address(f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert "timed out" in find_hub_problem()


def test_the_hub_is_not_asked_where_the_environment_says_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_ask", lambda _: pytest.fail("it was asked"))
    assert find_hub_problem() == "the hub is not asked, since HF_HUB_OFFLINE is set"
    with pytest.raises(ModelInvalid, match="since HF_HUB_OFFLINE is set"):
        load("no/such")


def test_what_was_fetched_before_is_loaded_without_the_hub(tmp_path):
    """In a process of its own, since the place of the cache is read when the library is imported."""
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(BUNDLED_MODELS["bundled"](), folder / "snapshots" / ("0" * 40))
    code = "import probing; model = probing.load('some/model'); print(model.source.weights_sha256)"
    where = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{find_closed_port()}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | where, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == load("bundled").source.weights_sha256
    assert "some/model: taken from the cache, as it was fetched last, since the hub cannot be asked" in done.stderr
    assert "Retrying" not in done.stderr


def test_an_adapter_is_not_taken_for_its_base_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(BUNDLED_MODELS["bundled"](), folder / "snapshots" / ("0" * 40))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    (adapter / "adapter_model.safetensors").touch()
    assert check_checkpoint("some/model") == folder / "snapshots" / ("0" * 40)
    assert check_checkpoint(str(adapter)) is None
