import hashlib
import json

import pytest
import tiny
from safetensors.torch import load_file, save_file

from probing import load, score_pairs
from probing.errors import ModelInvalid
from probing.models.hashes import PIECE, FilesHash, checkpoint_source
from probing.runs.displacement.models import hash_checkpoint


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


def test_a_file_in_the_hubs_cache_is_what_stands_in_it(tmp_path):
    """Its name there is the hash of what was fetched, which may have been changed since."""
    content = b"large"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "blobs").mkdir()
    blob, link = tmp_path / "blobs" / digest, tmp_path / "model.safetensors"
    blob.write_bytes(content)
    link.symlink_to(blob)
    with FilesHash([link]) as files:
        assert files.digest() == digest
    blob.write_bytes(b"other")
    with FilesHash([link]) as files:
        assert files.digest() == hashlib.sha256(b"other").hexdigest()


def move_into_subfolder(folder):
    """The same model, its weights in two files of a subfolder that an index names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "parts").mkdir()
    names, places = sorted(tensors), {}
    for number in range(2):
        part = f"parts/{number}.safetensors"
        save_file({name: tensors[name] for name in names[number::2]}, folder / part, metadata={"format": "pt"})
        places |= dict.fromkeys(names[number::2], part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change(path):
    """Other weights of the same names and shapes."""
    tensors = {name: tensor + 0.01 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def test_weights_in_a_subfolder_are_hashed(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    whole = load(str(folder))
    move_into_subfolder(folder)
    split = load(str(folder))
    assert score_pairs(split, tiny.PAIRS).equals(score_pairs(whole, tiny.PAIRS))
    digests = [hashlib.sha256((folder / "parts" / f"{n}.safetensors").read_bytes()).hexdigest() for n in range(2)]
    lines = "".join(f"{digest}  parts/{number}.safetensors\n" for number, digest in enumerate(digests))
    assert split.source.weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    step = hash_checkpoint(folder)
    change(folder / "parts" / "1.safetensors")
    assert load(str(folder)).source.weights_sha256 != split.source.weights_sha256
    assert hash_checkpoint(folder) != step


def test_a_hash_of_weights_in_the_folder_itself_is_as_it_always_was(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    assert load(str(folder)).source.weights_sha256 == hashlib.sha256(weights).hexdigest()
    language_model = tiny.make_model()
    language_model.model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert load(str(folder)).source.weights_sha256 == plain(shards)


def test_weights_of_which_there_are_no_files_are_refused(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    whole = load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelInvalid, match="weights were loaded from were not found"):
        checkpoint_source("m", str(folder), None, whole.model, whole.tokenizer, None)


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
