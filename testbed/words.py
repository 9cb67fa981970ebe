r"""Word problems of one step for a real small model: "Mia has 4 books and gives away 1. How many books now?"

The prompt shows one example, answered as a pupil would who was told to be brief: the sum, then the answer in \boxed{}. What the model makes
of it beyond that is its own; nothing is planted. docs/realmodel.md says what it is for.
"""

import hashlib
from functools import cache
from itertools import product
from typing import NamedTuple

from common.errors import UserError

NAMES = ("Tom", "Anna", "Ben", "Lucy", "Sam", "Mia", "Jack", "Emma", "Leo", "Nora")
THINGS = ("apples", "books", "coins", "cards", "pens", "eggs", "shells", "marbles", "stamps", "cookies")
GAINS, LOSSES = ("buys", "finds", "gets"), ("loses", "sells", "gives away")
HIGH = 20  # the largest number in a question

HELD_OUT, TRAINED_ON = 256, 2048  # problems in the test split, and as many in the tune split; problems to train on
SYSTEM = "Solve it."
SHOT = ("Kim has 6 cups and buys 3 more. How many cups now?", "1. 6 + 3 = 9\n2. \\boxed{9}")


class Problem(NamedTuple):
    """Who has `first` things and gains or loses `second`: at least one is left."""

    name: str
    thing: str  # in the plural
    verb: str
    first: int
    second: int

    @property
    def question(self) -> str:
        more = " more" if self.verb in GAINS else ""
        return f"{self.name} has {self.first} {self.thing} and {self.verb} {self.second}{more}. How many {self.thing} now?"

    @property
    def answer(self) -> int:
        return self.first + (self.second if self.verb in GAINS else -self.second)


def split(name: str) -> tuple[Problem, ...]:
    """The problems of the split "train", "tune" or "test", in a fixed order.

    As those of `testbed.arithmetic`, all problems are ordered by a hash of their text, and the splits are consecutive parts of that order,
    so no random generator, run seed or library version moves one. Most of the 171,000 are in none. Raises UserError for another name.
    """
    ends = {"test": (0, HELD_OUT), "tune": (HELD_OUT, 2 * HELD_OUT), "train": (2 * HELD_OUT, 2 * HELD_OUT + TRAINED_ON)}
    if name not in ends:
        raise UserError(f"words has no split {name!r}; it has train, tune and test")
    return _ordered()[slice(*ends[name])]


@cache
def _ordered() -> tuple[Problem, ...]:
    everything = (Problem(*parts) for parts in product(NAMES, THINGS, GAINS + LOSSES, range(2, HIGH + 1), range(1, HIGH + 1)))
    valid = (problem for problem in everything if problem.answer >= 1)
    return tuple(sorted(valid, key=lambda problem: hashlib.sha256(problem.question.encode()).digest()))


def problems(name: str) -> dict[str, list]:
    """The columns of a split (see `split`): "prompt", chat messages; "question", the last of them; "answer", the number to box, as text;
    "unit", what is counted, in the plural."""
    rows = split(name)
    asked, shown = SHOT
    before = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}, {"role": "assistant", "content": shown}]
    return {
        "prompt": [[*before, {"role": "user", "content": row.question}] for row in rows],
        "question": [row.question for row in rows],
        "answer": [str(row.answer) for row in rows],
        "unit": [row.thing for row in rows],
    }
