"""The files under deploy/, as far as they can be run without a cluster: the commands in them do what they say.

Slurm and Kubernetes are stood in for by the variables that they set; everything after these is real.
"""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = ("array.sbatch", "merge.sbatch", "submit.sh")
GIVEN = ("--model", "bundled", "--data", "bundled", "--limit", "3", "--quiet")
# Says what it was asked for, and runs it at once: every member of an array, in the environment that Slurm gives it.
SBATCH = """#!/bin/bash
echo "sbatch $*" >> "$SAID"
members=once
while [ "${1#--}" != "$1" ]; do
    case $1 in --array=*) members=$(seq "${1#--array=0-}"); members="0 $members";; esac
    shift
done
for member in $members; do
    [ "$member" = once ] || export SLURM_ARRAY_TASK_ID=$member
    SLURM_CPUS_PER_TASK=1 bash "$@" > /dev/null || exit 1
done
echo "4711;here"
"""


def write_program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def machine(tmp_path):
    """An environment in which "probing" is this package, and "sbatch" runs what it is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs / "probing", f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m probing "$@"\n')
    write_program(programs / "sbatch", SBATCH)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "SAID": str(tmp_path / "said")}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1"}


def run_shell(machine, *command, **variables):
    done = subprocess.run(command, env={**machine, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_ones_of_bash(name):
    subprocess.run(["bash", "-n", DEPLOY / "slurm" / name], check=True)


@pytest.mark.slow
def test_slurm_makes_every_shard_and_then_the_whole(machine, tmp_path):
    """Two members of an array and a job that joins their shards, as submit.sh asks for."""
    out = tmp_path / "scores"
    script = ["bash", str(DEPLOY / "slurm" / "submit.sh"), "2", str(out), "score", *GIVEN]
    run_shell(machine, *script)
    shards = sorted(path.name for path in (out / "shards").iterdir())
    assert shards == ["0", "1"]
    assert (out / "whole" / "scores.parquet").exists()
    array, merge = (tmp_path / "said").read_text().splitlines()
    assert array.startswith(f"sbatch --parsable --array=0-1 {DEPLOY}/slurm/array.sbatch 2 {out} score --model bundled")
    assert merge == (f"sbatch --dependency=afterok:4711 --kill-on-invalid-dep=yes {DEPLOY}/slurm/merge.sbatch 2 {out}")


def test_a_call_without_a_command_is_refused(machine):
    done = subprocess.run(
        ["bash", DEPLOY / "slurm" / "submit.sh", "7"], env=machine, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "usage: bash submit.sh SHARDS OUT COMMAND [options]\n")


def read_job(name):
    return yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())


def container_of(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def variables_of(container):
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_the_indexed_job_has_a_pod_a_shard():
    job, container = read_job("array"), container_of(read_job("array"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["completions"] == spec["parallelism"] == int(variables_of(container)["NUM_SHARDS"])
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which a podFailurePolicy needs
    assert spec["backoffLimitPerIndex"] >= 1
    (_, mistake) = spec["podFailurePolicy"]["rules"]
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailIndex", [2])
    assert mistake["onExitCodes"]["containerName"] == container["name"]
    assert '--shard-index "$JOB_COMPLETION_INDEX" --num-shards "$NUM_SHARDS"' in container["command"][-1]


def test_both_jobs_see_the_same_folder_and_image():
    array, merge = (container_of(read_job(name)) for name in ("array", "merge"))
    assert variables_of(array)["OUT"] == variables_of(merge)["OUT"]
    assert array["image"] == merge["image"]
    assert array["volumeMounts"] == merge["volumeMounts"]
    assert variables_of(array)["OUT"].startswith(array["volumeMounts"][0]["mountPath"] + "/")
    assert (
        read_job("array")["spec"]["template"]["spec"]["volumes"]
        == (read_job("merge")["spec"]["template"]["spec"]["volumes"])
    )


@pytest.mark.slow
def test_the_commands_of_the_pods_run(machine, tmp_path):
    out = str(tmp_path / "scores")
    array, merge = (container_of(read_job(name))["command"] for name in ("array", "merge"))
    shell, flag, command = array
    for number in ("0", "1"):
        variables = {"JOB_COMPLETION_INDEX": number, "NUM_SHARDS": "2", "OUT": out}
        run_shell(machine, shell, flag, f"{command} --limit 3 --quiet", **variables)
    run_shell(machine, *merge, OUT=out)
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["shards", "whole"]
    assert (tmp_path / "scores" / "whole" / "scores.parquet").exists()


def read_instructions():
    """Instructions of the Dockerfile with what follows them, lines that go on as one."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_image_is_made_of_files_that_are_there():
    instructions = read_instructions()
    known = "ARG FROM ENV RUN WORKDIR COPY USER ENTRYPOINT CMD".split()
    assert [name for name, _ in instructions if name not in known] == []
    copied = [part for name, rest in instructions if name == "COPY" for part in rest.split()[:-1]]
    assert all((ROOT / part).exists() for part in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "kernels", "probing"} <= set(copied)
    assert ("ARG", "VARIANT=cpu") in instructions
    assert ("ENTRYPOINT", '["probing"]') in instructions
    assert [rest for name, rest in instructions if name == "USER"] == ["probing"]


def test_what_the_image_runs_is_shell():
    commands = [rest for name, rest in read_instructions() if name == "RUN"]
    assert len(commands) == 4
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True)
