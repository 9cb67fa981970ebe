"""Loading a policy and its tokenizer, sharding it, and the log-probabilities of completion tokens."""

from collections.abc import Iterator
from types import MethodType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from common import ranks
from common.batch import Batch, is_first, micro_batches
from common.errors import UserError
from integrations.model_checks import check_config, check_weights, files_of, loading
from integrations.pretrained import TESTBED, model_path
from integrations.rounding import spread_evenly

LOGITS_AT_ONCE = 2**26  # 256 MiB in float32, of which a pass holds a few copies; 440 tokens of a 150k vocabulary
RECOMPUTE = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is random in a forward pass without dropout


def load_tokenizer(model: str, trust_remote_code: bool = False):
    """The tokenizer of a testbed base, a hub name or a local folder. Raises UserError if it is missing or cannot end a text."""
    if model.split(":")[0] == TESTBED:
        from testbed.arithmetic import tokenizer

        return tokenizer()
    from transformers import AutoTokenizer

    with loading(model, "no tokenizer could be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(**files_of(model_path(model)), trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(f"--model {model}: its tokenizer has no end-of-sequence token, so completions would never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks, not ids, tell padding from tokens, so any id will do
    return tokenizer


def load_config(model: str, trust_remote_code: bool = False):
    """The config of a model that can be trained. Raises UserError naming --model."""
    from transformers import AutoConfig

    with loading(model, "its config could not be loaded"):
        config = AutoConfig.from_pretrained(**files_of(model_path(model)), trust_remote_code=trust_remote_code)
    check_config(model, config)
    return config


def load_whole(model: str, device: torch.device, trust_remote_code: bool = False, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """A causal language model, complete on this rank and in eval mode, from `testbed[:base]`, a hub name or a local folder (safetensors).

    Eval mode for training too: dropout would make the ratio of an unchanged policy differ from 1. dtype "auto" is the one it is stored in.
    Raises UserError naming --model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one per file; the run has its own
    load_config(model, trust_remote_code)  # says what is wrong with it in our words
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of weights that do not fit is a table; ours is a line
    # safetensors alone: a pickled checkpoint runs code when it is loaded. `info` tells of weights that are missing or of another shape
    flags = {"trust_remote_code": trust_remote_code, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with loading(model, "no weights could be loaded, from a hub name, a folder with config.json and *.safetensors, or testbed[:base]"):
            loaded, info = AutoModelForCausalLM.from_pretrained(**files_of(model_path(model)), dtype=dtype, **flags)
    finally:
        logging.set_verbosity(verbosity)
    check_weights(model, loaded, info)
    return loaded.to(device).eval()


# --- Sharding ---


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations: `float32`, `bfloat16`, or for `auto` bfloat16 on GPUs and float32 on CPUs. Weights stay in float32."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def load_model(
    model: str,
    device: torch.device,
    trust_remote_code: bool = False,
    compute: torch.dtype = torch.float32,
    frozen: bool = False,
    activation_checkpointing: bool = False,
) -> nn.Module:
    """A policy to train, float32, or a frozen one in its compute dtype; sharded over all ranks where there is a process group (FSDP2).

    Every decoder layer is a group that is gathered for its forward and backward pass; what is left, embeddings, last norm and lm_head,
    is the root group, so that tied embeddings stay one parameter. Compute in `compute`, sums of gradients over ranks in float32: sums,
    not means, because losses are fractions of the whole batch. activation_checkpointing keeps one tensor per layer and token and
    recomputes the rest in the backward pass. A policy that computes in bfloat16 begins with weights that are spread evenly:
    integrations/rounding.py says why. Raises UserError naming --model.
    """
    if not dist.is_initialized():
        policy = load_whole(model, device, trust_remote_code)
        layers = decoder_layers(policy)
    else:
        # in host memory and in the dtype it is stored in; layer by layer, the shards then go to the device as float32
        policy = load_whole(model, torch.device("cpu"), trust_remote_code, "auto")
        layers, tied = decoder_layers(policy), _is_tied(policy)
        mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device.type, (ranks.count(),))
        even = torch.Generator().manual_seed(0)  # every rank draws for whole parameters, in one order: the same on any number of ranks
        for module in (*layers, policy):
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.to(compute if frozen else torch.float32)
                    if not frozen and compute == torch.bfloat16:
                        parameter.data = spread_evenly(parameter.data, even)
            # the root too is resharded after its forward pass: kept whole it would keep old weights when no backward pass follows
            fully_shard(module, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
            module.set_gradient_divide_factor(1.0)  # each group has its own
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
        if tied != _is_tied(policy):
            raise RuntimeError(f"sharding {model} has untied its embeddings")
        policy.to(device)  # buffers, such as the frequencies of rotary embeddings
        policy.token_logprobs = MethodType(_token_logprobs, policy)
        register_fsdp_forward_method(policy, "token_logprobs")  # so that the root group is gathered for it
    if activation_checkpointing:
        policy.gradient_checkpointing_enable(RECOMPUTE)
        policy.checkpointed = layers
    return policy.requires_grad_(not frozen)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that are sharded and checkpointed one by one: those of the class that the architecture says not to split."""
    return [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]


def _is_tied(model: nn.Module) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def full_parameters(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every parameter with its name, whole and in dtype, one at a time; tied ones once. Collective: every rank must go through all."""
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to(dtype)  # before it is gathered: half the traffic in bfloat16
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# --- Log-probabilities ---


def token_logprobs(model: nn.Module, batch: Batch, temperature: float) -> Tensor:
    """Log-probability of every completion token under the model at this sampling temperature, [B, T]; 0 on padding.

    Logits exist for completion tokens only, for a few hundred at a time if the vocabulary is large, and in float32 at least. Where the
    model is sharded this is collective: every rank with a batch of its own, any of any size.
    """
    return model.token_logprobs(batch, temperature) if isinstance(model, FSDPModule) else _token_logprobs(model, batch, temperature)


def _token_logprobs(model: nn.Module, batch: Batch, temperature: float) -> Tensor:
    # checkpointing is decided by each layer's own flag, read in its forward pass; the modules inside it stay in eval mode, without dropout
    for layer in getattr(model, "checkpointed", ()):
        layer.training = torch.is_grad_enabled()
    hidden = _hidden(model, batch) if batch.prompt_of is None else _hidden_prompts_once(model, batch)  # [B, T, D]
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
        logp = torch.cat([checkpoint(_target_logprobs, head, h, t, temperature, **RECOMPUTE) for h, t in parts])
    return logp.new_zeros(batch.mask.shape).masked_scatter(real, logp)


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    """The states that predict the completions' tokens, each at the position before its token. [B, T, D]."""
    attention = torch.cat([batch.prompt_mask, batch.mask.to(batch.prompt_mask.dtype)], 1)  # [B, L+T]
    tokens, positions = torch.cat([batch.prompts, batch.completions], 1), (attention.cumsum(1) - 1).clamp(min=0)
    hidden = model.base_model(tokens, attention_mask=attention, position_ids=positions, use_cache=False).last_hidden_state
    return hidden[:, -batch.completions.size(1) - 1 : -1]


def _hidden_prompts_once(model: nn.Module, batch: Batch) -> Tensor:
    """`_hidden`, the same but for rounding. Completions attend to their prompt's keys and values, which are computed once for all of them;
    the gradient flows back through them."""
    first = is_first(batch.prompt_of)
    of, mask = first.cumsum(0) - 1, batch.prompt_mask[first]  # [B], [U, L] of U prompts
    read = model.base_model(batch.prompts[first], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True)
    cache = read.past_key_values
    cache.batch_select_indices(of)
    width = max(batch.completions.size(1) - 1, 1)  # nothing is predicted from the last token; but on every rank there must be a pass
    attention = torch.cat([batch.prompt_mask, batch.mask[:, :width].to(mask.dtype)], 1)
    positions = (attention.cumsum(1) - 1)[:, -width:]
    following = {"attention_mask": attention, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    hidden = model.base_model(batch.completions[:, :width], **following).last_hidden_state
    return torch.cat([read.last_hidden_state[of, -1:], hidden], 1)[:, : batch.completions.size(1)]


def _target_logprobs(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """hidden [N, D], targets [N] -> [N]."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


@torch.no_grad()
def token_logprobs_no_grad(model: nn.Module, batch: Batch, temperature: float, max_tokens: int) -> Tensor:
    """`token_logprobs` of the whole batch without a graph, [B, T]: every rank does its share, in micro-batches of at most max_tokens
    padded tokens, and gets all."""
    logp = torch.zeros_like(batch.mask)
    for micro in micro_batches(batch, torch.arange(len(batch.mask)), max_tokens):
        part = token_logprobs(model, micro, temperature)
        logp[micro.rows, : part.size(1)] = part.to(logp.dtype)
    return ranks.all_sum(logp)  # every row is 0 on all ranks but one
