"""What a run stands on, made from its flags: ranks, data, engine, models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from common import ranks
from common.errors import require
from common.flags import RunFlags, check_flags
from common.model import load_config, load_model, load_tokenizer
from common.rollout import make_engine
from integrations.model_checks import check_export, check_tokens, longest_sequence
from integrations.probe import check_architecture
from prompts import Prompts, answer_check, doubts, load_splits


def start(args: RunFlags) -> torch.device:
    """Start the ranks and check the flags; this rank's device. Raises UserError naming the flag."""
    device = ranks.start(single=args.engine == "vllm" or args.compute_dtype == "bfloat16")
    check_flags(args, ranks.count())
    return device


@dataclass(frozen=True)
class Data:
    tokenizer: object
    train: Prompts
    held_out: Prompts  # to evaluate on
    answer_check: str  # how accuracy compares answers: exact, math-verify or boxed


def load_data(args: RunFlags, objectives: Mapping[str, Callable]) -> Data:
    """Tokenizer and prompts. objectives: the reward functions, which may be unable to use an answer. Raises UserError naming the flag, also
    where there are fewer training prompts than a step takes."""
    tokenizer = load_tokenizer(args.model, args.trust_remote_code)
    splits = load_splits(args, tokenizer, objectives)
    train, held_out = splits["train"], splits[args.eval_split]
    require(args.prompts <= len(train), f"--prompts {args.prompts} is more than the {len(train)} training prompts")
    few = f"--eval-split {args.eval_split} has {len(held_out)} prompt: a standard error needs two; give a larger --dataset"
    require(len(held_out) >= 2, few)
    held_out = held_out.select(range(min(args.eval_prompts, len(held_out))))
    check_tokens(args.model, load_config(args.model, args.trust_remote_code), tokenizer, train.ids + held_out.ids)
    if ranks.rank() == 0 and (doubt := doubts(train, tokenizer, args.model)):
        print(f"warning: {doubt}")
    return Data(tokenizer, train, held_out, answer_check(args.answer_check, args.dataset))


def load_models(args: RunFlags, data: Data, device: torch.device, compute: torch.dtype) -> tuple[object, nn.Module, nn.Module | None]:
    """(engine, policy, reference model), the last one None at --kl-coef 0. compute: dtype of activations. Raises UserError naming --model.

    The engine comes first: vLLM measures the free memory when it starts.
    """
    config = load_config(args.model, args.trust_remote_code)
    length = longest_sequence(args.model, config, data.train.ids + data.held_out.ids, args.max_new_tokens)
    vllm = {"vllm_tp": args.vllm_tp, "vllm_memory": args.vllm_memory, "vllm_sleep": args.vllm_sleep}
    engine = make_engine(args.engine, args.model, data.tokenizer, device, compute, length, args.seed, args.trust_remote_code, **vllm)
    policy = load_model(args.model, device, args.trust_remote_code, compute, activation_checkpointing=args.activation_checkpointing)
    engine.prompts_once = check_architecture(args.model, policy, None if args.engine == "vllm" else engine.model or policy, compute)
    ranks.on_first(lambda: check_export(args.model, policy, data.tokenizer))
    frozen = load_model(args.model, device, args.trust_remote_code, compute, frozen=True) if args.kl_coef > 0 else None
    return engine, policy, frozen
