"""How far can ``least_sft_weight`` be trusted? Real DPO with an SFT term on the bundled model, measured pair by pair.

    python scripts/validate_sft_weight.py --out DIR [--seeds N] [--quick]

DPO with beta .1 and alpha times the mean negative log-likelihood of the chosen tokens, in float32, at a constant
learning rate. Alpha is 0, .5, 1 and 2 times the weight that covers, by ``least_sft_weight_exact``, 95 % of the pairs
that would fall without the term: of all bundled pairs only 3 % would. The share of pairs whose ln p(chosen) fell stands
beside the share that the weights foretell.

* alone: plain gradient descent on one pair at a time, one step and five; on every pair that would fall without the
  term, and on some of each kind.
* together: TRL's DPOTrainer with ``loss_type=["sigmoid", "sft"]`` and ``loss_weights=[1, alpha]``, all pairs in batches
  of 64, AdamW with gradients clipped at 1, after 5 steps (each pair seen once) and 60.

Tables go to the terminal in Markdown, every number into results.json. One thread, fixed seeds.
"""

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset
from tqdm import tqdm
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer
from validate_displacement import BETA, PLAIN_TRAINING, Row, Snapshots, State, read, table

from probing import LanguageModel, load, score_pairs
from probing.instruments.gradient_rates import response_logprob
from probing.instruments.pair_scores import as_pairs
from probing.models.layers import find_backbone
from probing.report.regimes import find_covering, mean_chosen_tokens
from probing.runs.common.versions import versions
from probing.statistics.bootstrap import estimate_share
from probing.tokens.pairs import TokenizedPair, tokenize_pairs

MULTIPLES = (0.0, 0.5, 1.0, 2.0)
COLUMNS = ["chosen_tokens", "chosen_logprob", "least_sft_weight", "least_sft_weight_exact", "displacement_rate_exact"]
ALONE_RATES, ALONE_STEPS = (2e-5, 2e-4), (1, 5)
TOGETHER_RATES, TOGETHER_STEPS, BATCH = (1e-5, 2e-4), (5, 60), 64
PAIRS_PER_KIND = 6


class Bench:
    """The untrained model and the pairs with their weights."""

    def __init__(self, every: int) -> None:
        """Of the bundled pairs, one in ``every`` is used."""
        self.base = load("bundled", device="cpu")
        self.pairs = read("pairs")[::every]
        self.scores = score_pairs(self.base, self.pairs, COLUMNS, loss="dpo").set_index("id")
        mean = mean_chosen_tokens(self.scores)
        self.alone = self.scores["least_sft_weight_exact"]
        self.in_batches = self.alone * mean / self.scores["chosen_tokens"]
        # The trainer replaces the forward of its model, so weights are measured in a copy that it never saw.
        self._measured = LanguageModel(copy.deepcopy(self.base.model), self.base.tokenizer)

    def descend(self, pair: TokenizedPair, alpha: float, rate: float) -> list[float]:
        """The change of ln p(chosen) after each of some steps of plain gradient descent on one pair."""
        self._measured.model.load_state_dict(self.base.model.state_dict())
        stack = find_backbone(self._measured)
        parameters = list(self._measured.model.parameters())
        course: list[float] = []
        start = 0.0
        for _ in range(max(ALONE_STEPS) + 1):
            chosen, rejected = (
                response_logprob(stack, ids, pair.prompt_tokens) for ids in (pair.chosen, pair.rejected)
            )
            course.append(float(chosen.detach()))
            margin = chosen - rejected
            start = start if len(course) > 1 else float(margin.detach())
            loss = -torch.nn.functional.logsigmoid(BETA * (margin - start)) - alpha * chosen / pair.chosen_tokens
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter -= rate * gradient
        return [value - course[0] for value in course[1:]]

    def changes(self, state: State) -> "pd.Series[float]":
        """How much ln p(chosen) rose from the untrained model, by id."""
        self._measured.model.load_state_dict(state)
        after = score_pairs(self._measured, self.pairs, ["chosen_logprob"]).set_index("id")["chosen_logprob"]
        return after - self.scores["chosen_logprob"]

    def train(self, alpha: float, rate: float, seed: int) -> dict[int, State]:
        """DPO with an SFT term by AdamW on all pairs, from the untrained model: its weights after some steps."""
        snapshots = Snapshots(TOGETHER_STEPS)
        with tempfile.TemporaryDirectory() as folder:
            settings = DPOConfig(
                output_dir=folder,
                beta=BETA,
                loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, alpha],
                learning_rate=rate,
                lr_scheduler_type="constant",
                max_steps=max(TOGETHER_STEPS),
                per_device_train_batch_size=min(BATCH, len(self.pairs)),
                precompute_ref_log_probs=True,
                seed=seed,
                **PLAIN_TRAINING,
            )
            rows = [{name: pair[name] for name in ("prompt", "chosen", "rejected")} for pair in self.pairs]
            trainer = DPOTrainer(
                model=copy.deepcopy(self.base.model),
                args=settings,
                train_dataset=Dataset.from_list(rows),
                processing_class=self.base.tokenizer,
                callbacks=[snapshots],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return snapshots.states


def cover_falling(least: "pd.Series[float]") -> float:
    """The weight that covers 95 % of the pairs that need one."""
    return find_covering(least[least > 0])


def compare(changes: "pd.Series[float]", least: "pd.Series[float]", alpha: float) -> Row:
    """The share of pairs whose chosen response fell, the share foretold, and how often both agree on a pair."""
    fell, foretold = changes < 0, least.loc[changes.index] > alpha
    return {
        "alpha": alpha,
        "foretold": float(foretold.mean()),
        "fell": asdict(estimate_share(fell.astype(float))),
        "agree": float((fell == foretold).mean()),
        "changes": {name: round(value, 7) for name, value in changes.items()},
    }


def train_alone(bench: Bench, per_kind: int) -> list[Row]:
    """One pair at a time by plain gradient descent: one row a learning rate, multiple and number of steps."""
    kinds = pd.Series([pair["kind"] for pair in bench.pairs])
    rows = [at for _, own in kinds.groupby(kinds, sort=False) for at in own.index[:: max(len(own) // per_kind, 1)]]
    falling = np.flatnonzero(bench.alone.to_numpy() > 0).tolist()
    sample = [bench.pairs[at] for at in sorted({*rows, *falling})]
    tokenized = tokenize_pairs(bench.base.tokenizer, as_pairs(sample))
    covering, found = cover_falling(bench.alone), []
    for rate in ALONE_RATES:
        for multiple in MULTIPLES:
            steps = tqdm(tokenized, desc=f"alone, SGD {rate:g}, {multiple:g} x")
            courses = pd.DataFrame({pair.id: bench.descend(pair, multiple * covering, rate) for pair in steps})
            for count in ALONE_STEPS:
                facts = {"learning_rate": rate, "steps": count, "multiple": multiple}
                found.append({**facts, **compare(courses.loc[count - 1], bench.alone, multiple * covering)})
    return found


def train_together(bench: Bench, seed: int) -> list[Row]:
    """All pairs in batches by AdamW: one row a learning rate, multiple and number of steps."""
    covering = cover_falling(bench.in_batches)
    runs = [(rate, multiple) for rate in TOGETHER_RATES for multiple in MULTIPLES]
    found = []
    for rate, multiple in tqdm(runs, desc=f"together, seed {seed}"):
        for steps, state in bench.train(multiple * covering, rate, seed).items():
            facts = {"learning_rate": rate, "steps": steps, "multiple": multiple, "seed": seed}
            found.append({**facts, **compare(bench.changes(state), bench.in_batches, multiple * covering)})
    return found


def show_alone(rows: Sequence[Row]) -> str:
    """The table of single pairs."""
    lines = [
        [
            f"SGD {row['learning_rate']:g}",
            str(row["steps"]),
            f"{row['multiple']:g}",
            f"{row['alpha']:.3g}",
            f"{row['foretold']:.3f}",
            "{value:.3f} [{low:.3f}, {high:.3f}]".format(**row["fell"]),
            f"{row['agree']:.3f}",
        ]
        for row in rows
    ]
    return table(["one pair at a time", "steps", "times", "alpha", "foretold to fall", "fell", "agree"], lines)


def show_together(rows: Sequence[Row]) -> str:
    """The table of all pairs, means with their range over seeds."""
    frame = pd.DataFrame([{**row, "fell": row["fell"]["value"]} for row in rows])
    lines = []
    for (rate, steps, multiple), own in frame.groupby(["learning_rate", "steps", "multiple"], sort=True):
        spans = [f"{own[name].mean():.3f} [{own[name].min():.3f}, {own[name].max():.3f}]" for name in ("fell", "agree")]
        alpha, foretold = own["alpha"].iloc[0], own["foretold"].iloc[0]
        lines.append([f"AdamW {rate:g}", str(steps), f"{multiple:g}", f"{alpha:.3g}", f"{foretold:.3f}", *spans])
    return table(["all pairs together", "steps", "times", "alpha", "foretold to fall", "fell", "agree"], lines)


def main() -> None:
    """Run everything, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few pairs and one seed: whether it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    bench = Bench(every=5 if options.quick else 1)
    covering = [cover_falling(each) for each in (bench.alone, bench.in_batches)]
    falling = float((bench.scores["displacement_rate_exact"] < 0).mean())
    of_all = find_covering(bench.alone)
    print(f"{len(bench.pairs)} pairs, of which {falling:.1%} would fall; 95 % of all: alpha {of_all:g};")
    print(f"95 % of those that would fall: alpha {covering[0]:g} alone, {covering[1]:g} in batches")
    results: dict[str, Any] = {"versions": versions(), "covering": covering, "falling": falling}
    results["weights"] = {name: float(np.round(value, 6)) for name, value in bench.alone.items()}
    results["alone"] = train_alone(bench, 1 if options.quick else PAIRS_PER_KIND)
    print(show_alone(results["alone"]), flush=True)
    results["together"] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(1 if options.quick else options.seeds):
        results["together"] += train_together(bench, seed)
        print(show_together(results["together"]), flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
