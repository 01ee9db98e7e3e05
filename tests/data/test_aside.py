"""What is put aside on the disk comes back as it was: texts in their order, items in that of their keys."""

import random
import tempfile

import pytest

from probing.data import aside
from probing.data.aside import find_repeated, keep_aside, sort_aside


def test_texts_come_back_in_their_order():
    texts = [f"{n} \u00e4\n\"'\ud800\u2028" for n in range(3000)]
    kept = keep_aside(iter(texts))
    assert (len(kept), list(kept), kept[-1], kept[1500]) == (3000, texts, texts[-1], texts[1500])
    assert list(keep_aside([])) == []


@pytest.mark.parametrize("most_runs", [2, 64])
@pytest.mark.parametrize("run_bytes", [1, 2000, 2**23])
def test_items_are_sorted_as_sorted_does_and_equal_keys_stay_in_order(monkeypatch, run_bytes, most_runs):
    monkeypatch.setattr(aside, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(aside, "MOST_RUNS", most_runs)
    draw = random.Random(0)
    items = [(draw.randbytes(draw.randrange(3)), str(n).encode() * draw.randrange(3)) for n in range(200)]
    assert list(sort_aside(iter(items))) == sorted(items, key=lambda item: item[0])
    assert list(sort_aside([])) == []


def test_files_end_with_what_they_hold(monkeypatch):
    monkeypatch.setattr(aside, "RUN_BYTES", 1)
    plain, opened = tempfile.TemporaryFile, []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: opened.append(plain()) or opened[-1])
    kept, items = keep_aside(["a"]), sort_aside([(b"b", b""), (b"a", b"")])
    assert next(items) == (b"a", b"")
    items.close()
    del kept
    assert len(opened) == 3
    assert all(file.closed for file in opened)


def test_a_repeated_value_is_named_with_the_earlier_one():
    assert find_repeated(["a", "b", "c"]) is None
    assert find_repeated([]) is None
    assert find_repeated(["a", "b", "c", "b", "a"]) == (1, 3)


class Colliding(str):
    """A text whose hash is that of many others."""

    def __hash__(self):
        return len(self) % 2


def test_values_with_one_hash_are_compared_themselves():
    values = [Colliding(f"{n}") for n in range(50)]
    assert find_repeated(values) is None
    assert find_repeated([*values, Colliding("7")]) == (7, 50)
