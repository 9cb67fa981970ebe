"""The flags that say what a run is trained on, where and how it runs, and the checks of those that
all scripts have. How it learns stands in the scripts.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from common.errors import require
from rewards import DEFAULT

LARGEST = torch.finfo(torch.float32).max


@dataclass
class RunFlags:
    seed: int = 1
    """decides prompts, completions and mini-batches"""
    steps: int = 100
    """training steps, each on fresh completions (paper: 810)"""
    rewards: tuple[str, ...] = DEFAULT
    """objectives as module:function or file.py:function, any number, named after the function"""
    max_new_tokens: int = 56
    """longest completion, in tokens (paper: 1024)"""
    temperature: float = 1.0
    """sampling temperature of training and of the sampled evaluation"""

    preset: str = ""
    """named values of flags (`python run.py presets` lists them); a flag given beside it wins"""
    out: str = ""
    """run folder; default runs/<script>-s<seed>, numbered when taken"""
    resume: str = ""
    """folder of a stopped run to continue, with the flags it had"""
    eval_every: int = 10
    """evaluate every so many steps; also before the first and after the last"""
    eval_prompts: int = 256
    """held-out prompts evaluated, at most, each with a greedy completion and --eval-samples"""
    eval_samples: int = 1
    """sampled completions of each held-out prompt (avg@k)"""
    eval_split: Literal["test", "tune"] = "test"
    """held-out prompts to evaluate on: choose hyperparameters on tune, report test"""
    checkpoint_every: int = 25
    """write a checkpoint every so many steps; the last two are kept"""
    keep_safe: bool = False
    """also write one at each evaluation that has no objective below its start beyond noise, and
    keep the last of these beside the two"""
    log_completions: int = 64
    """training completions kept with their text and rewards at the first step and at each that is
    evaluated, in whole prompts; 0: none"""
    track: Literal["", "tensorboard", "wandb", "trackio"] = ""
    """also log there (pip install it): TensorBoard's events go into the run folder"""

    model: str = "testbed"
    """testbed[:base], smollm2-135m, a Hugging Face hub name, or a local folder"""
    trust_remote_code: bool = False
    """let a hub model run its own Python code; only for a source you trust"""
    dataset: str = "arithmetic"
    """arithmetic, arithmetic3, words, math500, reasoning-gym:TASK, a hub name (name:config), a
    parquet, json, jsonl or csv file, or a folder with train and test files"""
    prompt_column: str = ""
    """column with the prompt, text or chat messages; default: prompt, problem or question"""
    answer_column: str = ""
    """column with the reference answer, which may be nested;
    default: answer, reward_model.ground_truth or solution"""
    prompt_suffix: str = ""
    """appended to every prompt; math500 and reasoning-gym append an instruction by themselves"""
    max_prompt_length: int = 1024
    """drop longer prompts, in tokens"""
    drop_unusable: bool = False
    """leave out, and count, rows whose reference answer no completion could match; else they are an
    error before the first step"""
    answer_check: Literal["auto", "exact", "math-verify", "boxed", "reasoning-gym"] = "auto"
    """how accuracy compares: auto is exact for arithmetic, arithmetic3 and words, reasoning-gym for
    its tasks, else math-verify; boxed is the paper's way"""

    engine: Literal["transformers", "vllm"] = "transformers"
    """what samples the completions; vllm wants a GPU and requirements-vllm.txt"""
    vllm_tp: int = 1
    """vllm: ranks among which one sampler is divided (tensor parallel)"""
    vllm_memory: float = 0.4
    """vllm: share of a GPU's memory for the sampler's weights and cache"""
    vllm_sleep: bool = False
    """vllm: give that memory back while the policy is updated"""
    max_logp_gap: float = 0.0
    """stop when sampler and trainer differ by more nats per token, twice in a row; 0 is 0.001 in
    float32 and 0.1 in bfloat16"""
    micro_batch_tokens: int = 4096
    """padded tokens in one forward pass of a rank; changes memory and speed, not the result"""
    lora_rank: int = 0
    """train adapters of this rank beside the model's linear layers (pip install peft), with about
    ten times the --lr; 0 trains all weights"""
    activation_checkpointing: bool = False
    """keep one activation per layer and recompute the others in the backward pass; changes memory
    and speed, not the result"""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of activations; auto is bfloat16 on GPUs and float32 on CPUs. Weights, optimizer and sums of
    gradients are float32"""


def check(args, count: int) -> None:
    """Raise UserError naming the first flag whose value cannot be meant. count: of ranks."""
    whole = ("eval_samples", "eval_every", "checkpoint_every", "prompts", "max_new_tokens")
    at_least(args, 1, "steps", *whole, "mini_batches", "epochs", "micro_batch_tokens", "warmup")
    at_least(args, 2, "eval_prompts", "completions")  # for a standard error, for a covariance
    at_least(
        args,
        0,
        "seed",
        "lr",
        "weight_decay",
        "kl_coef",
        "log_completions",
        "desired_kl",
        "lora_rank",
    )
    told = "--desired-kl takes a step's length from completions that it has not trained on yet"
    require(not args.desired_kl or args.mini_batches > 1, f"{told}: --mini-batches 2 or more")
    share(args, "vllm_memory")
    unbounded = ("clip_low", "clip_high", "dual_clip", "tis_cap", "max_logp_gap")
    at_least(args, 0, *unbounded, most=inf)
    parts = f"--mini-batches {args.mini_batches} times the {count} ranks"
    divides = args.prompts % (args.mini_batches * count) == 0
    require(divides, f"--prompts {args.prompts} must be divisible by {parts}")
    hot = 0 < args.temperature < inf
    require(hot, f"--temperature {args.temperature} must be positive: at 0 completions are alike")
    require(args.max_grad_norm > 0, f"--max-grad-norm {args.max_grad_norm} must be positive")
    require(not 0 < args.dual_clip <= 1, f"--dual-clip {args.dual_clip} must be above 1; 0 is off")


def flag(name: str) -> str:
    """A field's name as it is typed."""
    return f"--{name.replace('_', '-')}"


def at_least(args, low: float, *names: str, most: float = LARGEST) -> None:
    """Raise UserError naming the first of these flags that is below `low`, or infinite where `most`
    is not."""
    for name in names:
        value = getattr(args, name)
        finite = " and finite" if most < inf else ""
        require(low <= value <= most, f"{flag(name)} {value} must be at least {low}{finite}")


def share(args, *names: str) -> None:
    """Raise UserError naming the first of these flags that is not in (0, 1]."""
    for name in names:
        value = getattr(args, name)
        require(0 < value <= 1, f"{flag(name)} {value} must be above 0 and at most 1")


def clips(args) -> tuple[float, float, float]:
    """(lower, upper, dual) of the clipped surrogate; without --estimator grpo none acts."""
    if args.estimator != "grpo":
        return inf, inf, 0.0
    return args.clip_low, args.clip_high, args.dual_clip


def one_each(name: str, values, default, of: list[str], device="cpu", most=LARGEST) -> Tensor:
    """A flag with a number for each objective (or whatever `of` names), or where it was not given
    its default: a number for each, or one for all. -> [len(of)]. Raises UserError naming it if
    there are more or fewer, or one is above `most`."""
    if not values:
        values = [default] * len(of) if isinstance(default, float) else default
    told = f"{name} has {len(values)} numbers for {len(of)} objectives ({', '.join(of)})"
    require(len(values) == len(of), told)
    require(all(-LARGEST <= v <= most for v in values), f"{name} {values} must be finite")
    return torch.tensor(values, dtype=torch.float32, device=device)


def positive(name: str, values: Tensor, some: bool = False) -> Tensor:
    """The values [K], unless one is not positive (with `some`: one is negative, or all are 0) or
    their sum is infinite: then UserError naming the flag."""
    usable = bool((values >= 0).all() if some else (values > 0).all())
    told = ", ".join(f"{value:g}" for value in values.tolist())
    wanted = "not negative, nor all zero" if some else "positive"
    require(usable and bool(0 < values.sum() < inf), f"{name} {told} must be finite and {wanted}")
    return values


def shares(name: str, values, of: list[str], device="cpu", some: bool = True) -> Tensor:
    """Weights of the objectives scaled to sum 1, by default equal. -> [K]. See `positive`."""
    values = positive(name, one_each(name, values, 1 / len(of), of, device), some)
    return values / values.sum()


def within(name: str, best: Tensor, rewards: Tensor) -> None:
    """Raise UserError naming the flag if a reward is above its best value. best [K], rewards
    [B, K]."""
    told = f"{name} {', '.join(f'{value:g}' for value in best.tolist())} is below a reward"
    require(not (rewards > best).any(), f"{told}: give the best value each objective can have")
