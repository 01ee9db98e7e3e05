"""What was proved of a model in memory, kept as long as the model and its structure are."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Value = TypeVar("Value")
OF_A_PASS = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "_output_attentions": False,
    "output_router_logits": False,
}
"""Settings of a config under which a pass returns its last states and nothing else; they are set for every pass, so
that they are no part of a model's structure."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
WANT_GRADIENTS = "make_inputs_require_grads"
"""Name of the library's hook that has the output of the embedding want a gradient."""
ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters")


MOST_STRUCTURES = 4
"""An edit by hooks is another structure; when it ends, what was proved before is known again."""
PROOFS: "WeakKeyDictionary[nn.Module, OrderedDict[str, dict[str, Any]]]" = WeakKeyDictionary()
"""What is known of each model, by its structure; of the structures it had last."""


def recall(model: nn.Module, what: str) -> Any:
    """What ``remember`` kept of this model under a name, in the structure that it has now; None if nothing.

    The structure is every module with its class and ``forward``, the hooks on it and the adapters that are on; the
    shape, dtype and device of every parameter; and the config. Training may change the values of the weights in
    between: what is kept follows from the structure, and was only confirmed by numbers.
    """
    proofs = PROOFS.get(model)
    return None if proofs is None else proofs.get(_describe(model), {}).get(what)


def remember(model: nn.Module, what: str, value: Value) -> Value:
    """Keep something that was proved of a model; it must not hold the model or any part of it. Returns the value."""
    structure, proofs = _describe(model), PROOFS.setdefault(model, OrderedDict())
    proofs.setdefault(structure, {})[what] = value
    proofs.move_to_end(structure)
    if len(proofs) > MOST_STRUCTURES:
        proofs.popitem(last=False)
    return value


def _describe(model: Any) -> str:
    """Hash of the structure of a model."""
    parts = [
        (
            name,
            id(type(module)),
            id(type(module).forward),
            id(_own_forward(module)),
            [_list_hooks(vars(module).get(hooks, {})) for hooks in HOOKS],
            [str(getattr(module, state, None)) for state in ADAPTER_STATE],
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    ]
    weights = [
        (name, list(weight.shape), str(weight.dtype), str(weight.device)) for name, weight in model.named_parameters()
    ]
    config = {name: value for name, value in model.config.to_dict().items() if name not in OF_A_PASS}
    return hashlib.sha256(json.dumps([parts, weights, config], default=str, sort_keys=True).encode()).hexdigest()


def _list_hooks(hooks: Mapping[int, Any]) -> list[int]:
    """Numbers of the hooks that may change what a pass computes.

    With gradient checkpointing trainers hook the embedding again at every step, to have its output want a gradient.
    """
    return [number for number, hook in hooks.items() if getattr(hook, "__name__", "") != WANT_GRADIENTS]


def _own_forward(module: nn.Module) -> Any:
    """The ``forward`` that was set on a module itself, if any; below accelerate's, which reading leaves out."""
    own = vars(module)
    return own.get("_original_forward", own.get("forward"))
