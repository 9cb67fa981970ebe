"""One gradient per loss from a single forward pass, their inner products, and a weighted sum of
them as the gradient to step with.

A gradient is a list with one tensor per parameter, so K of them cost K times the parameters' memory
and no flat copies are made. Where parameters are sharded, so are their gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common import ranks

CHUNK = 2**22  # numbers of a gradient that are turned to float64 at a time


class Gradients:
    """One gradient per loss of a model, added up over the micro-batches of a mini-batch."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.each: list[list[Tensor | None]] = []  # per loss, per parameter

    def add(self, losses: Sequence[Tensor]) -> None:
        """Those of a micro-batch's losses: one backward pass each through the graph they share.

        `.backward()` with `.grad` swapped for the buffer, not `autograd.grad`: sharded parameters
        reduce their gradients in hooks that only `.backward()` runs. Leaves `.grad` at None.
        """
        self.each = self.each or [[None] * len(self.parameters) for _ in losses]
        for k, (loss, buffers) in enumerate(zip(losses, self.each, strict=True)):
            for parameter, buffer in zip(self.parameters, buffers, strict=True):
                parameter.grad = buffer
            loss.backward(retain_graph=k < len(losses) - 1)
            for i, parameter in enumerate(self.parameters):
                buffers[i], parameter.grad = parameter.grad, None

    def gram(self, count: int) -> Tensor:
        """Inner products H_ij = <g_i, g_j> of the first `count` gradients over all parameters and
        ranks, float64 [count, count], on the CPU, where small problems are solved fastest.

        In float32 the products of nearly opposed gradients would lose the digits that a solver's
        answer hangs on. Each rank adds up its own shards, and every rank gets the same matrix.
        """
        gram = torch.zeros(count, count, dtype=torch.float64)
        for parts in zip(*self.each[:count], strict=True):
            if parts[0] is not None:  # a parameter that no loss reaches has no gradient from any
                flat = [(p.to_local() if isinstance(p, DTensor) else p).flatten() for p in parts]
                # an embedding's K gradients in float64 would not fit
                for rows in zip(*(part.split(CHUNK) for part in flat), strict=True):
                    rows = torch.stack(rows).double()
                    gram = gram.to(rows.device) + rows @ rows.T
        return ranks.all_sum(gram.cpu())

    def combine(self, weights: Sequence[float]) -> None:
        """The weighted sum sum_k w_k g_k becomes the model's gradient. The gradients are used up:
        the sum is formed in the memory of the first. weights: one number per loss."""
        for parameter, *parts in zip(self.parameters, *self.each, strict=True):
            if parts[0] is not None:
                for part, weight in zip(parts, weights, strict=True):
                    part.mul_(weight)
                for part in parts[1:]:
                    parts[0].add_(part)
            parameter.grad = parts[0]
        self.each = []  # or they would stay in memory until the next mini-batch


def has_gradient(gram: Tensor) -> Tensor:
    """Which objectives have one: a norm above 1e-6 of the largest. gram [K, K] -> bool [K].

    Where all completions of a mini-batch earn the same reward, advantages and gradient are 0: an
    ordinary event, not an error.
    """
    squared = gram.diagonal()
    return squared > 1e-12 * squared.max()
