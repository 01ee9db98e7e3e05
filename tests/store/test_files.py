import pytest

from probing.store.files import new_file, new_folder, remove_leftovers


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
        with new_folder(tmp_path / "x") as temporary:
            (temporary / "new").write_text("new")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"]
    with new_folder(tmp_path / "x") as temporary:
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
