"""Several devices on one CPU: enough to see whether code brings tensors together before it computes with them."""

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu")
FIRST, SECOND = torch.device("cpu", 1), torch.device("cpu", 2)
# Copies go from any device to any other, and what is on a card may be indexed from the host.
ACROSS = (torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class Cards(TorchFunctionMode):
    """While it is on, every tensor is on the host or a card, and a function of tensors on two of them fails.

    Numbers are computed on the CPU all the same. Single numbers may come from anywhere, as they may on real cards.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return place(args[0])
        if func is torch.Tensor.cpu:
            return put(args[0].clone(), HOST)
        if func is torch.Tensor.to:
            return moved(*args, **kwargs)
        if func is torch.autograd.grad:
            return tuple(put(found, place(given)) for found, given in zip(func(*args, **kwargs), args[1], strict=True))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {place(tensor): None for tensor in tensors if tensor.ndim}
        if len(places) > 1 and func not in ACROSS:
            raise RuntimeError(f"{func.__name__}: tensors on {', '.join(map(str, places))}")
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = HOST
        found = place(tensors[0]) if func in ACROSS else next(iter(places), HOST)
        where = found if asked is None else torch.device(asked)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                put(leaf, where)
        return result


def place(tensor):
    """The device that a tensor is on."""
    return getattr(tensor, "_card", HOST)


def put(tensor, device):
    """Say that a tensor is on a device."""
    tensor._card = torch.device(device)
    return tensor


def moved(tensor, *args, **kwargs):
    """``Tensor.to``."""
    given = [*args, *kwargs.values()]
    others = [value for value in given if isinstance(value, torch.Tensor)]
    dtypes = [other.dtype for other in others] + [value for value in given if isinstance(value, torch.dtype)]
    devices = [place(other) for other in others]
    devices += [torch.device(value) for value in given if isinstance(value, torch.device | str)]
    return put(tensor.to(*dtypes).view_as(tensor), devices[0] if devices else place(tensor))


class Brings(AlignDevicesHook):
    """accelerate's hook, but for the moving of weights, which are only said to be elsewhere."""

    def init_hook(self, module):
        return module


def spread(model: nn.Module, head: torch.device = SECOND) -> nn.Module:
    """A Llama whose first half is on one card and whose second half is on another, as accelerate dispatches it."""
    layers = len(model.model.layers)
    where = {f"model.layers.{layer}": FIRST if layer < layers // 2 else SECOND for layer in range(layers)}
    where |= {"model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.norm": SECOND, "lm_head": head}
    for name, device in where.items():
        for part in model.get_submodule(name).modules():
            add_hook_to_module(part, Brings(execution_device=device))
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                put(tensor, device)
    return add_hook_to_module(model, Brings(execution_device=FIRST, io_same_device=True))
