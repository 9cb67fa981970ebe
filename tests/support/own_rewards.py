"""Rewards of a user's own, for runs in tests: `OWN + ":flat"` and so on."""

from pathlib import Path

from rewards.accuracy import accuracy

OWN = str(Path(__file__))
EQUAL = tuple(f"{OWN}:{name}" for name in ("one", "two", "three"))  # three names of one reward


def flat(completions: list[str], **columns) -> list[float]:
    """The same for every completion: no gradient."""
    return [0.5] * len(completions)


def one(**columns) -> list[float]:
    return accuracy(**columns)


def two(**columns) -> list[float]:
    return accuracy(**columns)


def three(**columns) -> list[float]:
    return accuracy(**columns)


def faint(completion_ids: list[list[int]], **columns) -> list[float]:
    """It varies, by little."""
    return [0.5 + 0.04 * value for value in multiples(completion_ids, 2)]


def multiples(completion_ids: list[list[int]], n: int) -> list[float]:
    return [float(len(ids) % n == 0) for ids in completion_ids]


def by2(completion_ids: list[list[int]], **columns) -> list[float]:
    return multiples(completion_ids, 2)


def by3(completion_ids: list[list[int]], **columns) -> list[float]:
    return multiples(completion_ids, 3)


def by4(completion_ids: list[list[int]], **columns) -> list[float]:
    return multiples(completion_ids, 4)


def by5(completion_ids: list[list[int]], **columns) -> list[float]:
    return multiples(completion_ids, 5)


def by6(completion_ids: list[list[int]], **columns) -> list[float]:
    return multiples(completion_ids, 6)
