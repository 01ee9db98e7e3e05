"""Started by torchrun in each of two processes: a training run with both callbacks, one of which fails at step 6."""

import json
import os
import sys

import torch
from training_runs import make_trainer, our_rows, pairs_of

from probing.training import pair_set
from probing.training.displacement import DisplacementCallback
from probing.training.geometry import GeometryCallback


def main(out: str) -> None:
    torch.set_num_threads(1)
    near = pairs_of("near_identical_refusal")
    watched = near[48:61]
    callback = DisplacementCallback(watched, every=2, by="category", strict=False)
    geometry = GeometryCallback([row["prompt"][0]["content"] for row in watched], every=2, layers=-1, strict=False)
    measure, calls = pair_set._measure, []

    def measure_badly_at_last(*given):
        calls.append(given)
        # The calls before are those of the baseline and of steps 2 and 4.
        if torch.distributed.get_rank() == 1 and len(calls) == 4:
            raise RuntimeError("no luck in here")
        return measure(*given)

    pair_set._measure = measure_badly_at_last
    trainer = make_trainer(
        near[:32],
        out,
        [callback, geometry],
        steps=6,
        save_steps=4,
        save_strategy="steps",
        per_device_train_batch_size=4,
        ddp_backend="gloo",
    )
    assert trainer.args.world_size == 2
    trainer.train()
    rank = torch.distributed.get_rank()
    with open(f"{out}/rows-{rank}.json", "w", encoding="utf-8") as file:
        json.dump(our_rows(trainer), file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Threads of the process group may keep an interpreter from ending.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
