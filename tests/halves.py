"""Models in bf16 and the same weights in float32, and how far results of the one may be from the other's."""

import copy

import tiny
import torch

from probing import LanguageModel

# Widths that torch's flash attention takes in half precision: heads of 16.
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
TIMES = 4
SLACK = 1e-2
WORDS = "the answer is near and nothing nearer than a small boat of wood paper string or glue I cannot help".split()
SHARED = [
    {
        "id": str(number),
        "prompt": " ".join(WORDS[number : number + 2 + 3 * number]) + "?",
        "chosen": " " + " ".join(WORDS[number % 5 : number % 5 + 4 + number]),
        "rejected": " " + " ".join(WORDS[-3 - number :][::-1]),
    }
    for number in range(6)
]
"""Preference pairs of many lengths, the prompt of some longer than their responses."""


def twins(device, family="llama", seed=0, **changes):
    """The same model in bf16 on a device, and in float32 on the CPU with the weights of the bf16 one."""
    exact = tiny.make_model(family, seed=seed, **{**SHAPE, **changes})
    exact.model.to(torch.bfloat16)
    half = LanguageModel(copy.deepcopy(exact.model).to(device), exact.tokenizer)
    exact.model.float()
    return half, exact


def assert_as_good_as_plain(found, plain, exact, what=""):
    """Of numbers in bf16: no further from float32 than some times what the plain way in bf16 is, and a little slack.

    Every way rounds each state to eight bits, in its own order, so two ways differ by about as much as each differs
    from float32: the largest deviation of one is a measure for that of the other, of which ``TIMES`` is a multiple that
    chance does not reach. The slack is relative to the largest number, where the plain way happens to be right.
    """
    found, plain, exact = (torch.as_tensor(values).double().cpu() for values in (found, plain, exact))
    assert found.shape == plain.shape == exact.shape
    allowed = TIMES * (plain - exact).abs().max() + SLACK * exact.abs().max()
    off = (found - exact).abs().max()
    assert off <= allowed, f"{what} is off by {off:.3g} where {allowed:.3g} is allowed"
