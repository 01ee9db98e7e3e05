import json
import warnings

import datasets
import pytest

from probing.data.bars import hide_bars
from probing.data.tables import read_table
from probing.data.writing import write_rows


@pytest.fixture(params=[True, False])
def shown(request):
    """Whether the caller wants bars; afterwards they are as they were."""
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if request.param else datasets.disable_progress_bars)()
    yield request.param
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_bars_are_hidden_inside_and_restored_also_after_an_error(shown):
    def fail():
        with hide_bars():
            assert datasets.are_progress_bars_disabled()
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert datasets.are_progress_bars_disabled() is not shown


def test_bars_that_the_environment_asks_for_stay_without_a_warning(monkeypatch, shown):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_DISABLE_PROGRESS_BARS", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hide_bars():
            assert datasets.are_progress_bars_disabled() is not shown


def test_reading_and_writing_a_dataset_draws_no_bar_of_the_library(tmp_path, capfd, shown):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [{"prompt": "a", "chosen": "b", "rejected": f"c{n}"} for n in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(str(folder))
    assert [row["rejected"] for row in table.rows] == ["c0", "c1", "c2"]
    (tmp_path / "saved").mkdir()
    write_rows(table, [0, 2], tmp_path / "saved", "datasets")
    assert len(read_table(str(tmp_path / "saved")).rows) == 2
    assert capfd.readouterr().err == ""
    assert datasets.are_progress_bars_disabled() is not shown
