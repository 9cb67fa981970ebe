"""Weights that came in few bits and are computed with in bfloat16: without a remedy, --lr does not set the size of a step.

A policy has float32 weights, which the optimizer moves, and computes with their bfloat16 copies. One step at a usual rate is far smaller
than the distance between two bfloat16 numbers, so a copy moves only if its weight was near the middle between two of them. Where weights
are spread evenly a few always are, and the copies move on average as far as the weights do. Stored weights are not: those of a bfloat16
checkpoint all lie in the centre, and none moves (a dead zone); of a dequantised 4-bit one a tenth lie exactly in the middle (ties), and
any step, however small, moves them all.

The canary cannot see it, since sampler and trainer have the same copies. docs/realmodel.md has the numbers.
"""

import torch
from torch import Tensor

HALF = 2**15  # of the distance between bfloat16 numbers, counted in float32 numbers; it is 2^16 of them everywhere


def spread_evenly(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 weights drawn evenly from all that round to the same bfloat16 numbers as the given ones; zeros stay. Any shape, a new tensor.

    So `.bfloat16()` gives the same to the bit, and after a small step d it differs by d on average, upwards and downwards. Drawn in the
    numbering of float32, not on the real line: at a power of two, whose neighbours are at two distances, this is what makes both right.
    """
    numbers = weights.bfloat16().float().view(torch.int32)
    noise = torch.empty(weights.shape, dtype=torch.int16).random_(1 - HALF, HALF, generator=generator)  # neither end: no ties
    return torch.where(numbers << 1 == 0, numbers, numbers + noise).view(torch.float32)


def badly_spread(weights: Tensor) -> tuple[int, int]:
    """How many weights lie exactly midway between two bfloat16 numbers, and how many are one (zeros apart, which are as good as spread).

    Float16 and bfloat16 weights are looked at as float32, exactly what they are. Of evenly spread ones it is one of 65,536 each.
    """
    numbers = weights.float().view(torch.int32)
    low = numbers & 0xFFFF
    return int((low == HALF).sum()), int(((low == 0) & (numbers << 1 != 0)).sum())
