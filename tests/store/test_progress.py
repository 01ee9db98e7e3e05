"""The note of a run's progress: when it is written, when it goes, and what is believed of it."""

import contextlib
import json
import os
import threading
import time

import pytest

from probing.errors import FolderBusy, StoreCorrupt
from probing.report.progress import Progress
from probing.store import manifest, progress
from probing.store.manifest import claim, is_claimed
from probing.store.progress import NOTE, Work, Worker, keep_note, read_note


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that has a record."""
    (tmp_path / "run.json").write_text("{}")
    return tmp_path


@pytest.fixture
def at_once(monkeypatch):
    """Every change is noted."""
    monkeypatch.setattr(progress, "NOTED_SECONDS", 0.0)
    monkeypatch.setattr(progress, "NOTED_TIMES", 0)


def test_a_note_holds_what_was_told(folder, at_once):
    with keep_note(folder, "run.json"):
        with Progress(20, done=4, unit="pairs", doing="scoring") as bar:
            bar.count({"ok": 4}, earlier=True)
            bar.advance(6, 300)
            bar.count({"ok": 5, "truncated": 1})
            bar.hear({1: Worker(2.0, 30, 1.5, {"ok": 2}, 7, "other")})
            note = read_note(folder)
        with Progress(3, doing="judging", unit="places"):
            assert [work.doing for _, work in read_note(folder).parts] == ["scoring", "judging"]
    assert (note.pid, note.ended) == (os.getpid(), None)
    assert 0 <= time.time() - note.time < 60
    ((within, work),) = note.parts
    assert (within, work) == ("", bar.work)
    assert (work.rows, work.total, work.tokens, work.statuses) == (12, 20, 330, {"ok": 11, "truncated": 1})
    assert work.failures == {"truncated": 1}
    assert not (folder / NOTE).exists()


def test_rates_are_of_this_run_and_not_of_an_earlier_one():
    workers = {0: Worker(rows=10, tokens=100, seconds=5.0), 1: Worker(rows=20, tokens=300, seconds=10.0)}
    work = Work("scoring", "pairs", 130, earlier=70, workers=workers)
    assert (work.rows, work.rows_per_second, work.tokens_per_second, work.seconds_left) == (100, 3.0, 40.0, 10.0)
    begun = Work("scoring", "pairs", 130, earlier=70, workers={0: Worker()})
    assert (begun.rows_per_second, begun.tokens_per_second, begun.seconds_left) == (None, None, None)
    assert Work("scoring", "pairs", 10, workers={0: Worker(rows=10.00001)}).rows == 10


def test_nothing_is_written_before_there_is_a_record(tmp_path, at_once):
    with keep_note(tmp_path, "run.json"), Progress(3) as bar:
        bar.advance(1, 1)
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_its_note_with_the_reason(folder):
    with contextlib.suppress(KeyboardInterrupt), keep_note(folder, "run.json"), Progress(3) as bar:
        bar.advance(1, 1)
        raise KeyboardInterrupt
    note = read_note(folder)
    assert (note.ended, note.parts[0][1].rows) == ("KeyboardInterrupt", 1)
    with Progress(3) as bar:
        bar.advance(2, 1)
    assert read_note(folder) == note


def test_notes_are_seconds_apart_and_the_slower_the_disk_the_further(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    written, plain = [], progress.new_file

    def write_slowly(path, **options):
        written.append(now[0])
        now[0] += 0.5
        return plain(path, **options)

    monkeypatch.setattr(progress, "new_file", write_slowly)
    with keep_note(folder, "run.json"):
        work = Work("scoring", "pairs", 1000, workers={0: Worker()})
        for _ in range(200):
            progress.tell(work)
            now[0] += 1
    # The first at once, and then after a second and a hundred times the half second that it took.
    assert written[0] == 100
    assert 51 <= written[1] - written[0] <= 53


def test_a_full_disk_ends_no_run_and_is_told_once(folder, at_once, monkeypatch, caplog):
    def fail(path, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "new_file", fail)
    with keep_note(folder, "run.json"), Progress(3) as bar:
        bar.advance(2, 1)
        bar.advance(1, 1)
    (told,) = caplog.messages
    assert told.endswith("how far the run is cannot be noted (No space left on device)")


def test_states_within_a_run_are_noted_in_both_folders(folder, at_once):
    inner = folder / "states"
    inner.mkdir()
    (inner / "manifest.json").write_text("{}")
    with keep_note(folder, "run.json"):
        with keep_note(inner, "manifest.json"), Progress(3, doing="capturing") as bar:
            bar.advance(1, 1)
            assert [(within, work.rows) for within, work in read_note(folder).parts] == [("states", 1)]
            assert [(within, work.rows) for within, work in read_note(inner).parts] == [("", 1)]
        assert not (inner / NOTE).exists()
        with Progress(5, doing="judging"):
            assert [within for within, _ in read_note(folder).parts] == ["states", ""]


DAMAGE = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "a text for a number": ("time", "now"),
    "not a number": ("time", float("nan")),
    "no parts": ("parts", None),
    "a part of something else": ("parts", [{"doing": "scoring"}]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_note_is_not_believed(folder, at_once, damage):
    with contextlib.suppress(KeyboardInterrupt), keep_note(folder, "run.json"), Progress(3):
        raise KeyboardInterrupt
    content, wrong = json.loads((folder / NOTE).read_text()), DAMAGE[damage]
    (folder / NOTE).write_text(wrong if isinstance(wrong, str) else json.dumps({**content, wrong[0]: wrong[1]}))
    with pytest.raises(StoreCorrupt, match=r"progress\.json: damaged"):
        read_note(folder)


def test_a_note_of_a_later_version_may_have_more(folder):
    with contextlib.suppress(KeyboardInterrupt), keep_note(folder, "run.json"), Progress(3):
        raise KeyboardInterrupt
    content = json.loads((folder / NOTE).read_text())
    content |= {"mood": "good"}
    content["parts"][0]["workers"][0]["watts"] = content["parts"][0]["colour"] = 3
    (folder / NOTE).write_text(json.dumps(content))
    assert read_note(folder).parts[0][1].total == 3


def test_a_link_is_no_note(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "note"
    elsewhere.write_text("{}")
    (folder / NOTE).symlink_to(elsewhere)
    with pytest.raises(StoreCorrupt, match="is a link"):
        read_note(folder)


def test_a_run_that_made_nothing_leaves_no_folder(tmp_path, at_once):
    with contextlib.suppress(KeyboardInterrupt), claim(tmp_path / "out", "score") as run:
        run.begin({}, {})
        with Progress(3) as bar:
            bar.advance(1, 1)
            assert (tmp_path / "out" / NOTE).exists()
            raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()


def test_looking_whether_a_folder_is_claimed_keeps_nobody_from_it(tmp_path):
    out, stop, looked = tmp_path / "out", threading.Event(), []
    out.mkdir()

    def look():
        while not stop.is_set():
            looked.append(is_claimed(out))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(200):
            with claim(out, "score"):
                time.sleep(0.0005)
            time.sleep(0.0005)
    finally:
        stop.set()
        watcher.join()
    assert True in looked
    assert False in looked


def test_a_claimed_folder_is_still_refused_to_others(tmp_path):
    with claim(tmp_path / "out", "score"):
        assert is_claimed(tmp_path / "out")
        began = time.monotonic()
        with pytest.raises(FolderBusy, match="another process is writing there"), claim(tmp_path / "out", "score"):
            pass
        assert time.monotonic() - began >= manifest.LOOKED_SECONDS
    assert not is_claimed(tmp_path / "out")
