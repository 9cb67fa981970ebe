"""One gradient per loss from a single forward pass, their inner products, and a weighted sum of them as the gradient to step with.

A gradient is a list with one tensor per parameter, so K of them cost K times the parameters' memory and no flat copies are made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Gradients = list[list[Tensor | None]]  # per loss, per parameter; None where no backward pass has come through yet


def backward_each(losses: Sequence[Tensor], parameters: list[nn.Parameter], gradients: Gradients) -> None:
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


def gram_matrix(gradients: Gradients) -> Tensor:
    """Inner products H_ij = <g_i, g_j> over all parameters, float64 [K, K], on the CPU, where such small problems are solved fastest.

    Summed in float64: in float32 the products of nearly opposed gradients would lose the digits that a solver's answer hangs on.
    """
    gram: Tensor | float = 0.0
    for parts in zip(*gradients, strict=True):
        if parts[0] is not None:  # a parameter that no loss reaches has no gradient from any
            rows = torch.stack([part.flatten() for part in parts]).double()
            gram = gram + rows @ rows.T
    return gram.cpu()


def combine(gradients: Gradients, weights: Sequence[float], parameters: list[nn.Parameter]) -> None:
    """Write the weighted sum sum_k w_k g_k into `.grad` of every parameter. weights: one number per gradient."""
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        parameter.grad = None if parts[0] is None else sum(part * weight for part, weight in zip(parts, weights, strict=True))


def has_gradient(gram: Tensor) -> Tensor:
    """Which objectives have one: a norm above 1e-6 of the largest. gram [K, K] -> bool [K].

    Where all completions of a mini-batch earn the same reward, advantages and gradient are 0: an ordinary event, not an error.
    """
    squared = gram.diagonal()
    return squared > 1e-12 * squared.max()
