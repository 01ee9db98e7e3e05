"""Data at an address, as ``s3://bucket/pairs.jsonl``: fetched before it is read, and put there when it is whole."""

import re
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from probing.data.shards import PATTERN, choose_shards
from probing.errors import DataInvalid, UsageError

DRIVERS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
}
"""The package that reaches a kind of address, where this package does not bring it."""
SECONDS = 60.0
"""How long a web server may be silent."""


class Address(PurePosixPath):
    """The name of data at an address, which is shown as it was written."""

    def __str__(self) -> str:
        # A path has one slash where an address has two.
        return re.sub(r"^([^/]+):/(?=[^/])", r"\1://", super().__str__())


def is_address(name: str) -> bool:
    """Whether a name begins with the kind of an address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", name) is not None


def is_local(name: str) -> bool:
    """Whether an address is of a file on this machine."""
    return name.startswith("file://")


def local_path(name: str) -> str:
    """The path that a ``file://`` address is of."""
    return urllib.request.url2pathname(urllib.parse.urlsplit(name).path)


def fetch(source: str, folder: Path) -> list[tuple[Address, Path]]:
    """Copy what lies at an address into a folder: one file, the files that a pattern matches, or those of a folder.

    Returns:
        The address of each file, in order, and where it lies now.

    Raises:
        DataInvalid: there is nothing, or it cannot be reached.
        UsageError: no such kind of address, or the package that reaches it is missing.
    """
    if source.startswith(("http://", "https://")):
        return [(Address(source.partition("?")[0]), _download(source, folder))]
    system, path = _connect(source)
    kind = source.partition("://")[0]
    try:
        found = _list_files(system, path, source)
        local = [folder / f"{number:06d}-{PurePosixPath(name).name}" for number, name in enumerate(found)]
        for name, target in zip(found, local, strict=True):
            system.get_file(name, str(target))
    except FileNotFoundError as error:
        raise DataInvalid(f"{source}: no such file") from error
    except _failures() as error:
        raise DataInvalid(f"{source}: cannot be read ({_reason(error)})") from error
    return [(Address(f"{kind}://{name.lstrip('/')}"), target) for name, target in zip(found, local, strict=True)]


def check_free_address(target: str, overwrite: bool) -> None:
    """Raise unless data can be put at an address.

    Raises:
        UsageError: it cannot be reached or written to, or something is there that may not be replaced.
    """
    if target.startswith(("http://", "https://")):
        raise UsageError(f"{target}: nothing can be written to a web server; choose another --out")
    system, path = _connect(target)
    try:
        taken = system.exists(path)
    except _failures() as error:
        raise UsageError(f"{target}: cannot be reached ({_reason(error)}); choose another --out") from error
    if taken and not overwrite:
        raise UsageError(f"{target}: exists already; choose another --out, or replace it with --overwrite")


def put(files: Sequence[tuple[Path, str]]) -> None:
    """Copy files to addresses, in order.

    Raises:
        UsageError: one cannot be written; names it.
    """
    for file, target in files:
        system, path = _connect(target)
        try:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), path)
        except _failures() as error:
            raise UsageError(f"{target}: cannot be written ({_reason(error)})") from error


def remove(target: str) -> None:
    """Remove what is at an address, if there is anything."""
    system, path = _connect(target)
    try:
        if system.exists(path):
            system.rm(path, recursive=True)
    except _failures() as error:
        raise UsageError(f"{target}: cannot be replaced ({_reason(error)})") from error


def _connect(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    kind = address.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = DRIVERS.get(kind)
        advice = f"pip install {package}" if package else str(error)
        raise UsageError(f"{address}: {kind}:// needs a package that is not installed; {advice}") from error
    except ValueError as error:
        raise UsageError(f"{address}: cannot be reached ({_reason(error)})") from error
    except _failures() as error:
        raise DataInvalid(f"{address}: cannot be reached ({_reason(error)})") from error
    return system, str(path)


def _list_files(system: Any, path: str, source: str) -> list[str]:
    if PATTERN.search(path):
        found = sorted(name for name in system.glob(path) if system.isfile(name))
        if not found:
            raise DataInvalid(f"{source}: no file matches this pattern")
        return found
    if not system.isdir(path):
        return [path]
    names = {PurePosixPath(name).name: name for name in system.find(path, maxdepth=1)}
    chosen = choose_shards(list(names), source)
    if chosen is None:
        raise DataInvalid(
            f"{source}: holds other files than shards of one dataset; name those to read by a pattern, such as "
            f"{source.rstrip('/')}/*.parquet"
        )
    return [names[name] for name in chosen]


def _download(source: str, folder: Path) -> Path:
    target = folder / (PurePosixPath(urllib.parse.urlsplit(source).path).name or "data")
    try:
        with urllib.request.urlopen(source, timeout=SECONDS) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except urllib.error.HTTPError as error:
        raise DataInvalid(f"{source}: cannot be read (the server answers {error.code} {error.reason})") from error
    except urllib.error.URLError as error:
        raise DataInvalid(f"{source}: cannot be read ({error.reason})") from error
    except OSError as error:
        raise DataInvalid(f"{source}: cannot be read ({_reason(error)})") from error
    return target


def _failures() -> tuple[type[BaseException], ...]:
    """What the packages raise where an address cannot be reached; those of clouds have errors of their own."""
    own = (("botocore.exceptions", "BotoCoreError"), ("gcsfs.retry", "HttpError"), ("aiohttp", "ClientError"))
    known = (getattr(sys.modules.get(module), name, None) for module, name in own)
    return (OSError, ValueError, RuntimeError, *(kind for kind in known if kind is not None))


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
