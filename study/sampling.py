"""Tokens per second of our sampling loop beside transformers' own `generate`, same model, prompts and temperature, taken in turn.

python -m study.sampling [--model testbed] [--rounds 5]
"""

import time
from dataclasses import dataclass
from statistics import median

import torch
import tyro

from common.model import load_model, load_tokenizer
from common.rollout import TransformersEngine
from common.seeds import derive
from prompts import load_prompts


@dataclass
class Args:
    model: str = "testbed"
    """as in the training scripts"""
    rounds: int = 5
    """measurements of each, after one to warm up"""


def main(args: Args) -> None:
    """Print tokens per second of both and their ratio, for 16 prompts x 16 completions of at most 56 tokens."""
    tokenizer, model = load_tokenizer(args.model), load_model(args.model, torch.device("cpu"))
    engine = TransformersEngine(model, tokenizer)
    prompts = load_prompts("arithmetic", tokenizer, "", "", "", 1024)["train"].batch(1, 16, 1).ids
    repeated = torch.tensor([p for p in prompts for _ in range(16)])  # the testbed's prompts are all of one length

    def ours(number: int) -> int:
        return sum(map(len, engine.generate(prompts, 16, 56, 1.0, [derive(number, i) for i in range(16)])[0]))

    @torch.inference_mode()
    def theirs(number: int) -> int:
        torch.manual_seed(number)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 56}
        out = model.generate(repeated, attention_mask=torch.ones_like(repeated), **options)
        return int((out[:, repeated.size(1) :] != tokenizer.pad_token_id).sum())

    rates: dict[str, list[float]] = {"loop": [], "generate": []}
    for number in range(args.rounds + 1):
        for name, sample in (("loop", ours), ("generate", theirs)):
            start = time.perf_counter()
            tokens = sample(number)
            if number > 0:
                rates[name].append(tokens / (time.perf_counter() - start))
    loop, generate = median(rates["loop"]), median(rates["generate"])
    print(f"{torch.get_num_threads()} threads: loop {loop:,.0f} tokens/s, generate {generate:,.0f} tokens/s, ratio {loop / generate:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
