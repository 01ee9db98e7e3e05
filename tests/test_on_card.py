"""scripts/on_card.py: the dry run of the whole on what a bare machine has, and the parts against numbers by hand."""

import json
import re
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path

import on_card
import pytest
from bare_machine import bare_environment, with_needs
from card import bare, facts, gpu_tests, reporting
from card.engine_points import Spent
from card.kernels import error_of, liger
from card.kinds import kind_of, summed
from card.lines import Lines
from card.run import Run, Stage, run_stages
from card.score import figures
from card.sizes import FULL, SMALL
from card.stages import stages
from card.work import body_of_a_token, work_of

from probing.data.tokenize import TokenizedPair

SCRIPT = bare.ROOT / "scripts" / "on_card.py"
NAMES = [stage.name for stage in stages()]


def called(folder, *arguments, extra=()):
    """The script in a child with nothing but a bare machine's libraries: status, lines, stderr."""
    environment = bare_environment(folder, extra)
    command = [sys.executable, str(SCRIPT), "--small", "--out", str(folder / "out"), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280)
    written = (folder / "out" / "card.jsonl").read_text(encoding="utf-8")
    assert written == done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in written.splitlines()], done.stderr


def of_stage(lines, stage, **facts):
    return [line for line in lines if line["stage"] == stage and facts.items() <= line.items()]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    return called(tmp_path_factory.mktemp("dry"), extra=bare.WHEELS)


def test_the_dry_run_ends_well_on_a_bare_machine(dry):
    status, lines, said = dry
    assert status == 0, said + json.dumps(lines[-1])
    assert not [line for line in lines if "failed" in line or "cut_short" in line]
    assert [line["stage"] for line in lines if "took_seconds" in line] == [*NAMES, "end"]
    assert lines[-1]["failures"] == []


def test_the_first_line_tells_where_it_ran(dry):
    first = dry[1][0]
    assert first["stage"] == "facts"
    for name in ("device", "python", "torch", "transformers", "numpy", "commit", "varlen_attn"):
        assert first[name], name
    assert first["missing"] == []


def test_tests_for_a_card_are_collected_and_said_not_to_run(dry):
    (line,) = of_stage(dry[1], "tests", status=0)
    assert line["passed"] == line["failing"] == 0
    assert line["skipped"] > 20
    assert list(line["not_run_because"]) == ["no CUDA card"]


def test_every_figure_is_there(dry):
    lines = dry[1]
    assert {line["figure"] for line in of_stage(lines, "trials") if "figure" in line} == {
        "causal",
        "chosen way",
        "parity",
    }
    for way in ("eager", "compiled", "eager, all likelihoods", "eager, a sequence at a time"):
        (line,) = of_stage(lines, "score", figure="time", way=way)
        assert line["scored"] == line["pairs"]
        assert line["microseconds_a_token"] > 0
        assert line["host_seconds"]["launching passes"] > 0
        (kinds,) = of_stage(lines, "score", figure="kinds of kernels", way=way)
        assert sum(kinds["shares"].values()) == pytest.approx(1, abs=1e-3)
    kernels = {line.get("kernel") for line in of_stage(lines, "kernels")} - {None}
    assert kernels == {"row_stats", "token_stats", "segment_sum", "pair_distances", "ccs_gradient"}
    assert len(of_stage(lines, "kernels", figure="error of products")) == 3
    (epoch,) = of_stage(lines, "ccs", way="eager")
    assert epoch["ms"] > 0
    (clusters,) = of_stage(lines, "clusters", figure="cluster indices")
    assert clusters["layers_run"] == SMALL.point_layers


def test_without_the_wheels_it_says_what_is_missing_and_goes_on(tmp_path):
    status, lines, _ = called(tmp_path, "--stages", "facts,model,trials,ccs")
    assert status == 1
    assert of_stage(lines, "facts")[0]["missing"] == list(bare.WHEELS.values())
    (failed,) = [line for line in of_stage(lines, "trials") if "failed" in line]
    assert "No module named 'rapidfuzz'" in failed["failed"]
    assert failed["traceback"]
    assert [line["stage"] for line in lines if "took_seconds" in line] == ["facts", "model", "trials", "ccs", "end"]
    assert "trials" in lines[-1]["failures"]


def test_without_a_card_only_the_dry_run_is_possible(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True)
    if "no CUDA card" not in done.stderr:
        pytest.skip("there is a card")
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_the_child_is_as_bare_as_it_says(tmp_path):
    program = "import torch, importlib.util as u; print([n for n in {} if u.find_spec(n) is not None])"
    names = ["datasets", "plotly", "trl", "sentence_transformers", "mypy", *bare.WHEELS.values()]
    environment = bare_environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program.format(names)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_wheels_need_nothing_else():
    there = with_needs([*bare.PRESENT, *bare.WHEELS])
    for name in bare.WHEELS:
        for need in requires(name) or []:
            wanted = bare.normal(re.match(r"[\w.-]+", need)[0])
            assert "extra ==" in need or wanted in there, f"{name} needs {wanted}"
    signatures = [need for need in requires("jsonargparse") if 'extra == "signatures"' in need]
    assert {bare.normal(re.match(r"[\w.-]+", need)[0]) for need in signatures} - {"jsonargparse"} <= there


def test_versions_of_the_wheels_are_those_of_the_constraints():
    found = bare.pinned((bare.ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert [entry.partition("==")[0] for entry in found] == list(bare.WHEELS)
    with pytest.raises(ValueError, match="no version of rapidfuzz"):
        bare.pinned("\n".join(found).replace("rapidfuzz", "other"))


def test_wheels_are_installed_into_a_folder_and_put_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(FileNotFoundError, match=r"card_wheels\.sh"):
        bare.install(tmp_path, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "tiny_wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_wheel.py", "VALUE = 7")
        info = "tiny_wheel-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    bare.install(tmp_path, tmp_path / "site")
    import tiny_wheel

    assert tiny_wheel.VALUE == 7
    assert bare.child_environment(tmp_path / "site")["PYTHONPATH"].startswith(str(tmp_path / "site"))


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
    assert run_stages(run, slow, 5) == 1
    assert time.monotonic() - began < 5
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


def test_time_left_over_goes_to_later_stages(run):
    found = []
    some = [Stage(str(n), lambda run: found.append(run.left()), 10) for n in range(3)]
    assert run_stages(run, some, 45) == 0
    assert found == pytest.approx([25, 35, 45], abs=0.5)


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
    pair = TokenizedPair("a", "ok", 3, [0] * 5, [0] * 9)
    work = work_of([pair], sizes)
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
    work = work_of([TokenizedPair("a", "ok", 3, [0] * 5, [0] * 9)], SMALL)
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
    import torch

    points = torch.randn(40, 16, generator=generator)
    assert error_of(points)["worst_of_norm"] < 1e-6  # float32 sums of products that are exact
    plain = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda self: plain(self) * (1 + 1e-4))
    assert error_of(points)["worst_of_norm"] > 1e-5


def test_liger_is_measured_where_it_is_installed(run, monkeypatch):
    assert liger(run)[0]["not_run"] == "liger_kernel is not installed"
    import torch

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


def test_every_outcome_of_the_tests_is_read(tmp_path):
    text = """
        import pytest
        pytestmark = pytest.mark.gpu
        def test_good(): pass
        def test_bad(): assert 1 == 2, "planted"
        @pytest.mark.skip(reason="why not")
        def test_skipped(): pass
        @pytest.fixture
        def broken(): raise ValueError("in a fixture")
        def test_error(broken): pass
    """
    (tmp_path / "test_some.py").write_text(re.sub(r"^ {8}", "", text, flags=re.M), encoding="utf-8")
    (tmp_path / "test_lost.py").write_text("import no_such_module, pytest\nmark = pytest.mark.gpu", encoding="utf-8")
    (tmp_path / "test_other.py").write_text("def test_of_a_cpu(): return 'pytest.mark.gpu'", encoding="utf-8")
    files = gpu_tests.files_with_gpu_tests(tmp_path)
    assert [path.name for path in files] == ["test_lost.py", "test_some.py"]
    reports = tmp_path / "reports.jsonl"
    environment = bare.child_environment(bare.ROOT / "scripts") | {reporting.PATH_VARIABLE: str(reports)}
    subprocess.run(gpu_tests.command(files), cwd=tmp_path, env=environment, capture_output=True, check=False)
    found = gpu_tests.read_reports(reports)
    counts = gpu_tests.counted(found)
    assert (counts["passed"], counts["failing"], counts["skipped"]) == (1, 3, 1)
    assert counts["not_run_because"] == {"why not": 1}
    said = {Path(report["id"]).name: report["said"] for report in found if report["outcome"] in ("failed", "error")}
    assert "planted" in said["test_some.py::test_bad"]
    assert "in a fixture" in said["test_some.py::test_error"]
    assert "no_such_module" in said["test_lost.py"]


def test_every_file_with_a_test_for_a_card_is_found():
    found = {path.relative_to(bare.ROOT).as_posix() for path in gpu_tests.files_with_gpu_tests(bare.ROOT / "tests")}
    assert {"tests/gpu", "tests/kernels/triton_forms"} <= found
    assert "tests/test_on_card.py" not in found


def test_the_commit_is_known_without_git(tmp_path, monkeypatch):
    assert facts.commit("abc") == "abc"
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    assert facts.commit(None) == "unknown"
    (tmp_path / facts.COMMIT_FILE).write_text("def\n", encoding="utf-8")
    assert facts.commit(None) == "def"
