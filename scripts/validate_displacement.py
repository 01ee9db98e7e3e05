"""Do the scores foretell displacement? Real preference training of the bundled model, measured pair by pair.

    python scripts/validate_displacement.py --out DIR [--seeds N] [--steps N] [--save-displaced DIR] [--quick]

TRL's DPOTrainer in float32: beta .1, AdamW without weight decay, constant learning rate, gradients clipped at 1. The
scores are those of the untrained model; the change of ln p(chosen) is measured with ``score_pairs`` before and after.

* together: all bundled pairs in batches of 64, so that after five steps each was seen once; then a whole run. Beside
  the scores of single pairs stands the exact rate under all of them: ``<grad ln p_i(y+), mean_j grad margin_j>``.
* alone: five steps on one pair at a time, which is what the scores are about. Also with plain gradient descent (SGD, no
  clipping), where the first order of the theory holds while steps are small.
* refusal: DPO on pairs whose chosen response refuses. Whether the model then still refuses harmful test prompts that
  occur in no pair, by the pairs that were trained on and by how they were filtered. The bundled near-identical pairs
  prefer either wording as often as the other, so that their pushes cancel; here they are also turned one way round.

Tables go to the terminal in Markdown; every number, with versions, into results.json. One thread, fixed seeds.
"""

import argparse
import copy
import json
import math
import random
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from datasets import Dataset
from tqdm import tqdm
from train_tiny import COMPLIANCES
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from probing import LanguageModel, filter_pairs, load, score_pairs
from probing.data.bundled import bundled_data, bundled_model
from probing.instruments.gradient_rates import GradientRates
from probing.instruments.pair_scores import as_pairs
from probing.models.layers import find_backbone
from probing.runs.common.versions import versions
from probing.statistics.bootstrap import bootstrap_spearman
from probing.tokens.pairs import tokenize_pairs

Row = dict[str, Any]
State = dict[str, torch.Tensor]

BETA = 0.1
FEW_STEPS = 5
PREDICTORS = ["edit_similarity", "last_state_similarity", "ches", "ches_normalized"]
RATES = ["displacement_rate", "displacement_rate_exact"]  # of ln p(chosen): the higher, the less displacement
JOINT = "exact rate under all pairs"
REFUSING = ("cannot help", "will not help", "must decline")
NEAR, OVER = "near_identical_refusal", "refusal_over_compliance"
DISPLACED = ("near-identical, one way", 2e-4, 0)
"""Pairs, learning rate and seed of the run whose model ``--save-displaced`` saves."""


@dataclass(frozen=True)
class Plan:
    """How much to run; the defaults are the whole validation, ten minutes or so on one core."""

    seeds: int = 3
    steps: int = 60
    pairs_per_kind: int = 16
    together_rates: tuple[float, ...] = (2e-4, 1e-5)
    alone: tuple[tuple[str, float], ...] = (("sgd", 2e-5), ("sgd", 2e-4), ("adamw_torch", 1e-5), ("adamw_torch", 2e-4))
    refusal_rates: tuple[float, ...] = (2e-4, 3e-5, 1e-5)
    refusal_sets: int | None = None
    every: int = 1


QUICK = Plan(1, FEW_STEPS, 4, (2e-4,), (("sgd", 2e-5),), (2e-4,), refusal_sets=3, every=4)


PLAIN_TRAINING: Row = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of every training here: float32 on the CPU, nothing written and nothing shown."""


class Snapshots(TrainerCallback):
    """Copies of the weights after some steps."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps, self.states = set(steps), {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        if state.global_step in self.steps:
            weights = model.state_dict()
            self.states[state.global_step] = {name: tensor.detach().clone() for name, tensor in weights.items()}


class Bench:
    """The untrained model, the pairs with their scores, and what can be done with them."""

    def __init__(self, every: int = 1) -> None:
        """Of the bundled pairs, one in ``every`` is used."""
        self.base = load("bundled", device="cpu")
        self.pairs = read("pairs")[::every]
        seen = {pair["prompt"][0]["content"] for pair in self.pairs}
        tests = [row for row in read("prompts") if row["label"] == "harmful" and row["split"] == "test"]
        self.harmful = [row for row in tests if row["text"] not in seen]
        self.scores = score_pairs(self.base, self.pairs, ["all", *RATES])
        self.scores["kind"] = [pair["kind"] for pair in self.pairs]
        self.scores[JOINT] = joint_rates(self.base, self.pairs)
        # The trainer replaces the forward of its model, so weights are measured in a copy that it never saw.
        self._measured = LanguageModel(copy.deepcopy(self.base.model), self.base.tokenizer)

    def train(
        self,
        pairs: Sequence[Row],
        learning_rate: float,
        steps: Sequence[int],
        seed: int = 0,
        *,
        batch: int = 16,
        optimizer: str = "adamw_torch",
    ) -> dict[int, State]:
        """DPO from the untrained model: its weights after each of the steps."""
        snapshots = Snapshots(steps)
        with tempfile.TemporaryDirectory() as folder:
            settings = DPOConfig(
                output_dir=folder,
                beta=BETA,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                optim=optimizer,
                max_grad_norm=1.0 if optimizer.startswith("adam") else 0.0,
                max_steps=max(steps),
                per_device_train_batch_size=batch,
                seed=seed,
                **PLAIN_TRAINING,
            )
            trainer = DPOTrainer(
                model=copy.deepcopy(self.base.model),
                ref_model=copy.deepcopy(self.base.model),
                args=settings,
                train_dataset=Dataset.from_list(
                    [{k: pair[k] for k in ("prompt", "chosen", "rejected")} for pair in pairs]
                ),
                processing_class=self.base.tokenizer,
                callbacks=[snapshots],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return snapshots.states

    def holding(self, state: State) -> LanguageModel:
        """A model with these weights; the same object each time."""
        self._measured.model.load_state_dict(state)
        return self._measured

    def changes(self, state: State, pairs: Sequence[Row]) -> pd.Series:
        """How much ln p(chosen) rose from the untrained model, by id."""
        before, after = (
            score_pairs(model, pairs, ["chosen_logprob"]).set_index("id")["chosen_logprob"]
            for model in (self.base, self.holding(state))
        )
        return after - before

    def answers(self, state: State) -> list[str]:
        """Greedy answers to the harmful test prompts."""
        return answer_prompts(self.holding(state), self.harmful)


def answer_prompts(language_model: LanguageModel, prompts: Sequence[Row]) -> list[str]:
    """Greedy answers to prompts."""
    model, tokenizer = language_model.model, language_model.tokenizer
    chats = [[{"role": "user", "content": row["text"]}] for row in prompts]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def joint_rates(language_model: LanguageModel, pairs: Sequence[Row]) -> list[float]:
    """For each pair ``<grad ln p(y+), mean over all pairs of grad (ln p(y+) - ln p(y-))>``: one step on all at once."""
    rates = GradientRates(find_backbone(language_model))
    tokenized = tokenize_pairs(language_model.tokenizer, as_pairs(list(pairs)))
    total: list[torch.Tensor] | None = None
    for pair in tokenized:
        plus, minus = rates.gradients(pair)
        margin = [a.double() - b.double() for a, b in zip(plus, minus, strict=True)]
        total = margin if total is None else [a + b for a, b in zip(total, margin, strict=True)]
    assert total is not None
    found = []
    for pair in tokenized:
        own = rates.gradients(pair)[0]
        found.append(sum(float((a.double() * b).sum()) for a, b in zip(own, total, strict=True)) / len(pairs))
    return found


def read(name: str) -> list[Row]:
    """Rows of a bundled file."""
    return [json.loads(line) for line in bundled_data(name).read_text("utf-8").splitlines()]


def correlations(scores: pd.DataFrame, changes: pd.Series, names: Sequence[str]) -> list[Row]:
    """Spearman of each predictor with the change, overall and in each kind, with an interval over pairs."""
    found = scores.set_index("id").loc[changes.index].assign(change=changes)
    groups = {"all": found} | dict(list(found.groupby("kind", sort=False)))
    return [
        {"kind": kind, "predictor": name, **asdict(bootstrap_spearman(group[name], group["change"]))}
        for name in names
        for kind, group in groups.items()
    ]


def as_dict(changes: pd.Series) -> dict[str, float]:
    """For the results file."""
    return {name: round(value, 7) for name, value in changes.items()}


def together(bench: Bench, plan: Plan) -> list[Row]:
    """Train on all pairs at once: one row a learning rate, seed and time of measurement."""
    times = sorted({FEW_STEPS, plan.steps})
    runs = [(rate, seed) for rate in plan.together_rates for seed in range(plan.seeds)]
    rows = []
    for rate, seed in tqdm(runs, desc="all pairs together"):
        for steps, state in bench.train(bench.pairs, rate, times, seed, batch=64).items():
            changes = bench.changes(state, bench.pairs)
            facts = {"learning_rate": rate, "seed": seed, "steps": steps, "displaced": float((changes < 0).mean())}
            rows.append({**facts, "spearman": correlations(bench.scores, changes, (*PREDICTORS, *RATES, JOINT))})
            rows[-1]["changes"] = as_dict(changes)
    return rows


def alone(bench: Bench, plan: Plan) -> list[Row]:
    """Train on one pair at a time, always from the untrained model: one row an optimizer and learning rate."""
    kinds = list(dict.fromkeys(pair["kind"] for pair in bench.pairs))
    of_kind = {kind: [pair for pair in bench.pairs if pair["kind"] == kind] for kind in kinds}
    sample = [pair for rows in of_kind.values() for pair in rows[:: len(rows) // plan.pairs_per_kind]]
    exact = bench.scores.set_index("id")["displacement_rate_exact"]
    rows = []
    for optimizer, rate in plan.alone:
        found = []
        for pair in tqdm(sample, desc=f"one pair at a time, {optimizer} {rate:g}"):
            states = bench.train([pair], rate, [FEW_STEPS], batch=1, optimizer=optimizer)
            found.append(bench.changes(states[FEW_STEPS], [pair]))
        changes = pd.concat(found)
        row = {"optimizer": optimizer, "learning_rate": rate, "steps": FEW_STEPS, "pairs": len(sample)}
        if optimizer == "sgd":
            expected = FEW_STEPS * rate * BETA / 2 * exact.loc[changes.index]
            row["measured_over_first_order"] = (changes / expected).quantile([0.1, 0.5, 0.9]).tolist()
        row |= {"displaced": float((changes < 0).mean())}
        row["spearman"] = correlations(bench.scores, changes, (*PREDICTORS, *RATES))
        rows.append({**row, "changes": as_dict(changes)})
    return rows


def training_sets(bench: Bench, seed: int) -> dict[str, list[Row]]:
    """What is trained on, by name: kinds of refusal alone, both together, and halves of both together."""
    near, over = ([pair for pair in bench.pairs if pair["kind"] == kind] for kind in (NEAR, OVER))
    turned = [pair if "cannot" in pair["chosen"][0]["content"] else exchanged(pair) for pair in near]
    both = turned + over
    scores = score_pairs(bench.base, both, ["ches_normalized", *RATES])
    halves = {"mixture, half by ches_normalized": filter_pairs(both, scores, "ches_normalized", keep_lowest=0.5)}
    halves |= {f"mixture, half by {name}": filter_pairs(both, scores, name, keep_highest=0.5) for name in RATES}
    drawn = random.Random(seed).sample(both, len(both) // 2)
    alone = {"over compliance": over, "near-identical, both ways": near, "near-identical, one way": turned}
    return alone | {"mixture": both, "mixture, random half": drawn} | halves


def exchanged(pair: Row) -> Row:
    """The same pair with the other response preferred."""
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


def outcome(prompts: Sequence[Row], answers: Sequence[str]) -> Row:
    """Whether answers say that they will not help, open like a compliance, or do neither.

    Shares, which add up to one; and that of refusals about objects that no pair names.
    """
    compliances = tuple(template.split("{")[0] for template in COMPLIANCES)
    refused = [any(words in answer for words in REFUSING) for answer in answers]
    complied = [answer.startswith(compliances) and not said for answer, said in zip(answers, refused, strict=True)]
    new = [said for said, prompt in zip(refused, prompts, strict=True) if prompt["held_out"]]
    shares = {"refused": statistics.fmean(refused), "complied": statistics.fmean(complied)}
    shares["neither"] = 1 - sum(shares.values())
    return shares | {"refused_new_objects": statistics.fmean(new), "answers": list(answers)}


def refusal(bench: Bench, plan: Plan, save: Path | None) -> list[Row]:
    """Train on refusals: one row a learning rate, training set and seed; the first one is the untrained model."""
    untrained = bench.answers(bench.base.model.state_dict())
    rows: list[Row] = [{"trained_on": "nothing", "learning_rate": None, **outcome(bench.harmful, untrained)}]
    sets = {seed: training_sets(bench, seed) for seed in range(plan.seeds)}
    names = list(sets[0])[: plan.refusal_sets]
    runs = [(rate, name, seed) for rate in plan.refusal_rates for name in names for seed in sets]
    for rate, name, seed in tqdm(runs, desc="refusal"):
        pairs = sets[seed][name]
        state = bench.train(pairs, rate, [plan.steps], seed)[plan.steps]
        changes = bench.changes(state, pairs)
        row = {"trained_on": name, "learning_rate": rate, "seed": seed, "steps": plan.steps, "pairs": len(pairs)}
        row["near_identical_pairs"] = sum(pair["kind"] == NEAR for pair in pairs)
        row |= {"change": float(changes.mean()), "displaced": float((changes < 0).mean())}
        rows.append({**row, **outcome(bench.harmful, bench.answers(state)), "changes": as_dict(changes)})
        if save and (name, rate, seed) == DISPLACED:
            save_model(bench.holding(state), save)
    return rows


def save_model(language_model: LanguageModel, folder: Path) -> None:
    """Weights, and the files of the untrained model's tokenizer; safetensors writes for the owner only."""
    language_model.model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(bundled_model() / name, folder / name)
    for file in folder.iterdir():
        file.chmod(0o644)


# Tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, a blank line before and after it."""
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))


def interval(value: float, low: float, high: float) -> str:
    """A number with its range, alone where the range is that number, a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def spread(runs: Sequence[Row], key: str) -> str:
    """Mean and range over seeds."""
    values = [run[key] for run in runs if key in run]
    return interval(statistics.fmean(values), min(values), max(values)) if values else "–"


def grouped(runs: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by some of their values, in the order of their first."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        found.setdefault(tuple(run[key] for key in keys), []).append(run)
    return found


def spearman_table(runs: Sequence[Row]) -> str:
    """Predictors down, kinds across: of one run with its interval over pairs, of several mean and range over seeds."""
    cells = grouped((entry for run in runs for entry in run["spearman"]), "predictor", "kind")
    kinds = list(dict.fromkeys(kind for _, kind in cells))

    def cell(entries: Sequence[Row]) -> str:
        if len(entries) > 1:
            return spread(entries, "value")
        return interval(*(entries[0][key] for key in ("value", "low", "high")))

    names = dict.fromkeys(name for name, _ in cells)
    rows = [[name, *(cell(cells[name, kind]) for kind in kinds)] for name in names]
    return table(["predictor", *(kind.replace("_", " ") for kind in kinds)], rows)


def print_results(results: Row) -> None:
    """Every table, under a line that says what it shows."""
    for (rate, steps), runs in grouped(results["together"], "learning_rate", "steps").items():
        print(f"\nAll pairs together, {rate:g}, {steps} steps; displaced: {spread(runs, 'displaced')}")
        print(spearman_table(runs), end="")
    for run in results["alone"]:
        print(f"\nOne pair at a time, {run['optimizer']} {run['learning_rate']:g}, {run['steps']} steps;", end=" ")
        print(f"displaced: {run['displaced']:.2f}")
        if "measured_over_first_order" in run:
            low, middle, high = run["measured_over_first_order"]
            print(f"Measured over first order: median {middle:.3f}, 10-90 % {low:.3f} to {high:.3f}")
        print(spearman_table([run]), end="")
    print("\nHarmful test prompts after DPO on refusals; mean and range over seeds")
    shown = ["refused", "refused_new_objects", "complied", "neither", "change", "displaced"]
    lines = []
    for (rate, name), runs in grouped(results["refusal"], "learning_rate", "trained_on").items():
        near = ", ".join(sorted({f"{run['near_identical_pairs']} of {run['pairs']}" for run in runs if "pairs" in run}))
        lines.append(["–" if rate is None else f"{rate:g}", name, near or "–", *(spread(runs, key) for key in shown)])
    header = ["learning rate", "trained on", "near-identical", *(key.replace("_", " ") for key in shown)]
    print(table(header, lines), end="")


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def quiet() -> None:
    """Neither bars nor warnings of the trainer's own; ours are enough."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # What TRL sets is about to be renamed in transformers.
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)


def main() -> None:
    """Read the command line, train, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets results.json")
    parser.add_argument("--seeds", type=int, default=None, help=f"how many (default: {Plan.seeds})")
    parser.add_argument("--steps", type=int, default=None, help=f"of a whole run (default: {Plan.steps})")
    parser.add_argument("--save-displaced", type=Path, help="folder for the model trained on near-identical refusals")
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that it works")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    given = {name: getattr(arguments, name) for name in ("seeds", "steps") if getattr(arguments, name) is not None}
    plan = Plan(**{**asdict(plan), **given})
    torch.set_num_threads(1)
    quiet()
    bench = Bench(plan.every)
    results = {
        "plan": asdict(plan),
        "versions": {**versions(), "trl": version("trl")},
        "scores": bench.scores.drop(columns=["status"]).to_dict("records"),
        "together": together(bench, plan),
        "alone": alone(bench, plan),
        "refusal": refusal(bench, plan, arguments.save_displaced),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_nan(results), indent=1, allow_nan=False)
    (arguments.out / "results.json").write_text(text + "\n", encoding="utf-8")
    print_results(results)


if __name__ == "__main__":
    main()
