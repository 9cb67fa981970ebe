"""Writing a trained policy as a Hugging Face checkpoint."""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from common import ranks
from common.errors import UserError
from common.model import full_parameters
from integrations.model_checks import first_line, mend_generation_config


def export(model: nn.Module, tokenizer, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a Hugging Face checkpoint (safetensors in dtype, and tokenizer) into folder, replacing an older one once the new one is whole.

    Collective; rank 0 gathers it in host memory and writes. Raises UserError if it cannot be written.
    """
    first = ranks.rank() == 0
    weights = {name: tensor.cpu() for name, tensor in full_parameters(model, dtype) if first}
    weights |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in model.state_dict()} if first else {}
    ranks.on_first(lambda: _write(model, tokenizer, weights, folder, dtype))


def _write(model: nn.Module, tokenizer, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        model.config.dtype = dtype
        mend_generation_config(model)
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # a full disk is a SafetensorError, and what a library makes of a model is not foreseen here
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{folder} cannot be written ({getattr(error, 'strerror', None) or first_line(error)})") from error
