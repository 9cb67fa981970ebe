"""Tensors in float64: made of numbers, compared with a tolerance, differentiated by differences."""

import torch


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected, tol: float) -> None:
    torch.testing.assert_close(actual, tensor(expected), rtol=tol, atol=tol)


def finite_difference(function, at: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of a scalar function at every entry of a float64 tensor."""
    gradient = torch.zeros_like(at)
    for place in range(at.numel()):
        offset = torch.zeros_like(at).view(-1)
        offset[place] = step
        offset = offset.view_as(at)
        gradient.view(-1)[place] = (function(at + offset) - function(at - offset)) / (2 * step)
    return gradient
