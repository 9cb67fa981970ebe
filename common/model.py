"""Loading, sharding and writing a policy, and the log-probabilities of completion tokens."""

import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from common import ranks
from common.batch import Batch, is_first, micro_batches, pad
from common.errors import require, told_as

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**26  # 256 MiB in float32: 440 tokens of a 150k vocabulary
LORA_ALPHA = 32  # B A x counts 32 / rank times, so that the best --lr does not depend on the rank
# nothing in a pass is random
RECOMPUTE: dict = {"use_reentrant": False, "preserve_rng_state": False}

# --- Loading ---


def loading(model: str):
    """Turn what libraries raise about the files of a model into one line."""
    return told_as(f"--model {model} could not be loaded")


def load_tokenizer(model: str, trust_remote_code: bool = False):
    """The tokenizer of a `model_path`."""
    from transformers import AutoTokenizer

    from testbed.arithmetic import HERE, tokenizer

    if Path(model).parent == HERE:
        return tokenizer()

    with loading(model):
        found = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    told = "its tokenizer has no end-of-sequence token, so completions would never end"
    require(found.eos_token_id is not None, f"--model {model}: {told}")
    if found.pad_token_id is None:
        found.pad_token = found.eos_token  # masks, not ids, tell padding from tokens
    return found


def load_config(model: str, trust_remote_code: bool = False):
    """The config of a model that can be trained. Raises UserError naming --model."""
    from transformers import AutoConfig

    with loading(model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    told = f"--model {model}: its weights are quantised, and cannot be trained"
    require(getattr(config, "quantization_config", None) is None, told)
    return config


def load_whole(
    model: str, device, trust_remote_code: bool = False, dtype: torch.dtype | str = torch.float32
) -> "PreTrainedModel":
    """A causal language model, complete on this rank, in eval mode for training too: dropout would
    make the ratio of an unchanged policy differ from 1. dtype "auto" is the stored one."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report of weights that do not fit is a table
    with loading(model):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,  # a pickled checkpoint would run code when it is loaded
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    # random weights would take their place
    missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    told = f"--model {model}: weights are missing from its files, or of another shape"
    require(not missing, f"{told}: {missing[:1]}")
    return loaded.to(device).eval()


# --- Sharding ---


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations; auto is bfloat16 on GPUs and float32 on CPUs."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def load_model(
    model: str,
    device: torch.device,
    trust_remote_code: bool,
    compute: torch.dtype,
    frozen: bool = False,
    activation_checkpointing: bool = False,
    lora_rank: int = 0,
) -> "PreTrainedModel":
    """A policy to train, float32, or a frozen one; sharded over all ranks where there is a process
    group (FSDP2), and what is not trained then in its compute dtype.

    Every decoder layer is a group that is gathered for its passes; what is left, embeddings, norm
    and lm_head, is the root group. Gradients are summed over ranks in float32, not averaged:
    losses are fractions of the whole batch. With lora_rank, adapters are trained in place of the
    model's own weights.
    """
    alone = not dist.is_initialized()
    how = (device, trust_remote_code) if alone else ("cpu", trust_remote_code, "auto")
    policy = load_whole(model, *how).requires_grad_(not frozen)
    names = policy._no_split_modules or ()  # layers that are sharded and checkpointed one by one
    layers = [module for module in policy.modules() if type(module).__name__ in names]
    if lora_rank:
        add_adapters(policy, lora_rank)
    if not alone:
        mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device.type, (ranks.count(),))
        even = torch.Generator().manual_seed(0)  # every rank draws for whole parameters, all alike
        for module in (*layers, policy):
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    kept = torch.float32 if parameter.requires_grad else compute
                    parameter.data = parameter.data.to(kept)
                    if kept != compute:
                        parameter.data = spread_evenly(parameter.data, even)
            # the root too: kept whole it would keep old weights when no backward pass follows
            module = fully_shard(module, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
        policy.to(device)  # buffers, such as the frequencies of rotary embeddings
        policy.token_logprobs = MethodType(_token_logprobs, policy)
        register_fsdp_forward_method(policy, "token_logprobs")  # gathers the root group
    if activation_checkpointing:
        policy.gradient_checkpointing_enable(RECOMPUTE)
        policy.checkpointed = layers
    return policy


def add_adapters(policy: nn.Module, rank: int) -> None:
    """LoRA (Hu et al., arXiv 2106.09685): beside every linear layer but the head, W x, a product of
    two thin matrices, B A x, which alone has gradients. B begins at 0, A is drawn alike on all
    ranks. Raises UserError naming --lora-rank."""
    with told_as(f"--lora-rank {rank}", ": pip install peft"):
        from peft import LoraConfig, inject_adapter_in_model
    config = LoraConfig(r=rank, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    # peft says of GPT-2's transposed layers that they are
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        inject_adapter_in_model(config, policy)


def spread_evenly(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 weights drawn evenly from all that round to the same bfloat16 numbers; zeros stay.

    Stored bfloat16 weights all lie in the middle of what rounds to them: their bfloat16 copies,
    which compute, would not move at a usual learning rate.
    """
    numbers = weights.bfloat16().float().view(torch.int32)
    noise = torch.empty(weights.shape, dtype=torch.int16, device=weights.device)
    noise.random_(1 - 2**15, 2**15, generator=generator)
    return torch.where(numbers << 1 == 0, numbers, numbers + noise).view(torch.float32)


def full_parameters(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every parameter with its name, whole and in dtype, one at a time; adapters are added to the
    weights that they stand beside. Collective: every rank must go through all."""
    even = torch.Generator(model.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        tensor = parameter.detach()
        if layer and kind == "weight":
            delta = _whole(model.get_submodule(layer).get_delta_weight("default").detach())
            tensor = _whole(tensor).float()
            tensor = (tensor if dtype == torch.float32 else spread_evenly(tensor, even)) + delta
        yield name.replace(".base_layer", ""), _whole(tensor.to(dtype))  # half the traffic


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# --- Training ---


def token_logprobs(model: "PreTrainedModel", batch: Batch, temperature: float) -> Tensor:
    """Log-probability of every completion token at this sampling temperature, [B, T]; 0 on padding.
    Where the model is sharded this is collective: every rank with a batch of its own."""
    if hasattr(model, "token_logprobs"):  # of a sharded model, or one without its adapters
        return model.token_logprobs(batch, temperature)
    return _token_logprobs(model, batch, temperature)


class WithoutAdapters(nn.Module):
    """The policy before training, its adapters off: a reference model that takes no memory."""

    def __init__(self, policy: "PreTrainedModel") -> None:
        super().__init__()
        self.policy = policy

    def token_logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """See `token_logprobs`."""
        adapters: list[Any] = [m for m in self.policy.modules() if hasattr(m, "get_delta_weight")]
        for adapter in adapters:
            adapter.set_scale("default", 0)
        logp = token_logprobs(self.policy, batch, temperature)
        for adapter in adapters:
            adapter.set_scale("default", 1)
        return logp


def _token_logprobs(model: "PreTrainedModel", batch: Batch, temperature: float) -> Tensor:
    # a layer's own flag decides on checkpointing; what is inside stays in eval mode
    for layer in getattr(model, "checkpointed", ()):
        layer.training = torch.is_grad_enabled()
    hidden = (
        _hidden(model, batch) if batch.prompt_of is None else _hidden_prompts_once(model, batch)
    )
    for layer in getattr(model, "checkpointed", ()):
        layer.training = False
    real = batch.mask > 0
    hidden, targets = hidden[real], batch.completions[real]  # [N, D], [N]
    size = max(LOGITS_AT_ONCE // model.config.get_text_config().vocab_size, 1)
    head = model.get_output_embeddings()
    if len(hidden) <= size:
        logp = _target_logprobs(head, hidden, targets, temperature)
    else:  # the logits of a chunk live in its own forward and once more in its backward pass
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        logp = torch.cat(
            [checkpoint(_target_logprobs, head, h, t, temperature, **RECOMPUTE) for h, t in parts]
        )
    return logp.new_zeros(batch.mask.shape).masked_scatter(real, logp)


def _hidden(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """The states before each of the completions' tokens, which predict them. [B, T, D]."""
    tokens = torch.cat([batch.prompts, batch.completions], 1)  # [B, L+T]
    attention = torch.cat([batch.prompt_mask, batch.mask.to(batch.prompt_mask.dtype)], 1)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": attention, "position_ids": positions, "use_cache": False}
    hidden = model.base_model(tokens, **given).last_hidden_state
    return hidden[:, -batch.completions.size(1) - 1 : -1]


def _hidden_prompts_once(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """`_hidden` but for rounding: completions attend to their prompt's keys and values, computed
    once for all of them; the gradient flows back through these."""
    first = is_first(batch.prompt_of)  # ty: ignore[invalid-argument-type]
    of, mask = first.cumsum(0) - 1, batch.prompt_mask[first]  # [B], [U, L] of U prompts
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model.base_model(
        batch.prompts[first], attention_mask=mask, position_ids=positions, use_cache=True
    )
    cache = read.past_key_values
    cache.batch_select_indices(of)
    # nothing is predicted from the last token; but on every rank there must be a pass
    width = max(batch.completions.size(1) - 1, 1)
    attention = torch.cat([batch.prompt_mask, batch.mask[:, :width].to(mask.dtype)], 1)
    written = model.base_model(
        batch.completions[:, :width],
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1)[:, -width:],
        past_key_values=cache,
        use_cache=True,
    )
    hidden = torch.cat([read.last_hidden_state[of, -1:], written.last_hidden_state], 1)
    return hidden[:, : batch.completions.size(1)]


def _target_logprobs(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float):
    """hidden [N, D], targets [N] -> [N]."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


@torch.no_grad()
def token_logprobs_no_grad(
    model: "PreTrainedModel", batch: Batch, temperature: float, max_tokens: int
):
    """`token_logprobs` of the whole batch, [B, T]: every rank does its share, in micro-batches of
    at most max_tokens padded tokens, and gets all."""
    logp = torch.zeros_like(batch.mask)
    for micro in micro_batches(batch, torch.arange(len(batch.mask)), max_tokens):
        part = token_logprobs(model, micro, temperature)
        logp[micro.rows, : part.size(1)] = part.to(logp.dtype)
    return ranks.all_sum(logp)  # every row is 0 on all ranks but one


@torch.no_grad()
def reads_prompts_once(model: str, policy: "PreTrainedModel") -> bool:
    """Whether a prompt can be read once for all its completions, tried with a few tokens: not where
    layers are checkpointed, and so keep no keys and values. Collective. Raises UserError naming
    --model where the model cannot be computed with at all, or changes what its head computes."""
    batch = pad([[5, 6, 7], [5, 6, 7], [8], [8]], [[9, 10, 11], [12]] * 2, 0, policy.device)
    once = replace(batch, prompt_of=torch.tensor([0, 0, 1, 1], device=policy.device))
    head: nn.Module = policy.get_output_embeddings()
    with told_as(f"--model {model} cannot be computed with"):
        each = token_logprobs(policy, batch, 1.0)
        hook = head.register_forward_hook(lambda _head, _given, logits: torch.full_like(logits, 64))
        plain = bool((policy(batch.completions).logits == 64).all())
        hook.remove()
    require(plain, f"--model {model} cannot be trained: it scales or caps the logits of its head")
    try:
        gap = (token_logprobs(policy, once, 1.0) - each).abs().mean()
    except Exception:  # a cache that cannot be selected from, or gone on with by several tokens
        gap = torch.inf
    # a hundredth: more than rounding in bfloat16, less than what another prompt's keys would do
    alike = bool(gap <= 0.01 * each.abs().mean()) and not hasattr(policy, "checkpointed")
    return all(ranks.together(lambda: alike))  # ranks of other passes would wait for each other


def clip_gradients(parameters, max_norm: float) -> float:
    """Scale `.grad` down to the norm max_norm if theirs, over all ranks, is larger; their norm."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return _whole(norm).item()


# --- Writing ---


def export(model: "PreTrainedModel", tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Write a Hugging Face checkpoint, whole or not at all. Collective; rank 0 writes."""
    first = ranks.rank() == 0
    weights = {name: tensor.cpu() for name, tensor in full_parameters(model, dtype) if first}
    saved = model.state_dict()
    weights |= {name: b.cpu() for name, b in model.named_buffers() if first and name in saved}
    ranks.on_first(lambda: _write(model, tokenizer, weights, folder, dtype))


def _write(
    model: "PreTrainedModel", tokenizer, weights: dict, folder: Path, dtype: torch.dtype
) -> None:
    temporary, config = folder.with_name(folder.name + ".tmp"), model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:  # transformers would not save it: keep the tokens alone
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(config)(**{name: getattr(config, name) for name in tokens})
    model.config.dtype = dtype
    with told_as(f"{folder} cannot be written", ": make room, then run.py export"):
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():  # weights are written for their owner alone
            shutil.copymode(temporary / "config.json", file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
