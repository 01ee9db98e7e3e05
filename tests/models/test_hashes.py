import hashlib

import pytest

from probing.models.hashes import PIECE, FilesHash


def plain(paths):
    """The definition: the hash of the file, or of a list of the files' hashes and names."""
    digests = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.name) for path in sorted(paths)]
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in digests).encode()).hexdigest()


@pytest.mark.parametrize("sizes", [[0], [1], [PIECE], [2 * PIECE + 1], [5, PIECE + 3, 0], []])
def test_the_hash_is_that_of_the_content(tmp_path, sizes):
    paths = [tmp_path / f"model-{number}.safetensors" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(bytes([number, 7, 9]) * size)
    with FilesHash(reversed(paths)) as files:
        assert files.digest() == plain(paths)


def test_what_the_hubs_cache_has_hashed_is_not_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("ab" * 32)).write_bytes(b"large")
    (tmp_path / "blobs" / ("cd" * 20)).write_bytes(b"small: its name is a hash of git's")
    large, small = tmp_path / "large.safetensors", tmp_path / "small.safetensors"
    large.symlink_to(tmp_path / "blobs" / ("ab" * 32))
    small.symlink_to(tmp_path / "blobs" / ("cd" * 20))
    with FilesHash([large]) as files:
        assert files.digest() == "ab" * 32
    with FilesHash([small]) as files:
        assert files.digest() == plain([small])


def test_reading_ends_with_the_block(tmp_path):
    """A checkpoint that cannot be loaded is not read to its end first: here 4 GB that lie on no disk."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ZeroDivisionError), FilesHash([path]) as files:
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="was not read to its end"):
        files.digest()


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with FilesHash([tmp_path / "model.safetensors"]) as files, pytest.raises(IsADirectoryError):
        files.digest()
