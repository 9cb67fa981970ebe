"""Does --lr set the size of a step that is computed with in bfloat16? Gain of one step to first order, and measured on the bfloat16 copies.

python -m study.rounding [--model smollm2-135m] [--lr 1e-6 1e-5]

The loss is minus the mean log-probability per token of right answers to word problems; the step is Adam's first, lr times the gradient's
sign. Weights as they are stored, and rounded to 16 bits as checkpoints are; each as it is and spread evenly (integrations/rounding.py).
All arithmetic is float32, so that the rounding of weights is all that differs; the first lines have none of that either. The weights are
in memory about five times.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from common.batch import Batch, pad
from common.errors import plain_errors
from common.model import load_tokenizer, load_whole, token_logprobs
from integrations.rounding import badly_spread, spread_evenly
from prompts import load_prompts

STORED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Args:
    model: str = "smollm2-135m"
    """as in the training scripts"""
    lr: tuple[float, ...] = (1e-6, 1e-5)
    """learning rates of the step"""
    prompts: int = 8
    """word problems, of the tuning split"""


def gains(
    weights: dict[str, Tensor], model: nn.Module, batch: Batch, rates: tuple[float, ...], copies: torch.dtype = torch.bfloat16
) -> list[tuple[float, float]]:
    """For each rate the gain in mean log-probability per token of the batch by Adam's first step: (to first order, measured).

    weights: float32 masters by name, which the step moves. model: float32, computes with their copies in the dtype `copies`. Neither of
    the arguments is changed.
    """
    model = deepcopy(model)

    def evaluate(masters: dict[str, Tensor]) -> Tensor:
        for name, parameter in model.named_parameters():
            parameter.data = masters[name].to(copies, copy=True).float()
        return token_logprobs(model, batch, 1.0).sum() / batch.mask.sum()

    before = evaluate(weights)
    found = torch.autograd.grad(before, list(model.parameters()))
    gradients = {name: gradient for (name, _), gradient in zip(model.named_parameters(), found, strict=True)}
    slope = sum(gradient.abs().sum().item() for gradient in gradients.values())
    with torch.no_grad():
        after = [evaluate({name: weights[name] + lr * gradients[name].sign() for name in gradients}).item() for lr in rates]
    return [(lr * slope, value - before.item()) for lr, value in zip(rates, after, strict=True)]


def main(args: Args) -> None:
    """Print a row for each way of storing: ties, weights on a bfloat16 number, and for each rate the gain as it is and spread evenly."""
    tokenizer, model = load_tokenizer(args.model), load_whole(args.model, torch.device("cpu"))
    data = load_prompts("words", tokenizer, "", "", "", 1024)["tune"].select(list(range(args.prompts)))
    texts = [f"The answer is \\boxed{{{answer}}}" for answer in data.columns["answer"]]
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    batch = pad(data.ids, ids, tokenizer.pad_token_id)
    masters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for lr, (first, measured) in zip(args.lr, gains(masters, model, batch, args.lr, torch.float32), strict=True):
        print(f"computed with in float32: lr {lr:g}, first order {first:.3g}, measured {measured:.3g}", flush=True)
    print("stored as | midway | on one | lr | first order | measured | spread evenly: first order | measured")
    for dtype in STORED:
        weights = {name: master.to(dtype).float() for name, master in masters.items()}
        middle, on = map(sum, zip(*map(badly_spread, weights.values()), strict=True))
        share = 1 / sum(map(torch.numel, weights.values()))
        generator = torch.Generator().manual_seed(0)
        plain = gains(weights, model, batch, args.lr)
        even = gains({name: spread_evenly(weight, generator) for name, weight in weights.items()}, model, batch, args.lr)
        for lr, one, other in zip(args.lr, plain, even, strict=True):
            numbers = " | ".join(f"{value:.3g}" for value in (*one, *other))
            print(f"{str(dtype).removeprefix('torch.')} | {middle * share:.1%} | {on * share:.1%} | {lr:g} | {numbers}", flush=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
