"""Rewards of a user's own, for runs in tests: `OWN + ":flat"` and so on."""

from pathlib import Path

from rewards.accuracy import accuracy

OWN = str(Path(__file__))
EQUAL = tuple(f"{OWN}:{name}" for name in ("one", "two", "three"))  # three names of one reward


def one(**columns) -> list[float]:
    return accuracy(**columns)


two = three = one


def flat(completions: list[str], **columns) -> list[float]:
    """The same for every completion: no gradient."""
    return [0.5] * len(completions)


async def absent(prompts: list[str], completion_ids: list[list[int]], **columns) -> list:
    """It applies to no completion of some prompts, and not to every completion of the others."""
    pairs = zip(prompts, completion_ids, strict=True)
    no = (sum(map(ord, p)) % 3 == 0 or sum(ids) % 5 == 0 for p, ids in pairs)
    return [
        None if none else len(ids) % 3 / 2 for none, ids in zip(no, completion_ids, strict=True)
    ]


def _multiple_of(n: int):
    """Whether the length is one."""

    def reward(completion_ids: list[list[int]], **columns) -> list[float]:
        return [float(len(ids) % n == 0) for ids in completion_ids]

    return reward


by2, by3, by4, by5, by6 = map(_multiple_of, range(2, 7))
