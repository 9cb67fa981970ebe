"""What an engine samples beside the model's own log-probabilities; for test_engine.py and the ranks
that it starts."""

import copy
from types import SimpleNamespace

import torch
from torch import nn

from common.vllm_engine import VLLMEngine

STOP, LONGEST = 1, 128


def prompts(count: int, length: int = 6) -> list[list[int]]:
    """Prompts of different lengths, of no meaning but for the model: it still ends most of its
    texts."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 70, (length + i % 3,), generator=draw).tolist() for i in range(count)]


def disturbed(model: nn.Module, size: float = 0.05) -> nn.Module:
    """A copy with noise on all parameters."""
    model, noise = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=noise)
    return model


@torch.no_grad()
def logprobs_of(
    model: nn.Module, prompt: list[int], ids: list[int], temperature: float
) -> torch.Tensor:
    """Log-probabilities of the completion's tokens by one full forward, [T]."""
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


def start(model, longest: int = LONGEST, **flags) -> VLLMEngine:
    """An engine of these flags of a run."""
    usual = {"vllm_tp": 1, "vllm_memory": 0.3, "vllm_sleep": False, "trust_remote_code": False}
    args = SimpleNamespace(**usual | {"seed": 0} | flags)
    return VLLMEngine(args, str(model), {STOP}, longest, torch.float32)


def gap(
    engine: VLLMEngine, model: nn.Module, asked: list[list[int]], temperature: float = 1.0
) -> float:
    """Mean gap, in nats, of the engine's log-probabilities to the model's at the tokens the engine
    samples."""
    ids, logprobs = engine.generate(asked, 4, 24, temperature, list(range(len(asked))))
    rows = zip([p for p in asked for _ in range(4)], ids, logprobs, strict=True)
    return (
        torch.cat(
            [
                (torch.tensor(own).double() - logprobs_of(model, p, i, temperature)).abs()
                for p, i, own in rows
            ]
        )
        .mean()
        .item()
    )
