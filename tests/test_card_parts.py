"""The parts of scripts/on_card.py against numbers by hand: stages and their time, work, shares, kinds, errors."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import on_card
import pytest
import torch
from card import engine_points, facts, kernels, timing
from card.ceilings import ceilings
from card.engine_points import Spent
from card.kernels import error_of, liger
from card.kinds import kind_of, summed
from card.lines import Lines
from card.run import Run, Stage, run_stages
from card.score import figures
from card.sizes import FULL, SMALL
from card.stages import stages
from card.trials import chosen_way
from card.work import body_of_a_token, work_of

from probing.engine.modes import Mode
from probing.tokens.pairs import TokenizedPair

PAIR = TokenizedPair("a", 3, [0] * 5, [0] * 9)


def of_stage(lines, stage, **facts):
    return [line for line in lines if line["stage"] == stage and facts.items() <= line.items()]


@pytest.fixture
def run(tmp_path):
    return Run("cpu", True, SMALL, Lines(tmp_path / "out" / "card.jsonl"))


def fails(run):
    raise ValueError("planted")


def test_a_stage_that_fails_is_told_and_the_next_one_runs(run, capsys):
    def half(run):
        with run.part(way="first"):
            sys.exit("a benchmark that gives up")
        run.say(way="second", ms=1.23456789)

    assert run_stages(run, [Stage("bad", fails, 9), Stage("half", half, 9)], 60) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == run.lines.written
    assert lines[0]["failed"] == "ValueError: planted"
    assert any("in fails" in line for line in lines[0]["traceback"])
    assert of_stage(lines, "half", way="first")[0]["failed"] == "SystemExit: a benchmark that gives up"
    assert of_stage(lines, "half", way="second") == [{"stage": "half", "way": "second", "ms": 1.2346}]
    assert lines[-1]["failures"] == ["bad", "half first"]


def test_a_stage_that_takes_too_long_is_cut_short_and_what_does_not_fit_is_named(run):
    began = time.monotonic()
    done = []
    slow = [
        Stage("slow", lambda run: time.sleep(20), 0.2),
        Stage("long", lambda run: done.append("long"), 1000),
        Stage("quick", lambda run: done.append("quick"), 1),
    ]
    assert run_stages(run, slow, 15) == 1
    assert time.monotonic() - began < 15
    assert done == ["quick"]
    assert run.failures == ["slow (cut short)", "long (not run)"]
    assert "allowance is 1000 s" in of_stage(run.lines.written, "long")[0]["not_run"]


def test_a_lost_card_leaves_the_rest_to_another_process(run, monkeypatch):
    done, lost = [], []
    monkeypatch.setattr(Run, "lost", lambda run: bool(lost))
    some = [
        Stage("ceilings", lambda run: run.measured.update(copy=2.0), 1),
        Stage("kernels", lambda run: lost.append(1), 1),
        Stage("score", lambda run: done.append("score"), 1),
    ]
    assert run_stages(run, some, 60) == 1
    assert (run.rest, done) == (["score"], [])
    assert "card_lost" in run.lines.written[-1]
    monkeypatch.setattr(sys, "argv", ["on_card.py", "--small", "--out", "here", "--commit", "abc"])
    known = {"measured": run.measured, "failures": ["kernels"]}
    command = on_card.continuation(on_card.options(), run.rest, 2.5, known)
    monkeypatch.setattr(sys, "argv", command[1:])
    again = on_card.options()
    assert (again.stages, again.minutes, again.small) == ("model,trials,score", 2.5, True)
    assert (again.out, again.commit, again.continued) == (Path("here"), "abc", known)


def test_time_left_over_goes_to_later_stages(run, monkeypatch):
    monkeypatch.setattr(Run, "clean", lambda run: None)
    found = []
    some = [Stage(str(n), lambda run: found.append(run.left()), 10) for n in range(3)]
    assert run_stages(run, some, 45) == 0
    assert found == pytest.approx([25, 35, 45], abs=4)


def test_all_is_well_when_nothing_fails(run):
    assert run_stages(run, [Stage("good", lambda run: run.say(value=float("nan")), 9)], 60) == 0
    assert run.lines.written[0]["value"] == "nan"
    with pytest.raises(LookupError, match="there is no model"):
        run.need("model")


def test_the_allowances_fit_into_nine_minutes():
    assert sum(stage.allowance for stage in stages()) <= 9 * 60


def test_work_by_hand():
    sizes = replace(SMALL, width=8, inner=16, kv_width=4, layers=2, vocabulary=10)
    # Of a layer: q and o 8 x 8, k and v 8 x 4, gate, up and down 8 x 16.
    assert body_of_a_token(sizes) == 2 * 2 * (2 * 64 + 2 * 32 + 3 * 128)
    work = work_of([PAIR], sizes)
    # The prompt of 3 once; 5 - 1 - 3 = 1 and 9 - 1 - 3 = 5 tokens of the responses.
    assert work.tokens == 3 + 1 + 5
    assert work.answers == 2 + 6
    assert work.body == 9 * body_of_a_token(sizes)
    seen = 3 * 3 / 2 + (1 * 3 + 1 / 2) + (5 * 3 + 25 / 2)
    assert work.attention == 4 * seen * 8 * 2
    assert work.head == 2 * 8 * 8 * 10


def test_an_8b_model_is_one():
    assert body_of_a_token(FULL) == pytest.approx(13.96e9, rel=1e-3)
    assert 2 * FULL.width * FULL.vocabulary == pytest.approx(1.05e9, rel=1e-2)


def test_shares_by_hand(run):
    run.measured["matmul_held"] = 1e12
    work = work_of([PAIR], SMALL)
    found = figures(run, work, 2.0, Spent(within=0.5), likely=False)
    assert found["microseconds_a_token"] == pytest.approx(2e6 / work.tokens)
    assert found["share_of_held"] == pytest.approx((work.body + work.attention) / 2.0 / 1e12)
    assert found["share_of_held_within_passes"] == pytest.approx((work.body + work.attention) / 0.5 / 1e12)
    likely = figures(run, work, 2.0, Spent(within=0.5), likely=True)
    assert likely["tflop_s"] == pytest.approx((work.body + work.attention + work.head) / 2e12)
    assert likely["share_of_held_within_passes"] is None
    run.measured.clear()
    assert figures(run, work, 2.0, Spent(), likely=False)["share_of_held"] is None


def test_kinds_by_hand():
    found = summed([("nvjet_tst_128x256", 60.0, 3), ("flash_fwd_kernel", 30.0, 2), ("row_stats_kernel", 10.0, 1)])
    assert found.busy == pytest.approx(100e-6)
    assert found.shares == {"products": 0.6, "attention": 0.3, "row_stats": 0.1}
    assert found.launches == 6
    assert kind_of("triton_poi_fused_mul_silu_0") == "compiled"
    assert kind_of("void at::native::vectorized_elementwise_kernel<4>") == "elementwise and norms"
    assert kind_of("nobody_knows") == "other"


def test_an_error_of_products_is_seen(monkeypatch, generator):
    points = torch.randn(40, 16, generator=generator)
    assert error_of(points)["worst_of_norm"] < 1e-6  # float32 sums of products that are exact
    plain = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: plain(self) * (1 + 1e-4))
    assert error_of(points)["worst_of_norm"] > 1e-5


def test_liger_is_measured_where_it_is_installed(run, monkeypatch):
    assert liger(run)[0]["not_run"] == "liger_kernel is not installed"

    class Loss:
        def __init__(self, reduction):
            assert reduction == "none"

        def __call__(self, weight, hidden, targets):
            return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")

    module = type(sys)("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Loss
    monkeypatch.setitem(sys.modules, "liger_kernel", type(sys)("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    (row,) = liger(run)
    assert row["tflop_s"] > 0


def test_the_commit_is_known_without_git(tmp_path, monkeypatch):
    assert facts.commit("abc") == "abc"
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    assert facts.commit(None) == "unknown"
    (tmp_path / facts.COMMIT_FILE).write_text("def\n", encoding="utf-8")
    assert facts.commit(None) == "def"


class Clock:
    """Stands for a mark in a card's queue; every mark is a hundredth of a second later than the one before."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Clock.now += 0.01
        self.at = Clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return (later.at - self.at) * 1e3


def test_seconds_of_the_card_within_passes(monkeypatch):
    """A pass ends with an exception once the last state has been read, and still has an end."""
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def ends(backbone, ids):
        raise LookupError("enough")

    monkeypatch.setattr(engine_points.stream, "run_backbone", ends)
    with engine_points.timed_parts("cuda") as spent:
        for _ in range(3):
            with pytest.raises(LookupError):
                engine_points.stream.run_backbone(None, None)
    assert spent.passes == 3
    assert spent.within == pytest.approx(0.03)
    assert spent.host["launching passes"] > 0
    assert engine_points.stream.run_backbone is ends
    assert timing.seconds(lambda: None, "cuda") == pytest.approx(0.01)


def test_the_ceilings_are_kept_for_later_stages(run):
    ceilings(run)
    assert {"matmul", "matmul_held", "copy", "layer"} <= run.measured.keys()
    assert run.share(run.measured["copy"] / 2, "copy") == pytest.approx(0.5)
    assert run.share(1.0, "head") is None  # there is no such product on a CPU
    (whole,) = of_stage(run.lines.written, "", figure="products of a layer")
    assert whole["tflop_s"] == pytest.approx(run.measured["layer"] / 1e12, rel=1e-4)


def test_a_slower_way_that_is_chosen_counts_as_a_failure(run, monkeypatch):
    run.kept["stack"] = None
    for sharing, failures in ((True, 0), (False, 1)):
        monkeypatch.setattr(engine_points, "chosen", lambda stack, sharing=sharing: (Mode("paths", sharing, True), []))
        run.failures.clear()
        chosen_way(run)
        assert len(run.failures) == failures


def test_a_kernel_that_is_wrong_counts_as_a_failure(run, monkeypatch):
    row = {"kernel": "row_stats", "way": "triton", "not_run": "3 of 6 elements are off, by up to 1e-3"}
    monkeypatch.setattr(kernels, "bench_row_stats", lambda *arguments: [row])
    for name in ("bench_token_stats", "distances", "gradient", "liger", "product_errors"):
        monkeypatch.setattr(kernels, name, lambda *arguments: [])
    for name in ("bench_segment_sum", "bench_project_out"):
        monkeypatch.setattr(kernels, name, lambda *arguments: [])
    kernels.kernels(run)
    assert run.failures == ["kernels: row_stats, triton: 3 of 6 elements are off, by up to 1e-3"]
