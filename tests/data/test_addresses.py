"""Data at addresses: fetched whole, named as they were written, and put there; what cannot be reached is said."""

import http.server
import importlib.util
import json
import socket
import threading
from contextlib import ExitStack
from functools import partial

import fsspec
import pandas as pd
import pytest

from probing.data.addresses import Address, is_address
from probing.data.tables import read_table
from probing.errors import DataInvalid, UsageError

ROWS = [{"prompt": f"p{number}", "chosen": "c", "rejected": "r"} for number in range(4)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/pairs.jsonl": TEXT.encode(), "/bucket/more/b.jsonl": TEXT.encode()})
    system.pipe({"/bucket/more/a.jsonl": TEXT.encode(), "/bucket/more/_SUCCESS": b""})
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def web(tmp_path):
    """A web server of a folder: its address."""
    (tmp_path / "pairs.jsonl").write_text(TEXT, encoding="utf-8")
    pd.DataFrame(ROWS).to_parquet(tmp_path / "pairs.parquet", index=False)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_an_address_is():
    assert all(map(is_address, ("s3://b/x.jsonl", "hf://datasets/u/r/x.parquet", "simplecache::s3://b/x", "file:///x")))
    assert not any(map(is_address, ("/a/b", "user/name", "C:/x", "a:b//c", "-", "harm=pairs.jsonl", "://x")))
    assert str(Address("s3://bucket/a/b.jsonl.gz")) == "s3://bucket/a/b.jsonl.gz"
    assert Address("s3://bucket/a/b.jsonl.gz").suffixes == [".jsonl", ".gz"]


@pytest.mark.parametrize("lazy", [True, False])
def test_a_file_is_read_and_named_by_its_address(memory, tmp_path, lazy):
    (tmp_path / "pairs.jsonl").write_text(TEXT, encoding="utf-8")
    with ExitStack() as held:
        table = read_table("memory://bucket/pairs.jsonl", held=held if lazy else None)
        assert list(table.rows) == ROWS
        assert table.where(1) == "memory://bucket/pairs.jsonl, line 2"
        # The same bytes are the same data, wherever they lie.
        assert table.sha256 == read_table(str(tmp_path / "pairs.jsonl")).sha256
        assert table.original[3] == TEXT.splitlines()[3].encode()


@pytest.mark.parametrize("named", ["memory://bucket/more", "memory://bucket/more/", "memory://bucket/more/*.jsonl"])
def test_folders_and_patterns(memory, named):
    table = read_table(named)
    assert list(table.rows) == ROWS * 2
    assert table.where(4) == "memory://bucket/more/b.jsonl, line 1"


def test_a_web_server(web, tmp_path):
    assert list(read_table(f"{web}/pairs.jsonl?download=true").rows) == ROWS
    assert list(read_table(f"{web}/pairs.parquet").rows) == ROWS
    assert list(read_table((tmp_path / "pairs.jsonl").as_uri()).rows) == ROWS
    with pytest.raises(DataInvalid, match=r"other\.jsonl: cannot be read \(the server answers 404"):
        read_table(f"{web}/other.jsonl")


def test_what_cannot_be_reached(memory):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/pairs.jsonl"
        with pytest.raises(DataInvalid, match=r"pairs\.jsonl: cannot be read \(.*refused"):
            read_table(address)
    with pytest.raises(DataInvalid, match=r"memory://bucket/other\.jsonl: no such file"):
        read_table("memory://bucket/other.jsonl")
    with pytest.raises(DataInvalid, match="no file matches this pattern"):
        read_table("memory://bucket/*.parquet")
    with pytest.raises(UsageError, match=r"nowhere://x\.jsonl: cannot be reached .*nowhere"):
        read_table("nowhere://x.jsonl")
    memory.pipe({"/bucket/more/README.md": b"card"})
    with pytest.raises(
        DataInvalid, match=r"other files than shards of one dataset; .*memory://bucket/more/\*\.parquet"
    ):
        read_table("memory://bucket/more")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named():
    with pytest.raises(UsageError, match="s3:// needs a package that is not installed; pip install s3fs"):
        read_table("s3://bucket/pairs.jsonl")
