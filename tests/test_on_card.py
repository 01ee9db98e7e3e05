"""scripts/on_card.py: the dry run of the whole on what a bare machine has, the wheels, and the tests for a card."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from bare_machine import bare_environment, with_needs
from card import bare, gpu_tests, reporting
from card.sizes import SMALL
from card.stages import stages
from harness import make_once

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]
SCRIPT = bare.ROOT / "scripts" / "on_card.py"
NAMES = [stage.name for stage in stages()]


def called(folder, *arguments, extra=()):
    """The script in a child with nothing but a bare machine's libraries: status, lines, stderr."""
    environment = bare_environment(folder, extra)
    # An hour, since stages may use what is left over: this machine may be busy, and slower than one with a card.
    command = [sys.executable, str(SCRIPT), "--small", "--minutes", "60", "--out", str(folder / "out"), *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    written = (folder / "out" / "card.jsonl").read_text(encoding="utf-8")
    assert written == done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in written.splitlines()], done.stderr


def of_stage(lines, stage, **facts):
    return [line for line in lines if line["stage"] == stage and facts.items() <= line.items()]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    return make_once(tmp_path_factory, "dry", lambda folder: called(folder, extra=bare.WHEELS))


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
    assert kernels == {"row_stats", "token_stats", "segment_sum", "pair_distances", "ccs_gradient", "project_out"}
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
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path / "out")],
        env=bare_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "on_card: there is no CUDA card; --small is the dry run of the whole on a CPU\n"
    assert not (tmp_path / "out").exists()


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
