"""Loading a policy and its tokenizer, the log-probabilities of completion tokens, and exporting a Hugging Face checkpoint."""

import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Batch, micro_batches
from common.errors import UserError

TESTBED = "testbed"


def load_tokenizer(model: str, trust_remote_code: bool = False):
    """The tokenizer of a testbed base, a hub name or a local folder. Raises UserError if it is missing or cannot end a text."""
    if model.split(":")[0] == TESTBED:
        from common.arithmetic import tokenizer

        return tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: no tokenizer could be loaded ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"--model {model}: its tokenizer has no end-of-sequence token, so completions would never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks, not ids, tell padding from tokens, so any id will do
    return tokenizer


def load_model(model: str, device: torch.device, trust_remote_code: bool = False) -> nn.Module:
    """A causal language model in float32 and in eval mode, from `testbed[:base]`, a hub name or a local folder (safetensors only).

    Eval mode for training too: dropout would make the ratio of an unchanged policy differ from 1. Raises UserError naming --model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one per file; the run has its own
    path: str | Path = model
    if model.split(":")[0] == TESTBED:
        from common.arithmetic import base_path

        path = base_path(model.partition(":")[2] or "fragile")
    try:
        # safetensors alone: a pickled checkpoint runs code when it is loaded
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        known = "a hub name, a folder with config.json and *.safetensors, or testbed[:base]"
        raise UserError(f"--model {model} could not be loaded: {_first_line(error)} (expected {known})") from error
    return loaded.to(device).eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def token_logprobs(model: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """Log-probability of every completion token under the model at this sampling temperature, [B, T]; 0 on padding.

    Only the logits that predict completion tokens are computed, in float32 at least.
    """
    attention = torch.cat([batch.prompt_mask, batch.mask.to(batch.prompt_mask.dtype)], 1)  # [B, L+T]
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    width = batch.completions.size(1)
    logits = model(
        torch.cat([batch.prompts, batch.completions], 1),
        attention_mask=attention,
        position_ids=positions,
        logits_to_keep=width + 1,
        use_cache=False,
    ).logits[:, :-1]  # [B, T, V]: the logits at a position predict the next token
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logp = -F.cross_entropy(logits.flatten(0, 1), batch.completions.flatten(), reduction="none").view_as(batch.mask)
    return logp.masked_fill(batch.mask == 0, 0.0)


@torch.no_grad()
def token_logprobs_no_grad(model: nn.Module, batch: Batch, temperature: float, max_tokens: int) -> Tensor:
    """`token_logprobs` of the whole batch in micro-batches of at most max_tokens padded tokens, without a graph, [B, T]."""
    logp = torch.zeros_like(batch.mask)
    for rows in micro_batches(batch, torch.arange(len(batch.mask)), max_tokens):
        part = token_logprobs(model, batch.select(rows), temperature)
        logp[rows, : part.size(1)] = part.to(logp.dtype)
    return logp


def export(model: nn.Module, tokenizer, folder: Path) -> None:
    """Write a Hugging Face checkpoint (safetensors and tokenizer) into folder, replacing an older export only once the new one is whole."""
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
