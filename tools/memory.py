"""How much memory a run needs, term by term, from the sizes of its model and its flags; no weights are loaded.

Exact: what is kept from step to step, and the files. Estimates, on the safe side: activations, the copies around a gathered layer, and
what a sampler needs while it samples. Not counted: the CUDA context (about 1 GiB per process), NCCL, fragments, and the data set.
Holds for dense decoder models; of a mixture of experts the parameters are right and the activations are not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from common.model import LOGITS_AT_ONCE, decoder_layers

PHASES = ("start", "sampling", "update", "end")  # besides "always"; a run is in one of them at a time


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; parameters are counted in numbers, not bytes, and tied ones once."""

    parameters: int  # N, all of them
    layer: int  # the largest decoder layer
    root: int  # what no decoder layer holds: embeddings, last norm, lm_head
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    stored: int = 2  # bytes per parameter in its files


@dataclass(frozen=True)
class Setup:
    """What else the terms depend on, by the names of the flags where there is one. Sizes in tokens, bytes, or as said."""

    ranks: int = 1  # W
    local_ranks: int = 1  # of them, on this node
    sharded: bool = False  # True on GPUs and wherever there is a process group
    compute_bytes: int = 4  # of the compute dtype
    device_bytes: int = 0  # memory of one GPU, for vLLM's share; 0 on a CPU
    gradients: int = 1  # held at once: 1, or one per objective where an algorithm weighs gradients
    kl: bool = True  # kl_coef > 0
    prompts: int = 16
    completions: int = 16
    mini_batches: int = 2
    max_prompt_length: int = 1024  # of the longest prompt that there is, where that is known
    max_new_tokens: int = 1024
    micro_batch_tokens: int = 4096
    activation_checkpointing: bool = False
    keep_safe: bool = False
    engine: str = "transformers"
    vllm_tp: int = 1
    vllm_memory: float = 0.4
    vllm_sleep: bool = False


@dataclass(frozen=True)
class Term:
    """One part of the need: bytes per rank on the device, per node in host memory, of the whole run on disk."""

    name: str
    where: str  # device, host or disk; without a GPU the device's terms too are in host memory, once per rank
    phase: str  # always, or one of PHASES
    bytes: int
    formula: str


def shape_of(config, trust_remote_code: bool = False) -> Shape:
    """The sizes of the causal language model that a transformers config describes, counted on the meta device: no memory is taken."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
    total, heads = sum(p.numel() for p in model.parameters()), text.num_attention_heads
    return Shape(
        parameters=total,
        layer=max(layers),
        root=total - sum(layers),
        layers=len(layers),
        hidden=text.hidden_size,
        # GPT-2 has n_inner, None for four times the width
        intermediate=getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab=text.vocab_size,
        stored=(getattr(config, "dtype", None) or torch.float32).itemsize,
    )


def layer_activations(shape: Shape, compute_bytes: int) -> int:
    """Bytes per token that one decoder layer keeps for its backward pass.

    Inputs of its norms, projections and residual sums; queries, keys, values (repeated to all heads) and the attention's output; four
    tensors of the MLP; a float32 copy in each norm. Norms of queries and keys are counted whether there are any or not.
    """
    attention, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    values = 4 * shape.hidden + 4 * attention + 4 * shape.intermediate
    return compute_bytes * values + 8 * shape.hidden + (4 + 2 * compute_bytes) * (attention + keys)


def terms(shape: Shape, setup: Setup) -> list[Term]:
    """Every term of the need. Pure. Without a process group (`sharded` False) W is 1, and no layer is gathered and nothing copied."""
    s, N, W, c, local = setup, shape.parameters, setup.ranks, setup.compute_bytes, setup.local_ranks
    held = 1 if s.gradients == 1 else s.gradients + s.kl  # their weighted sum is formed in the first
    group = max(shape.layer, shape.root)
    rows = -(-s.prompts // W) * s.completions  # a rank samples whole prompts
    length = s.max_prompt_length + s.max_new_tokens
    # a micro-batch has one completion at least, and at most a rank's share of a mini-batch
    tokens = min(max(s.micro_batch_tokens, length), -(-s.prompts * s.completions // (s.mini_batches * W)) * length)
    layer = layer_activations(shape, c)
    logits = min(LOGITS_AT_ONCE, tokens * shape.vocab)
    export = c * N
    found = [
        Term("weights", "device", "always", 4 * N // W, "4 N / W: float32"),
        Term("AdamW m", "device", "always", 4 * N // W, "4 N / W"),
        Term("AdamW v", "device", "always", 4 * N // W, "4 N / W"),
        Term("gradients", "device", "always", held * 4 * N // W, "4 N / W, times K + 1 (K without KL) if K gradients are weighed"),
    ]
    if s.kl:
        found += [Term("reference", "device", "always", c * N // W, "c N / W")]
    if s.sharded:
        gathered = c * (shape.root + 2 * shape.layer)
        found += [
            Term("gathered groups", "device", "update", gathered, "c (root + 2 layer): the root group, a layer and the next one"),
            Term("gathered gradient", "device", "update", (c + 4) * group, "(c + 4) max(root, layer): before and in the sum over ranks"),
        ]
    if s.activation_checkpointing:
        kept, formula = tokens * (c * shape.layers * shape.hidden + layer), "tokens (c layers hidden + one layer's)"
    else:
        kept, formula = tokens * shape.layers * layer, "tokens times layers times one layer's"
    found += [
        Term("activations", "device", "update", kept, formula),
        Term("logits", "device", "update", 16 * logits, f"16 min(2^{LOGITS_AT_ONCE.bit_length() - 1}, tokens vocab): 4 float32 copies"),
    ]
    if s.engine == "vllm":
        share, weights = int(s.vllm_memory * s.device_bytes), c * N // s.vllm_tp
        found += [Term("vLLM", "device", "sampling" if s.vllm_sleep else "always", share, "its share of the GPU: weights, cache, graphs")]
        if s.vllm_sleep:
            found += [Term("vLLM asleep", "host", "always", weights * local, "c N / tp per rank")]
        if not s.device_bytes:
            found += [Term("vLLM on a CPU", "host", "always", (weights + 2**30) * local, "c N / tp + 1 GiB of cache, per rank")]
    else:
        cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * c * rows * length
        found += [
            Term("key-value cache", "device", "sampling", cache, "2 c layers kv_heads head_dim rows (prompt + new tokens)"),
            Term("probabilities", "device", "sampling", 32 * rows * shape.vocab, "32 rows vocab: 4 float64 copies"),
        ]
        if s.sharded:
            found += [Term("sampler", "device", "always", c * N, "c N: a whole copy in the compute dtype")]
    loading = (shape.stored * N + 4 * group) * local if s.sharded else 0  # otherwise it is read into its place
    return [
        *found,
        Term("loading", "host", "start", loading, "(stored N + 4 max(root, layer)) per rank, which reads the whole model"),
        Term("export", "host", "end", export if s.sharded else 0, "c N: gathered by the first rank"),
        Term("checkpoints", "disk", "always", (3 + s.keep_safe) * 12 * N, "12 N: two, with --keep-safe three, while one more is written"),
        Term("exported model", "disk", "end", export, "c N"),
    ]


def peak(found: Iterable[Term], **places: int) -> int:
    """The largest need of any phase, in bytes, over the places named, each counted so many times: peak(found, device=1)."""
    found = [(term.phase, term.bytes * places[term.where]) for term in found if term.where in places]
    steady = sum(size for phase, size in found if phase == "always")
    return steady + max(sum(size for phase, size in found if phase == now) for now in PHASES)


def readable(size: float) -> str:
    """Bytes as a person reads them: 512 B, 3.1 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
