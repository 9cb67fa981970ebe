"""One gradient per loss from a single forward pass, their inner products, and a weighted sum of them as the gradient to step with.

A gradient is a list with one tensor per parameter, so K of them cost K times the parameters' memory and no flat copies are made.
Where parameters are sharded, so are their gradients: a rank holds K shards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common import ranks

Lists = list[list[Tensor | None]]  # per loss, per parameter; None where no backward pass has come through yet
CHUNK = 2**22  # numbers of a gradient that are turned to float64 at a time


class Gradients:
    """One gradient per loss of a model, added up over the micro-batches of a mini-batch."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters, self.each = list(model.parameters()), []

    def add(self, losses: Sequence[Tensor]) -> None:
        """Those of a micro-batch's losses, which share a graph: see `backward_each`."""
        self.each = self.each or [[None] * len(self.parameters) for _ in losses]
        backward_each(losses, self.parameters, self.each)

    def gram(self, count: int) -> Tensor:
        """Inner products of the first `count` gradients, float64 [count, count]: see `gram_matrix`."""
        return gram_matrix(self.each[:count])

    def combine(self, weights: Sequence[float]) -> None:
        """The weighted sum becomes the model's gradient; these are used up. weights: one number per loss. See `combine`."""
        combine(self.each, weights, self.parameters)


def backward_each(losses: Sequence[Tensor], parameters: list[nn.Parameter], gradients: Lists) -> None:
    """Add the gradient of every loss to its entry in `gradients`, in place: one backward pass each through the graph they share.

    `.backward()` with `.grad` swapped for the buffer, not `autograd.grad`: sharded parameters reduce their gradients in hooks that only
    `.backward()` runs, and accumulation over micro-batches comes for free. Leaves `.grad` of every parameter at None.
    """
    for k, (loss, buffers) in enumerate(zip(losses, gradients, strict=True)):
        for parameter, buffer in zip(parameters, buffers, strict=True):
            parameter.grad = buffer
        loss.backward(retain_graph=k < len(losses) - 1)
        for i, parameter in enumerate(parameters):
            buffers[i], parameter.grad = parameter.grad, None


def gram_matrix(gradients: Lists) -> Tensor:
    """Inner products H_ij = <g_i, g_j> over all parameters and ranks, float64 [K, K], on the CPU, where small problems are solved fastest.

    Summed in float64: in float32 the products of nearly opposed gradients would lose the digits that a solver's answer hangs on.
    Each rank adds up its own shards; only K x K numbers are summed over ranks, and every rank gets the same matrix.
    """
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for parts in zip(*gradients, strict=True):
        if parts[0] is not None:  # a parameter that no loss reaches has no gradient from any
            flat = [(part.to_local() if isinstance(part, DTensor) else part).flatten() for part in parts]
            for rows in zip(*(part.split(CHUNK) for part in flat), strict=True):  # an embedding's K gradients in float64 would not fit
                rows = torch.stack(rows).double()
                gram = gram.to(rows.device) + rows @ rows.T
    return ranks.all_sum(gram.cpu())


def combine(gradients: Lists, weights: Sequence[float], parameters: list[nn.Parameter]) -> None:
    """Write the weighted sum sum_k w_k g_k into `.grad` of every parameter. weights: one number per gradient.

    The gradients are used up: the sum is formed in the memory of the first, and no further copy is held.
    """
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        if parts[0] is not None:
            for part, weight in zip(parts, weights, strict=True):
                part.mul_(weight)
            for part in parts[1:]:
                parts[0].add_(part)
        parameter.grad = parts[0]


def has_gradient(gram: Tensor) -> Tensor:
    """Which objectives have one: a norm above 1e-6 of the largest. gram [K, K] -> bool [K].

    Where all completions of a mini-batch earn the same reward, advantages and gradient are 0: an ordinary event, not an error.
    """
    squared = gram.diagonal()
    return squared > 1e-12 * squared.max()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scale `.grad` of all parameters down to the norm max_norm if theirs, over all ranks, is larger; returns their norm."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
