"""Memory of a scoring besides its model: it does not grow by what a pair takes as an object."""

import json
import tracemalloc
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from probing.runs.common.parts import Dataset, Shards, keep_shard, note_making
from probing.runs.score import ScoreConfig, stages
from probing.runs.score.data import read_data
from probing.store.manifest import claim

NAMES = ("ches", "ches_normalized", "last_state_similarity", "edit_similarity")
TOKENS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")


def make_shard(rows):
    """A shard of made-up scores of some pairs."""
    columns = {"id": rows.ids, "status": ["ok"] * len(rows), **{name: [len(rows)] * len(rows) for name in TOKENS}}
    columns |= {name: np.arange(len(rows)) / 7 for name in NAMES}
    return note_making(pa.table(columns, stages.schema_of([*columns])), [], 1, 0.0, {"tokens": 1, "reason": "x"})


def peak_of_scoring(folder, count):
    """Peak in bytes of all that is done of so many pairs but running them."""
    rows = ({"prompt": f"p{n} " * 30, "chosen": f"c{n} " * 30, "rejected": "r"} for n in range(count))
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tracemalloc.start()
    with ExitStack() as held:
        config = ScoreConfig(model="bundled", data=str(folder / "p.jsonl"), out=folder / f"out-{count}")
        table, pairs = read_data(config, held)
        run = held.enter_context(claim(config.out, "score"))
        run.begin({}, {})
        data = Dataset(table, pairs, config.shard_pairs)
        plan = Shards(run.shards, data, make_shard(data.pick(data.blocks[0])).rows.schema)
        maker = lambda missing, report: (make_shard(data.pick(data.blocks[number])) for number in missing)  # noqa: E731
        shards = plan.complete(maker, keep_shard)
        stages.finish_scores(run, config, data, shards, {}, tokens=lambda folder: [], began=0.0)
        report = stages.read_report(run, pairs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.tables["Pairs by status"]["pairs"].tolist() == [count]
    return peak


def test_memory_does_not_grow_with_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("probing.data.aside.RUN_BYTES", 2**18)
    # The libraries that draw are imported first.
    peak_of_scoring(tmp_path, 100)
    few, many = (peak_of_scoring(tmp_path, count) for count in (1000, 8000))
    # A pair as a Python object takes a kilobyte with its texts; a line of the file 250 bytes.
    assert (many - few) / 7000 < 250
