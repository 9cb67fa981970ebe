"""The flags that say where and how a run runs, and the checks of those that all scripts have.

They change place, speed and what is looked at. What decides what is learned stands in the scripts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Literal

import torch
from torch import Tensor

from common import ranks
from common.errors import require


@dataclass
class RunFlags:
    # what the doctor must know of a script, which says so itself: it holds a gradient of the model for every objective at once
    GRADIENT_PER_OBJECTIVE = False
    # flags of numbers of which infinity is one that can be meant: no bound
    INFINITE = ("clip_low", "clip_high", "dual_clip", "tis_cap", "max_grad_norm", "max_logp_gap")

    name = ""  # no flag: of the folder below runs/ without --out, from the command line (tools/names.py); else <script>-s<seed>

    preset: str = ""
    """named values of flags, such as qwen2.5-1.5b-math500 (`python run.py presets` lists them); a flag given beside it wins"""
    out: str = ""
    """run folder; default runs/<script>-<flags given>-s<seed>, with --lr 3e-5 runs/<script>-lr3e-5-s1; numbered when taken"""
    resume: str = ""
    """folder of a stopped run to continue, with the flags it had"""
    eval_every: int = 10
    """evaluate every so many steps; also before the first and after the last"""
    eval_prompts: int = 256
    """held-out prompts evaluated, at most; one sampled and one greedy completion each"""
    eval_split: Literal["test", "tune"] = "test"
    """held-out prompts to evaluate on: choose hyperparameters on tune, report test"""
    checkpoint_every: int = 25
    """write a checkpoint every so many steps; the last two are kept"""
    keep_safe: bool = False
    """also write one at each evaluation that has no objective below its start beyond noise, and keep the last of these beside the two"""
    log_completions: int = 64
    """training completions kept with their text and rewards at the first step and at each that is evaluated, in whole prompts; 0: none"""
    tensorboard: bool = False
    """also write TensorBoard events into the run folder (pip install tensorboard)"""
    wandb: bool = False
    """also log to Weights & Biases (pip install wandb)"""

    model: str = "testbed"
    """testbed[:base], smollm2-135m, a Hugging Face hub name, a local folder, or a .gguf file"""
    trust_remote_code: bool = False
    """let a hub model run its own Python code; only for a source you trust"""
    dataset: str = "arithmetic"
    """arithmetic, arithmetic3, words, math500, reasoning-gym:TASK, a hub name (name:config), or a parquet, json, jsonl or csv file"""
    prompt_column: str = ""
    """column with the prompt, text or chat messages; default: prompt, problem or question"""
    answer_column: str = ""
    """column with the reference answer, nested as in reward_model.ground_truth; default: answer"""
    prompt_suffix: str = ""
    """appended to every prompt; math500 appends the paper's instruction by itself, reasoning-gym one of ours"""
    max_prompt_length: int = 1024
    """drop longer prompts, in tokens"""
    drop_unusable: bool = False
    """leave out, and count, rows whose reference answer no completion could match; else they are an error before the first step"""
    answer_check: Literal["auto", "exact", "math-verify", "boxed", "reasoning-gym"] = "auto"
    """how accuracy compares: auto is exact for what is built in, reasoning-gym for its tasks, else math-verify; boxed is the paper's way"""

    engine: Literal["transformers", "vllm"] = "transformers"
    """what samples the completions; vllm wants a GPU and requirements-vllm.txt"""
    vllm_tp: int = 1
    """vllm: ranks among which one sampler is divided (tensor parallel)"""
    vllm_memory: float = 0.4
    """vllm: share of a GPU's memory for the sampler's weights and cache"""
    vllm_sleep: bool = False
    """vllm: give that memory back while the policy is updated"""
    max_logp_gap: float = 0.0
    """stop when sampler and trainer differ by more nats per token, twice in a row; 0 is 0.001 in float32 and 0.1 in bfloat16"""
    micro_batch_tokens: int = 4096
    """padded tokens in one forward pass of a rank; changes memory and speed, not the result"""
    activation_checkpointing: bool = False
    """keep one activation per layer and recompute the others in the backward pass; changes memory and speed, not the result"""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of activations; auto is bfloat16 on GPUs and float32 on CPUs. Weights, optimizer and sums of gradients are float32"""


# Flags of scripts of earlier versions, with the one value that these still know how to continue.
RETIRED = {"losses": "gap", "scalar": "completion", "variant": "gradient"}


def check_flags(args: RunFlags, count: int) -> None:
    """Raise UserError naming the first flag of a script's `Args` whose value cannot be meant. count: how many ranks this run has."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, tuple) else (value,):
            finite = not isinstance(number, float) or abs(number) <= torch.finfo(torch.float32).max
            meant = name in args.INFINITE and number == inf
            require(finite or meant, f"--{name.replace('_', '-')} {number} must be finite")
    for flag in ("steps", "eval_every", "checkpoint_every", "prompts", "max_new_tokens", "mini_batches", "epochs", "micro_batch_tokens"):
        require(getattr(args, flag) >= 1, f"--{flag.replace('_', '-')} {getattr(args, flag)} must be at least 1")
    parts, among = args.mini_batches * count, f" times the {count} ranks" if count > 1 else ""
    require(args.prompts % parts == 0, f"--prompts {args.prompts} must be divisible by --mini-batches {args.mini_batches}{among}")
    require(args.eval_prompts >= 2, f"--eval-prompts {args.eval_prompts} must be at least 2: the verdict needs a standard error")
    require(args.completions >= 2, "--completions must be at least 2: advantages and covariances compare a prompt's completions")
    require(0 < args.temperature < inf, f"--temperature {args.temperature} must be positive: at 0 all completions are alike")
    require(args.max_grad_norm > 0, f"--max-grad-norm {args.max_grad_norm} must be positive; inf does not clip")
    require(not 0 < args.dual_clip <= 1, f"--dual-clip {args.dual_clip} must be more than 1, the ratio before any update; 0 is off")
    require_not_negative(args, "seed", "lr", "weight_decay", "kl_coef", "tis_cap", "dual_clip", "clip_low", "clip_high", "max_logp_gap")
    require_not_negative(args, "log_completions")
    tell_unused(args, ("clip_low", "clip_high", "dual_clip"), args.estimator == "grpo", "only --estimator grpo clips")


def require_not_negative(args: RunFlags, *flags: str) -> None:
    """Raise UserError naming the first of these flags that is below 0."""
    for flag in flags:
        require(getattr(args, flag) >= 0, f"--{flag.replace('_', '-')} {getattr(args, flag)} must not be negative")


def require_share(args: RunFlags, flag: str) -> None:
    """Raise UserError naming the flag unless it is in (0, 1]."""
    require(0 < getattr(args, flag) <= 1, f"--{flag.replace('_', '-')} {getattr(args, flag)} must be in (0, 1]")


def require_weights(flag: str, values: Tensor) -> None:
    """Raise UserError naming the flag if one of its values [K] is negative, or none is positive, or their sum is infinite."""
    told = ", ".join(f"{value:g}" for value in values.tolist())
    usable = bool((values >= 0).all()) and 0 < values.sum() < inf
    require(usable, f"{flag} {told} must be finite and not negative, nor all zero")


def tell_unused(args: RunFlags, flags: Sequence[str], used: bool, why: str) -> None:
    """Print, on the first rank, which of these flags were changed from their default though they have no use here, and why."""
    defaults = {field.name: field.default for field in fields(args)}
    changed = [f"--{name.replace('_', '-')}" for name in flags if getattr(args, name) != defaults[name]]
    if changed and not used and ranks.rank() == 0:
        print(f"warning: {' and '.join(changed)} will do nothing: {why}")


def require_positive(flag: str, values: Tensor, why: str) -> None:
    """Raise UserError naming the flag and why unless all its values [K] are positive and their sum is finite."""
    told = ", ".join(f"{value:g}" for value in values.tolist())
    require(bool((values > 0).all()) and bool(values.sum() < inf), f"{flag} {told} must be positive and finite: {why}")


def require_within(flag: str, best: Tensor, rewards: Tensor, objectives: Sequence[str]) -> None:
    """Raise UserError naming the flag and the objectives that have a reward above their best value. best [K], rewards [B, K]."""
    above = [name for name, reached in zip(objectives, (rewards > best).any(0).tolist(), strict=True) if reached]
    require(not above, f"{flag} is below a reward of {', '.join(above)}: give the best value each objective can have")


def one_each(
    flag: str, values: Sequence[float], default: float | Sequence[float], of: Sequence[str], device="cpu", what: str = "objectives"
) -> Tensor:
    """A flag with a number for each objective (or for whatever `of` names), or its default where it was not given. -> [len(of)].

    default: a number for each, or all of them. Raises UserError naming the flag unless it has as many numbers as names.
    """
    if not values:
        values = [default] * len(of) if isinstance(default, float) else default
    require(len(values) == len(of), f"{flag} has {len(values)} numbers for {len(of)} {what} ({', '.join(of)})")
    return torch.tensor(values, dtype=torch.float32, device=device)
