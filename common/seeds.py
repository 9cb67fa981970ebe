"""Every random number of a run is a function of (run seed, where it is used), so that a resumed run repeats the run that was not stopped
without saving any generator's state, and adding a consumer of randomness does not disturb the others."""

import random

import numpy as np
import torch


def derive(*path: int) -> int:
    """A 63-bit seed from non-negative integers such as (run seed, step, prompt): near paths give unrelated seeds (NumPy's SeedSequence).

    A path that ends in 0 has the seed of the path without it: with --seed 0 the first completion of step t is drawn with the numbers of the
    held-out prompt t.
    """
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0] >> 1)


def generator(*path: int) -> torch.Generator:
    """A CPU generator seeded by `derive`."""
    return torch.Generator().manual_seed(derive(*path))


def reseed(*path: int) -> None:
    """Seed the global generators of Python, NumPy and torch by `derive`, for code that is not ours, such as a reward that draws lots."""
    seed = derive(*path)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
