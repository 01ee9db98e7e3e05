"""A child process that can import what a bare machine with a card has, and nothing else that is installed here."""

import json
import os
import re
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from card.bare import PRESENT, normal

ALLOWED = "BARE_MACHINE_ALLOWED"
# Not a finder that raises: libraries ask ``find_spec`` whether something is there, and expect None.
SITECUSTOMIZE = f'''
import json, os, re, sys
from importlib import machinery

modules, distributions = map(set, json.loads(os.environ["{ALLOWED}"]))


class PathFinder(machinery.PathFinder):  # jaxtyping looks for one of this name
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target)
        if spec is None or fullname.partition(".")[0] in modules:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return None if any("site-packages" in place for place in places) else spec

    @classmethod
    def find_distributions(cls, *arguments, **options):
        for found in super().find_distributions(*arguments, **options):
            if re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower() in distributions:
                yield found


sys.meta_path[sys.meta_path.index(machinery.PathFinder)] = PathFinder
'''


def with_needs(names):
    """Distributions with everything that they need, by the metadata of what is installed here."""
    found, waiting = set(), [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # for other systems or versions
            continue
        found.add(name)
        waiting += [normal(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need]
    return found


def bare_environment(folder, extra=()):
    """The environment of such a child; it holds for its own children too.

    Args:
        folder: where the finder's file is written.
        extra: distributions that are there besides.
    """
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    distributions = with_needs([*PRESENT, *extra])
    modules = [
        module for module, names in packages_distributions().items() if {normal(name) for name in names} & distributions
    ]
    allowed = json.dumps([modules, sorted(distributions)])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Without a card on a machine that has one, too.
    fixed = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **fixed, ALLOWED: allowed}
