"""Who may import whom; and what is optional is not imported before it is asked for.

A module imports from packages on earlier floors and from its own; a file of a job imports from files of the job that
stand earlier in a fixed order; jobs import what they share, and one another only where ``EDGES`` says so.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ("shown", "ranks"),
    ("types", "errors"),
    ("kernels",),
    ("statistics",),
    ("metrics", "probes"),
    ("directions",),
    ("store",),
    ("data", "report"),
    ("tokens",),
    ("models",),
    ("engine",),
    ("instruments",),
    ("training",),
    ("runs.common",),
    ("runs",),
    ("completion",),
    ("usage",),
    ("cli",),
    ("__main__",),
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Formulas never see a model, a tokenizer, a table, a file or the network.
FORMULAS = FLOOR_OF["directions"]
OUTSIDE = {"transformers", "tokenizers", "safetensors", "datasets", "pyarrow", "pandas", "pathlib", "huggingface_hub"}
# The files that a job may have, one of which may be a folder, each importing only from earlier ones. Besides these:
# ``job``, which is imported by the package alone, and the files that a job has for other jobs.
ORDER = ("config", "data", "models", "states", "rows", "parts", "results", "tables", "files", "stages")
FOR_OTHERS = {"capture": "within"}
# Which job imports which besides, and what of it.
EDGES = {
    ("displacement", "score"): {"config", "tables"},
    ("influence", "score"): {"tables"},
    ("filter", "score"): {"tables"},
    ("show", "score"): {"config"},
    ("show", "displacement"): {"config"},
    ("show", "influence"): {"config"},
    ("report", "score"): {"config", "tables"},
    ("report", "ccs"): {"config"},
    # The shards of an array end as the run of their command would.
    ("merge", "score"): {"config", "data", "stages"},
    ("merge", "displacement"): {"config", "data", "stages", "tables"},
    ("merge", "rollouts"): {"config", "stages"},
    ("merge", "capture"): {"config", "data", "rows", "stages"},
}
# Jobs that make a family share a folder, and what several of them need lies in its ``common``.
FAMILIES = ("refusal",)
DEMO = "demo"
"""The one job that runs all others."""


def modules(root):
    """(dotted name, path) of every module of the package, the kernels by the name they are imported under."""
    for path in sorted(root.rglob("*.py")):
        if not path.is_symlink() and "kernels" not in path.relative_to(root).parts:
            parts = path.relative_to(root.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path
    for path in sorted((root.parent / "kernels").glob("*.py")):
        yield f"probing.kernels.{path.stem}", path


def imports(path, known):
    """(module, name taken from it or None, whether it is imported when the file is) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {inner for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None, node not in late) if inner in known else (node.module, alias.name, node not in late)


def package_of(name):
    """The package that decides on the floor of a module of ours; None for the package itself."""
    parts = name.split(".")
    if len(parts) == 1:
        return None
    return "runs.common" if parts[1:3] == ["runs", "common"] else parts[1]


def job_of(name):
    """(job, file of it or None) of a module of a job; (None, None) of any other."""
    parts = name.split(".")
    in_a_job = parts[1:2] == ["runs"] and len(parts) > 2 and parts[2] != "common"
    if not in_a_job:
        return None, None
    words = 2 if parts[2] in FAMILIES and len(parts) > 3 else 1
    return ".".join(parts[2 : 2 + words]), ".".join(parts[2 + words :]) or None


def find_wrong_import(name, target, taken):
    """What is wrong with an import of ``target`` (``taken`` of it) by the module ``name``; None if nothing is."""
    here = package_of(name)
    if here is None:  # the package itself names everything, lazily
        return None
    if target.split(".")[0] != "probing":
        tables = target.split(".")[0] in OUTSIDE and not (here == "types" and target == "pandas")
        return "a formula sees a model, a table or a file" if FLOOR_OF[here] <= FORMULAS and tables else None
    there = package_of(target)
    if there is None or FLOOR_OF.get(there, 99) > FLOOR_OF[here]:
        return "an arrow up"
    if there != here and FLOOR_OF[there] == FLOOR_OF[here] and (here, there) != ("errors", "types"):
        return "an arrow sideways"
    if taken is not None and taken.startswith("_") and target != name:
        return "a private name of another module"
    return find_wrong_job(job_of(name), job_of(target))


def find_wrong_job(here, there):
    """What is wrong with an import of one (job, file) by another; None if nothing is."""
    (job, file), (other, part) = here, there
    if other is None or job == DEMO:
        return None
    if job != other:
        if job is not None and other == f"{job.split('.')[0]}.common":
            return None
        allowed = {FOR_OTHERS.get(other), *EDGES.get((job, other), ())} - {None}
        return None if part in allowed else f"{job} imports the job {other}"
    if part == "job":
        return None if file is None else "job.py is imported by its package alone"
    own, theirs = ((each or "").split(".")[0] for each in (file, part))
    # Within a folder there is no order, but no circle either.
    within = own == theirs and file != part
    if own in ORDER and not within and not (theirs in ORDER and ORDER.index(theirs) < ORDER.index(own)):
        return f"{file} imports {part}, which does not stand before it"
    return None


def find_violations(root):
    """Sentences that say which import is wrong, and why."""
    known = dict(modules(root))
    wrong = []
    for name, path in known.items():
        for target, taken, _ in imports(path, known):
            reason = find_wrong_import(name, target, taken)
            if reason is not None:
                wrong.append(f"{name} imports {target}: {reason}")
    return wrong


def find_circles(root):
    """Every import that closes a circle, late imports and all."""
    known = dict(modules(root))
    links = defaultdict(set)
    for name, path in known.items():
        links[name] |= {target for target, _, _ in imports(path, known) if target in known} - {name}
    circles, done = [], set()

    def follow(name, trail):
        if name in trail:
            circles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted(links[name]):
                follow(target, [*trail, name])
            done.add(name)

    for name in known:
        follow(name, [])
    return circles


def test_no_import_is_wrong():
    assert len(list(modules(ROOT / "probing"))) > 100
    assert find_violations(ROOT / "probing") == []


def test_there_is_no_circle():
    assert find_circles(ROOT / "probing") == []


def test_every_module_has_a_floor_and_every_floor_a_module():
    packages = {package_of(name) for name, _ in modules(ROOT / "probing")} - {None}
    assert packages == set(FLOOR_OF)


def test_jobs_have_the_files_that_are_known():
    for name, _ in modules(ROOT / "probing"):
        job, file = job_of(name)
        if file is not None and not job.endswith(".common"):
            assert file.split(".")[0] in (*ORDER, "job", FOR_OTHERS.get(job)), (
                f"{name} has no place in the order of a job's files"
            )


# Calls whose callee gives its arguments no other names: launches of kernels, and attention of torch.
POSITIONAL_BY_NATURE = ("_kernel[", "function")


def find_long_calls(path):
    """Calls with seven positional arguments or more: what the fifth of them means has to be looked up."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and sum(not isinstance(each, ast.Starred) for each in node.args) >= 7:
            callee = ast.unparse(node.func)
            if not any(part in callee for part in POSITIONAL_BY_NATURE):
                yield f"{path.name}:{node.lineno} {callee}"


def find_untyped_configs(path):
    """Functions of jobs that take any options at all."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.arg) and node.arg == "config" and ast.unparse(node.annotation or node) == "Any":
            yield f"{path.name}:{node.lineno}"


def test_long_calls_use_names_and_options_have_a_type():
    paths = dict(modules(ROOT / "probing"))
    assert [call for path in paths.values() for call in find_long_calls(path)] == []
    in_jobs = [path for name, path in paths.items() if package_of(name) in ("runs", "runs.common", "instruments")]
    assert [place for path in in_jobs for place in find_untyped_configs(path)] == []


def test_a_long_call_and_untyped_options_are_found(tmp_path):
    (tmp_path / "planted.py").write_text("f(1, 2, 3, 4, 5, 6, 7)\nf(1, 2, 3, 4, 5, 6, a=7)\ndef g(config: Any): ...\n")
    assert list(find_long_calls(tmp_path / "planted.py")) == ["planted.py:1 f"]
    assert list(find_untyped_configs(tmp_path / "planted.py")) == ["planted.py:3"]


def test_a_job_starts_without_torch():
    """The data or the folder can be found wrong without waiting for it."""
    jobs = [path.parent.name for path in (ROOT / "probing/runs").glob("*/job.py")]
    assert len(jobs) > 5
    code = (
        f"import importlib, sys; [importlib.import_module(f'probing.runs.{{job}}') for job in {jobs}]; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


PLANTED = [
    ("metrics/planted.py", "from probing.models.load import load", "an arrow up"),
    ("metrics/planted.py", "import transformers", "a formula sees"),
    ("statistics/planted.py", "import pandas", "a formula sees"),
    ("metrics/planted.py", "import probing.probes.ccs", "an arrow sideways"),
    ("data/planted.py", "def late():\n    import probing.engine.stream", "an arrow up"),
    ("engine/planted.py", "from probing.runs import demo", "an arrow up"),
    ("instruments/planted.py", "from probing.runs.common.options import Options", "an arrow up"),
    ("runs/common/planted.py", "from probing.runs.score.config import ScoreConfig", "an arrow up"),
    ("runs/planted.py", "import probing.cli", "an arrow up"),
    ("models/planted.py", "import probing", "an arrow up"),
    ("store/planted.py", "from probing.types import _hidden", "a private name"),
    ("runs/probe/results.py", "from probing.runs.ccs.results import judge", "probe imports the job ccs"),
    ("runs/probe/results.py", "from probing.runs import ccs", "probe imports the job ccs"),
    ("runs/ccs/states.py", "from probing.runs.capture.stages import capture_into", "ccs imports the job capture"),
    ("runs/probe/results.py", "from probing.runs.probe.tables import make_tables", "which does not stand before it"),
    ("runs/probe/stages.py", "from probing.runs.probe.job import run", "imported by its package alone"),
]


@pytest.mark.parametrize(("place", "line", "reason"), PLANTED)
def test_a_wrong_import_is_found(tmp_path, place, line, reason):
    planted = tmp_path / "probing" / place
    planted.parent.mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    for module in (
        "probe/tables",
        "probe/job",
        "ccs/results",
        "ccs/__init__",
        "capture/stages",
        "score/config",
        "demo",
    ):
        path = tmp_path / "probing/runs" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import math\nfrom probing.errors import DataInvalid\n")
    assert find_violations(tmp_path / "probing") == []
    planted.write_text(line + "\n")
    (wrong,) = find_violations(tmp_path / "probing")
    assert reason in wrong


def test_a_circle_is_found(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "probing" / "data").mkdir(parents=True)
    for name, other in (("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")):
        (tmp_path / "probing/data" / f"{name}.py").write_text(f"def late():\n    from probing.data.{other} import x\n")
    (circle,) = find_circles(tmp_path / "probing")
    assert circle == "probing.data.b -> probing.data.c -> probing.data.d -> probing.data.b"


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_probing_brings_nothing_optional():
    """Every public name is touched, since they are imported when first used.

    torch imports triton by itself where it finds it (transformers has it import its compiler), so here it finds none.
    """
    code = (
        "import sys; sys.modules['triton'] = None; import probing; "
        "[getattr(probing, name) for name in probing.__all__]; "
        "print([name for name in ('trl', 'ray', 'plotly') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_triton_is_imported_to_launch_a_kernel_and_not_before():
    """Importing every kernel, asking for its variants and running a torch form do without."""
    code = (
        "import importlib, pathlib, sys, torch; "
        f"names = [path.stem for path in pathlib.Path({str(ROOT / 'kernels')!r}).glob('*.py')]; "
        "modules = [importlib.import_module(f'probing.kernels.{name}') for name in names]; "
        "[module.compile_variants() for module in modules if hasattr(module, 'compile_variants')]; "
        "end = torch.tensor([1]); "
        "importlib.import_module('probing.kernels.segment_pool').segment_sum(torch.ones(1, 1), end, end); "
        "print(len(modules) > 2, 'triton' in sys.modules)"
    )
    assert run_python(code) == "True False"


def test_importing_probing_alone_is_cheap():
    code = (
        "import probing, sys; print([n for n in ('torch', 'transformers', 'pandas', 'datasets') if n in sys.modules])"
    )
    assert run_python(code) == "[]"


# Other people's scripts call these.
FIXED_NAMES = """
    load score_pairs filter_pairs capture Capture Place PreferencePair LabelledPrompt Activations TokenActivations
    Report Estimate ches ches_normalized token_stats rank_surprisal_ratio ranking_accuracy idealized_ranking_accuracy
    ranking_difficulty davies_bouldin dunn calinski_harabasz xie_beni silhouette aqi fit_ccs polar_consistency
    contradiction_index ContrastPair Source ProbingError
""".split()


def test_public_names_are_all_there():
    import probing

    assert set(FIXED_NAMES) <= set(probing.__all__)
    for name in probing.__all__:
        assert getattr(probing, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = probing.nonsense


def test_kernels_is_a_link_without_a_package_of_its_own():
    """A top-level package 'kernels' would hide the one that transformers imports."""
    assert (ROOT / "probing" / "kernels").is_symlink()
    assert (ROOT / "probing" / "kernels").resolve() == (ROOT / "kernels").resolve()
    assert not (ROOT / "kernels" / "__init__.py").exists()
