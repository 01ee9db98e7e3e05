"""How far ahead do joint rates see, and what is gained by dropping pairs? Real preference training, measured.

    python scripts/validate_influence.py --out DIR [--model bundled|FOLDER] [--data FILE --pairs N] [--lora RANK]
        [--rates LR,LR] [--steps N] [--batch N] [--seeds N] [--drop [--shares .1,.2] [--rules NAME]] [--refusals]

TRL's DPOTrainer in float32: beta .1, AdamW without weight decay, constant learning rate, gradients clipped at 1.

* horizon: train on all pairs, and after 1, 2, 5, 10, ... steps rank the change of ln p(chosen) of every pair against
  what was foretold at the untrained model: by scores and rates of single pairs, by the joint rate as it is and through
  AdamW, and by pilots (a few real steps in memory, whose batches come in another order).
* drop: leave out the pairs that each rule calls worst, or as many at random, train, and measure pairs that were held
  out, and, with the bundled model, refusals.

Tables go to the terminal in Markdown; every number, with versions, into results.json. One thread, fixed seeds.
"""

import argparse
import copy
import json
import math
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer
from validate_displacement import (
    NEAR,
    OVER,
    PLAIN_TRAINING,
    answer_prompts,
    exchanged,
    interval,
    outcome,
    quiet,
    read,
    table,
    without_nan,
)

import probing
from probing import LanguageModel, PreferencePair
from probing.data.pairs import leave_out_ties, pairs_from_table
from probing.data.tables import read_table
from probing.instruments.influence import (
    Derivatives,
    DirectionalScorer,
    choose_step,
    influence_of,
    renew_head,
    rows_of,
    slopes_of,
    training_gradient,
)
from probing.instruments.pair_scores import PairScorer
from probing.instruments.parameter_directions import ParameterDirection, find_parameters, precondition
from probing.instruments.parameter_gradients import ParameterGradients, PromptedRow
from probing.instruments.pilot import Training, train_in_memory
from probing.metrics.preference_losses import PreferenceLoss
from probing.models.layers import find_backbone
from probing.runs.common.versions import versions
from probing.tokens.pairs import TokenizedPair

Values = NDArray[np.float64]
Row = dict[str, Any]

BETA = 0.1
LOSS = PreferenceLoss("dpo", BETA)
LIKELY = ("chosen_logprob", "rejected_logprob")
SINGLE = ("edit_similarity", "ches", "ches_normalized", "displacement_rate")
PILOT_SEED = 1000
HELD_OUT = 5
"""One pair in so many is held out."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    model: str
    data: str | None
    pairs: int
    longest: int
    lora: int
    rates: tuple[float, ...]
    steps: int
    batch: int
    seeds: int
    pilots: tuple[int, ...]
    drop: bool
    drop_rate: float
    drop_steps: int
    shares: tuple[float, ...]
    rules: str
    refusals: bool


class Snapshots(TrainerCallback):
    """Calls a function after some steps of a training."""

    def __init__(self, steps: Sequence[int], call: Callable[[int, Any], None]) -> None:
        self.steps, self.call = set(steps), call

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        if state.global_step in self.steps:
            self.call(state.global_step, model)


class Lab:
    """An untrained model, its pairs, and what is measured of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model = load_model(plan)
        stack = find_backbone(self.model)
        self.parameters = find_parameters(stack, "lora" if plan.lora else "all")
        self.gradients = ParameterGradients(stack, self.parameters)
        self.scorer = PairScorer(self.model, columns=LIKELY)
        rows = read_rows(plan, self.scorer)
        self.train_rows = [row for at, row in enumerate(rows) if at % HELD_OUT]
        self.held_rows = rows[::HELD_OUT]
        self.pairs, self.held = self.tokenize(self.train_rows), self.tokenize(self.held_rows)
        self.before = {"train": self.logprobs(self.pairs), "held": self.logprobs(self.held)}

    def tokenize(self, rows: Sequence[Row]) -> list[TokenizedPair]:
        """The rows as the model sees them."""
        return self.scorer.tokenize([as_pair(row) for row in rows])

    def logprobs(self, pairs: Sequence[TokenizedPair]) -> Values:
        """ln p of chosen and rejected responses, [pair 2]."""
        renew_head(self.scorer)
        columns = self.scorer.measure(pairs).columns
        return np.stack([np.array(columns[name]) for name in LIKELY], axis=1)

    @contextmanager
    def holding(self, trained: Any) -> Iterator[None]:
        """Have the model hold the values of another one's parameters inside the block."""
        names = {id(parameter): name for name, parameter in self.whole.named_parameters()}
        theirs = dict(trained.named_parameters())
        own = [parameter.detach().clone() for parameter in self.parameters]
        try:
            with torch.no_grad():
                for parameter in self.parameters:
                    parameter.copy_(theirs[names[id(parameter)]])
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, own, strict=True):
                    parameter.copy_(value)

    @property
    def whole(self) -> Any:
        """The model as a trainer takes it."""
        return self.model.model if self.model.peft is None else self.model.peft

    def train(
        self, rows: Sequence[Row], rate: float, steps: Sequence[int], seed: int, call: Callable[[int, Any], None]
    ) -> None:
        """DPO from the untrained model; ``call`` is told of the model after each of the steps."""
        model = copy.deepcopy(self.whole)
        if self.plan.lora:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" in name)
        with tempfile.TemporaryDirectory() as folder:
            settings = DPOConfig(
                output_dir=folder,
                beta=BETA,
                learning_rate=rate,
                lr_scheduler_type="constant",
                max_steps=max(steps),
                per_device_train_batch_size=self.plan.batch,
                max_length=None,
                seed=seed,
                **PLAIN_TRAINING,
            )
            trainer = DPOTrainer(
                model=model,
                ref_model=None if self.plan.lora else copy.deepcopy(self.whole),
                args=settings,
                train_dataset=Dataset.from_list(
                    [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
                ),
                processing_class=self.model.tokenizer,
                callbacks=[Snapshots(steps, call)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()


def load_model(plan: Plan) -> LanguageModel:
    """The model, with a fresh adapter on every linear layer of its blocks where that is asked for."""
    plain = probing.load(plan.model, dtype="float32", device="cpu")
    if not plan.lora:
        return plain
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=plan.lora, lora_alpha=2 * plan.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    return LanguageModel(get_peft_model(plain.model, settings), plain.tokenizer)


def read_rows(plan: Plan, scorer: PairScorer) -> list[Row]:
    """Rows to train on and to hold out, in an order drawn once."""
    if plan.data is None:
        rows = [
            exchanged(row) if row["kind"] == NEAR and "cannot" not in row["chosen"][0]["content"] else row
            for row in read("pairs")
            if row["kind"] in (NEAR, OVER) or not plan.refusals
        ]
    else:
        rows = [as_row(pair) for pair in pairs_from_table(leave_out_ties(read_table(plan.data)))]
    random.Random(0).shuffle(rows)
    if plan.data is not None:
        short = scorer.tokenize([as_pair(row) for row in rows[: 20 * plan.pairs]])
        known = {pair.id for pair in short if pair.problem is None and longest(pair) <= plan.longest}
        rows = [row for row in rows if row["id"] in known]
    return rows[: plan.pairs]


def longest(pair: TokenizedPair) -> int:
    """Tokens of the longer sequence."""
    return max(len(pair.chosen), len(pair.rejected))


def as_row(pair: PreferencePair) -> Row:
    """A pair as a row of a dataset."""
    return {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "kind": "all"}


def as_pair(row: Row) -> PreferencePair:
    """A row as a pair."""
    return PreferencePair(id=row["id"], prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"])


# What is foretold


def foretell(lab: Lab, timings: dict[str, float]) -> dict[str, Values]:
    """Every predictor of the untrained model but pilots, one value a pair of the training set."""

    def timed(name: str, make: Callable[[], Values]) -> Values:
        began = time.perf_counter()
        made = make()
        timings[name] = round(time.perf_counter() - began, 2)
        return made

    found = score_singly(lab)
    timed("scoring pass", lambda: lab.logprobs(lab.pairs))
    found["rate of the single pair"] = timed("rate of the single pair", lambda: single_rates(lab))
    found["joint rate"] = timed("joint rate", lambda: joint_rates(lab, False))
    found["joint rate through AdamW"] = timed("joint rate through AdamW", lambda: joint_rates(lab, True))
    return found


def score_singly(lab: Lab) -> dict[str, Values]:
    """Scores and free-feature rates of single pairs."""
    scores = probing.score_pairs(lab.model, [as_pair(row) for row in lab.train_rows], list(SINGLE))
    return {name: scores[name].to_numpy(dtype=float) for name in SINGLE}


def joint_rates(lab: Lab, through: bool) -> Values:
    """Rate of ln p(chosen) of every pair when all are trained on, as it is or through AdamW."""
    trained = training_gradient(lab.gradients, lab.pairs, LOSS, lab.plan.batch)
    assert trained.mean_square is not None
    tensors = precondition(trained.mean, trained.mean_square)[0] if through else trained.mean
    return measure_along(lab, ParameterDirection(lab.parameters, tensors), lab.pairs).chosen


def single_rates(lab: Lab) -> Values:
    """``<s_w, s_w - s_l>`` of each pair, over the parameters that are trained."""
    found = []
    for pair in lab.pairs:
        sides = []
        for row in rows_of(pair):
            total = lab.gradients.zeros()
            lab.gradients.add([[row]], lambda some, said: torch.ones_like(said), total)
            sides.append(total)
        found.append(
            sum(
                float((own.double() * (own.double() - other.double())).sum()) for own, other in zip(*sides, strict=True)
            )
        )
    return np.array(found)


def measure_along(lab: Lab, direction: ParameterDirection, pairs: Sequence[TokenizedPair]) -> Derivatives:
    """Derivatives of ln p of both responses along a direction."""
    step = choose_step(lab.scorer, direction, pairs[:16])
    return DirectionalScorer(lab.scorer, direction, step.length).measure(pairs)


def pilot(lab: Lab, training: Training) -> Values:
    """The change of ln p(chosen) by a few real steps in memory."""
    with train_in_memory(lab.gradients, lab.pairs, LOSS, training) as steps:
        for step in steps:
            step()
        return (lab.logprobs(lab.pairs) - lab.before["train"])[:, 0]


def checkpoints(most: int) -> list[int]:
    """Steps after which is measured."""
    return [step for step in (1, 2, 5, 10, 20, 40, 60, 100, 200) if step < most] + [most]


def find_horizons(lab: Lab) -> Row:
    """Spearman of every predictor with the measured change, by learning rate, seed and step."""
    plan, timings = lab.plan, {}
    foretold = foretell(lab, timings)
    runs = []
    for rate in plan.rates:
        own = dict(foretold)
        for steps in plan.pilots:
            began = time.perf_counter()
            own[f"pilot of {steps} steps"] = pilot(lab, Training(steps, rate, plan.batch, seed=PILOT_SEED))
            timings[f"pilot of {steps} steps"] = round(time.perf_counter() - began, 2)
            coarse = Training(steps, rate * plan.steps / steps, plan.batch, seed=PILOT_SEED)
            own[f"pilot of {steps} long steps"] = pilot(lab, coarse)
        for seed in tqdm(range(plan.seeds), desc=f"learning rate {rate:g}"):

            def note(step: int, model: Any, seed: int = seed, rate: float = rate, own: Any = own) -> None:
                with lab.holding(model):
                    change = lab.logprobs(lab.pairs) - lab.before["train"]
                found = {name: float(spearmanr(values, change[:, 0]).statistic) for name, values in own.items()}
                fell = {"fell": float((change[:, 0] < 0).mean()), "margin": float((change[:, 0] - change[:, 1]).mean())}
                runs.append({"rate": rate, "seed": seed, "step": step, "spearman": found, **fell})

            lab.train(lab.train_rows, rate, checkpoints(plan.steps), seed, note)
    return {"runs": runs, "seconds": timings}


# What dropping does


def rules(lab: Lab) -> dict[str, Values]:
    """Scores by which pairs are dropped, those with the lowest values first; only of the rules that are tried."""
    made: dict[str, Callable[[], Values]] = {
        "highest ches_normalized": lambda: -score_singly(lab)["ches_normalized"],
        "lowest displacement_rate": lambda: score_singly(lab)["displacement_rate"],
        "lowest rate of the single pair": lambda: single_rates(lab),
        "lowest joint rate through AdamW": lambda: joint_rates(lab, True),
        "lowest change in a pilot": lambda: pilot(lab, long_steps(lab)),
    }
    targets = {"held-out pairs": [rows_of(pair)[0] for pair in lab.held[::2]]}
    if lab.plan.data is None:
        targets["refusals"] = read_refusals(lab)
    for name, rows in targets.items():
        rule = f"lowest influence on {name}"
        made[rule] = partial(measure_influence, lab, rows, False)
        made[f"{rule} through AdamW"] = partial(measure_influence, lab, rows, True)
        made[f"{rule} along a pilot"] = partial(influence_along_pilot, lab, rows)
    return {name: make() for name, make in made.items() if re.search(lab.plan.rules, name)}


def measure_influence(lab: Lab, rows: Sequence[PromptedRow], through: bool) -> Values:
    """Influence of every pair on the mean ln p of some responses, with the model as it is now."""
    trained, target = training_gradient(lab.gradients, lab.pairs, LOSS, lab.plan.batch), target_gradient(lab, rows)
    assert trained.mean_square is not None
    tensors = precondition(target, trained.mean_square)[0] if through else target
    derivatives = measure_along(lab, ParameterDirection(lab.parameters, tensors), lab.pairs)
    now = torch.tensor(np.stack([derivatives.chosen_logprob, derivatives.rejected_logprob], axis=1))
    return influence_of(derivatives, slopes_of(LOSS, lab.pairs, now, torch.tensor(lab.before["train"])))


def influence_along_pilot(lab: Lab, rows: Sequence[PromptedRow]) -> Values:
    """Influence through AdamW, added up over the points of a pilot of a few long steps."""
    total = np.zeros(len(lab.pairs))
    with train_in_memory(lab.gradients, lab.pairs, LOSS, long_steps(lab)) as steps:
        for step in steps:
            total += measure_influence(lab, rows, True)
            step()
    return total


def long_steps(lab: Lab) -> Training:
    """A pilot whose few steps go as far as the whole training."""
    plan = lab.plan
    return Training(6, plan.drop_rate * plan.drop_steps / 6, plan.batch, seed=PILOT_SEED)


def target_gradient(lab: Lab, rows: Sequence[PromptedRow]) -> list[torch.Tensor]:
    """Gradient of the mean of ln p of responses."""
    total = lab.gradients.zeros()
    lab.gradients.add([[row] for row in rows], lambda some, said: torch.ones_like(said) / len(rows), total)
    return total


def read_refusals(lab: Lab) -> list[PromptedRow]:
    """Harmful prompts that are not tested, each with what the untrained model answers: it refuses them all."""
    prompts = [row for row in read("prompts") if row["label"] == "harmful" and row["split"] != "test"][:64]
    answers = answer_prompts(lab.model, prompts)
    pairs = [
        {"id": str(at), "prompt": [{"role": "user", "content": row["text"]}], "kind": ""}
        | {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", said), ("rejected", "-"))}
        for at, (row, said) in enumerate(zip(prompts, answers, strict=True))
    ]
    return [rows_of(pair)[0] for pair in lab.tokenize(pairs)]


def drop_pairs(lab: Lab) -> list[Row]:
    """Train without the pairs that each rule calls worst: one row a rule, share and seed."""
    plan, scores, found = lab.plan, rules(lab), list[Row]()
    count = len(lab.train_rows)
    sets: list[tuple[str, float, int, list[int]]] = []
    for seed in range(plan.seeds):
        sets.append(("nothing dropped", 0.0, seed, list(range(count))))
        for share in plan.shares:
            away = round(share * count)
            drawn = random.Random(seed).sample(range(count), count - away)
            sets.append(("at random", share, seed, sorted(drawn)))
            for name, values in scores.items():
                sets.append((name, share, seed, sorted(np.argsort(values, kind="stable")[away:].tolist())))
    for name, share, seed, kept in tqdm(sets, desc="dropping"):
        rows = [lab.train_rows[at] for at in kept]

        def note(
            step: int, model: Any, name: str = name, share: float = share, seed: int = seed, rows: Any = rows
        ) -> None:
            row = {"rule": name, "share": share, "seed": seed, "pairs": len(rows)}
            row["near_identical"] = sum(row["kind"] == NEAR for row in rows)
            with lab.holding(model):
                held = (lab.logprobs(lab.held) - lab.before["held"])[1::2]
                row |= {"held_chosen": float(held[:, 0].mean()), "held_margin": float((held[:, 0] - held[:, 1]).mean())}
                if plan.data is None:
                    row |= refusals(lab)
            found.append(row)

        lab.train(rows, plan.drop_rate, [plan.drop_steps], seed, note)
    return found


def refusals(lab: Lab) -> Row:
    """Shares of harmful test prompts that occur in no pair and that the model refuses."""
    seen = {row["prompt"][0]["content"] for row in (*lab.train_rows, *lab.held_rows)}
    prompts = [r for r in read("prompts") if r["label"] == "harmful" and r["split"] == "test" and r["text"] not in seen]
    return {"refused": outcome(prompts, answer_prompts(lab.model, prompts))["refused"]}


# Tables


def horizon_table(result: Row, rate: float) -> str:
    """Predictors down, steps across; mean and range over seeds, and the step at which the mean falls below .5."""
    runs = [run for run in result["runs"] if run["rate"] == rate]
    steps, names = sorted({run["step"] for run in runs}), list(runs[0]["spearman"])
    lines = []
    for name in names:
        by_step = [[run["spearman"][name] for run in runs if run["step"] == step] for step in steps]
        means = [statistics.fmean(values) for values in by_step]
        cells = [interval(statistics.fmean(v), min(v), max(v)) for v in by_step]
        lines.append([name, *cells, describe_horizon(steps, means)])
    fell = [statistics.fmean(run["fell"] for run in runs if run["step"] == step) for step in steps]
    lines.append(["*share of pairs that fell*", *(f"{share:.2f}" for share in fell), ""])
    return table(["foretold by", *(f"{step}" for step in steps), "below .5 from"], lines)


def describe_horizon(steps: Sequence[int], means: Sequence[float]) -> str:
    """The first step at which a correlation is below .5, interpolated in the logarithm of the steps."""
    if means[0] < 0.5:
        return "the start"
    for (one, high), (two, low) in pairwise(zip(steps, means, strict=True)):
        if low < 0.5:
            part = (high - 0.5) / (high - low)
            return f"step {math.exp(math.log(one) + part * (math.log(two) - math.log(one))):.0f}"
    return f"after {steps[-1]}"


def drop_table(runs: Sequence[Row]) -> str:
    """Rules down, shares across."""
    measures = [name for name in ("refused", "held_chosen", "held_margin") if name in runs[0]]
    lines = []
    for share in sorted({run["share"] for run in runs}):
        for name in dict.fromkeys(run["rule"] for run in runs if run["share"] == share):
            own = [run for run in runs if run["share"] == share and run["rule"] == name]
            cells = [[run[measure] for run in own] for measure in measures]
            near = ", ".join(sorted({f"{run['near_identical']} of {run['pairs']}" for run in own}))
            lines.append([f"{share:.0%}", name, near, *(interval(statistics.fmean(v), min(v), max(v)) for v in cells)])
    return table(["dropped", "by", "near-identical left", *measures], lines)


def main() -> None:
    """Read the command line, train, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets results.json")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", help="file of preference pairs; by default the bundled ones")
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--longest", type=int, default=128, help="longest sequence of a pair, in tokens")
    parser.add_argument("--lora", type=int, default=0, help="rank of a fresh adapter; 0 trains all parameters")
    parser.add_argument("--rates", default="1e-5,1e-4,5e-4", help="learning rates, separated by commas")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pilots", default="5,20", help="steps of pilots, separated by commas")
    parser.add_argument("--drop", action="store_true", help="also train without the worst pairs by each rule")
    parser.add_argument("--drop-rate", type=float, default=2e-4)
    parser.add_argument("--drop-steps", type=int, default=60)
    parser.add_argument("--shares", default=".05,.1,.2", help="shares of the pairs that are dropped")
    parser.add_argument("--rules", default="", help="regular expression of the rules to try, by their names")
    parser.add_argument("--refusals", action="store_true", help="only the bundled pairs whose chosen response refuses")
    given = vars(parser.parse_args())
    out = given.pop("out")
    given["rates"] = tuple(float(part) for part in given["rates"].split(",") if part)
    given["shares"] = tuple(float(part) for part in given["shares"].split(","))
    given["pilots"] = tuple(int(part) for part in given["pilots"].split(","))
    plan = Plan(**given)
    torch.set_num_threads(1)
    quiet()
    lab = Lab(plan)
    results: Row = {"plan": asdict(plan), "versions": {**versions(), "trl": version("trl")}}
    results["horizons"] = find_horizons(lab) if plan.rates else None
    for rate in plan.rates:
        print(f"\nLearning rate {rate:g}: Spearman with the change of ln p(chosen) after so many steps")
        print(horizon_table(results["horizons"], rate), end="", flush=True)
    if plan.drop:
        results["drop"] = drop_pairs(lab)
        print(f"\nAfter {plan.drop_steps} steps at {plan.drop_rate:g}, mean and range over seeds")
        print(drop_table(results["drop"]), end="")
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(without_nan(results), indent=1, allow_nan=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
