"""Stage ``trials``: what the self-tests of the engine measure on this card, and what they make of it."""

import time

from card import engine_points as engine
from card.run import Run


def trials(run: Run) -> None:
    """Is the model found causal, which way is chosen for it, and how far is each way from the plain one."""
    stack, causal, seen = engine.causal_stack(run.need("model"))
    run.kept["stack"] = stack
    run.say(
        figure="causal",
        verdict=causal,
        differences=seen,
        limit=engine.CAUSAL_LIMIT,
    )
    if not causal:
        run.failures.append("trials: a causal model is taken for one that is not")
    with run.part(figure="chosen way"):
        chosen_way(run)
    for packing in ("varlen", "paths") if run.card else ("paths",):
        for sharing in (True, False):
            with run.part(figure="parity", packing=packing, sharing=sharing):
                parity(run, packing, sharing)


def chosen_way(run: Run) -> None:
    """As ``probing score`` would choose it, and how it would tell."""
    began = time.monotonic()
    mode, seen = engine.chosen(run.need("stack"))
    wanted = "varlen" if run.card else "paths"
    run.say(
        figure="chosen way",
        told=mode.describe(),
        packing=mode.packing,
        sharing=mode.sharing,
        differences=seen,
        seconds=time.monotonic() - began,
    )
    if mode.packing != wanted or not mode.sharing:
        run.failures.append(f"trials: {mode.describe()} was chosen, not {wanted} with prompts shared")


def parity(run: Run, packing: str, sharing: bool) -> None:
    """How far the states are from the plain way's, and how much a row changes with those packed before it."""
    found = engine.compared(run.need("stack"), packing, sharing)
    run.say(
        figure="parity",
        packing=packing,
        sharing=sharing,
        verdict=found.verdict or "agrees",
        early=max(found.early, default=None),
        early_limit=engine.EARLY_LIMIT,
        differences=found.apart,
        worst=max(found.apart, default=None),
        noise=max(found.noise, default=None),
        leak=max(found.leaks, default=None),
        limit=engine.PARITY_LIMIT,
    )
