"""A low-rank change of weights written as an adapter (LoRA) that PEFT loads."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from probing.errors import ModelInvalid
from probing.models.adapters import PEFT_PREFIX
from probing.models.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS


def write_lora(
    folder: Path, base: str, revision: str | None, factors: Sequence[tuple[str, Tensor, Tensor, bool]]
) -> dict[str, Tensor]:
    """Write an adapter whose product is added as it is, without a factor.

    Args:
        folder: an empty folder.
        base: folder or hub id of the model.
        revision: its revision on the hub.
        factors: module, down [rank in], up [out rank], and whether the module is an embedding (of which ``in`` is the
            vocabulary), of every module that is changed.

    Returns:
        The tensors that were written, by name.

    Raises:
        ModelInvalid: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ModelInvalid("a LoRA needs peft: pip install 'model-probing[train]'") from error
    rank = len(factors[0][1])
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=[module for module, *_ in factors],
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
    )
    tensors: dict[str, Tensor] = {}
    for module, down, up, embedding in factors:
        first, second = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
        tensors[f"{PEFT_PREFIX}{module}.lora_{first}"] = down.contiguous()
        tensors[f"{PEFT_PREFIX}{module}.lora_{second}"] = up.contiguous()
    config.save_pretrained(str(folder))
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    # The library makes files that nobody else may read.
    shutil.copymode(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS)
    return tensors
