import multiprocessing
import os
from pathlib import Path

import pytest

from probing.errors import UsageError
from probing.store.files import check_output_name, new_file, new_together, remove_leftovers


def test_a_file_appears_when_the_block_ends(tmp_path):
    with new_file(tmp_path / "deep" / "x") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "x").exists()
    assert (tmp_path / "deep" / "x").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_a_failed_block_changes_nothing(tmp_path):
    (tmp_path / "x").write_text("old")

    def fail():
        with new_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("old")

    def fail():
        with new_together([tmp_path / "x"], folders=True) as (temporary,):
            (temporary / "new").write_text("new")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"]
    with new_together([tmp_path / "x"], folders=True) as (temporary,):
        (temporary / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["new"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".scores.parquet.123.partial").write_text("half")
    (tmp_path / "scores.parquet").write_text("whole")
    (tmp_path / ".download.partial").write_text("somebody's")
    (tmp_path / ".other.parquet.7.partial").write_text("somebody's")
    remove_leftovers(tmp_path, r"scores\.parquet")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".download.partial", ".other.parquet.7.partial", "scores.parquet"]


def test_a_folder_that_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".kept.123.0123abcd.partial" / "data").mkdir(parents=True)
    (tmp_path / ".kept.123.0123abcd.old.partial").write_text("old")
    remove_leftovers(tmp_path, "kept")
    assert not list(tmp_path.iterdir())


def test_what_a_running_process_writes_is_not_removed(tmp_path):
    with new_file(tmp_path / "x") as temporary:
        temporary.write_text("half")
        remove_leftovers(tmp_path, "x")
        assert temporary.exists()
    assert (tmp_path / "x").read_text() == "half"


def test_the_name_of_a_temporary_file_cannot_be_foreseen(tmp_path, monkeypatch):
    """A link that stands under it would be written through."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".x.{os.getpid()}.partial").symlink_to(tmp_path / "mine")
    with new_file(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "mine").read_text() == "mine"
    monkeypatch.setattr("probing.store.files.secrets.token_hex", lambda count: "0" * 8)
    (tmp_path / f".y.{os.getpid()}.00000000.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError), new_file(tmp_path / "y"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x").symlink_to(tmp_path / "mine")
    with new_file(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert ((tmp_path / "mine").read_text(), (tmp_path / "x").read_text()) == ("mine", "new")


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(0o640)
    with new_together([tmp_path / "x", tmp_path / "y"]) as (one, two):
        one.write_text("new")
        two.write_text("new")
    plain = tmp_path / "z"
    plain.write_text("")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in "xyz"]
    assert modes == [0o640, modes[2], modes[2]]


def rename_until(count):
    """Ends the process when this many names have been changed."""
    plain, made = os.replace, []

    def replace(*paths):
        if len(made) == count:
            os._exit(9)
        made.append(paths)
        plain(*paths)

    os.replace = replace


def write_together(folder, text, killed_at=None):
    if killed_at is not None:
        rename_until(killed_at)
    with new_together([Path(folder, "kept"), Path(folder, "dropped")]) as paths:
        for path in paths:
            path.write_text(text)


@pytest.mark.parametrize("killed_at", range(5))
def test_a_process_killed_between_two_names_leaves_no_mixture(tmp_path, killed_at):
    write_together(tmp_path, "old")
    process = multiprocessing.get_context("spawn").Process(target=write_together, args=(tmp_path, "new", killed_at))
    process.start()
    process.join()
    assert process.exitcode == (9 if killed_at < 4 else 0)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert "kept" not in found or found["kept"] == found.get("dropped")
    write_together(tmp_path, "newer")
    remove_leftovers(tmp_path, "kept|dropped")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "newer", "dropped": "newer"}


def test_an_error_between_two_names_puts_everything_back(tmp_path, monkeypatch):
    write_together(tmp_path, "old")
    plain, made = os.replace, []

    def replace(*paths):
        made.append(paths)
        if len(made) == 4:
            raise OSError(5, "Input/output error")
        plain(*paths)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="Input/output"):
        write_together(tmp_path, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept": "old", "dropped": "old"}


def write_many(folder, text):
    for _ in range(30):
        write_together(folder, text)


def test_processes_that_write_the_same_names_take_turns(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(tmp_path, str(number))) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(texts) == {"kept", "dropped"}
    assert texts["kept"] == texts["dropped"]


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a/..", "a\0b", "a\ud800b", "~nobody-of-this-name/a"])
def test_names_that_no_output_can_have(name):
    with pytest.raises(UsageError, match="--out"):
        check_output_name(Path(name))


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path):
    check_output_name(tmp_path / os.fsdecode(b"caf\xe9"))


def test_files_may_be_written_together_with_folders(tmp_path):
    with new_together([tmp_path / "kept"], folders=True, files=[tmp_path / "page"]) as (folder, page):
        (folder / "data").write_text("rows")
        page.write_text("page")
        assert not list(tmp_path.glob("[a-z]*"))
    assert (tmp_path / "kept" / "data").read_text() == "rows"
    assert (tmp_path / "page").read_text() == "page"
