"""The built-in testbed: a sum of two or three steps, six ways to write its solution, and tiny base
models that know these ways in different proportions: "a pre-trained model with several habits" for
a laptop. testbed/build.py writes the solutions and pre-trains the shipped bases anew.
"""

import hashlib
from functools import cache
from itertools import accumulate, product
from pathlib import Path
from typing import NamedTuple

from common.errors import require

HERE = Path(__file__).resolve().parent  # with the bases' folders

# --- Tokens and text ---

NUMBERS = 50  # every number 0..49 is one token, so smaller numbers are no shorter
WORDS = ("Step", "so", "the", "answer", "is", "check")
VOCABULARY = ("<pad>", "<eos>", "<unk>", "Q", "\n", ".", "=", "+", "-", "?", "(", ")")
VOCABULARY += ("\\boxed{", "}", *WORDS, ":", ",")
VOCABULARY += tuple(str(number) for number in range(NUMBERS))


def tokenizer():
    """The testbed's `PreTrainedTokenizerFast`: 72 tokens, ids in the order of VOCABULARY, no token
    added around a text.

    Without special tokens encode(decode(ids)) == ids for any ids, also the nonsense a policy may
    sample, and decode(encode(text)) == text for every problem and solution. Spaces are layout and
    carry no token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    pieces = Regex(r"\\boxed\{|[A-Za-z]+|\d+|\n|\S")
    backend.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    # Decoding writes a space between any two tokens, then deletes those that layout does not want.
    # What stays: between two words or numbers ("1" "3" must not become "13"), before \boxed{ after
    # a word, and after . : , before a word, ( or \boxed{.
    unwanted = r"(?<![\w.:,]) | (?![\w(\\])|(?<=\w) (?=\()"
    spaced, wanted = decoders.WordPiece(prefix="##", cleanup=False), Regex(unwanted)
    backend.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Replace(wanted, "")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


# --- Problems ---

HELD_OUT = 256  # problems in the test split, and in the tune split; the rest is for training


class Problem(NamedTuple):
    """(6+7)+2: operands 1..9, each operator applied to the value so far, which stays in 0..49."""

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def expression(self) -> str:
        text = str(self.operands[0])
        for i, (sign, operand) in enumerate(zip(self.operators, self.operands[1:], strict=True), 1):
            text = f"({text}){sign}{operand}" if i > 1 else f"{text}{sign}{operand}"
        return text

    @property
    def prompt(self) -> str:
        return f"Q{self.expression}=?\n"

    @property
    def values(self) -> list[int]:
        """The running values: first operand, value after the first operation, ..., answer."""
        signed = zip(("+", *self.operators), self.operands, strict=True)
        return list(accumulate(x if sign == "+" else -x for sign, x in signed))


@cache
def split(name: str, operations: int = 2) -> tuple[Problem, ...]:
    """All problems of the split "train", "tune" or "test" with 2 or 3 operations, in a fixed order.
    They are ordered by a hash of their text: no seed and no library version moves one."""
    everything = (
        Problem(operands, operators)
        for operands in product(range(1, 10), repeat=operations + 1)
        for operators in product("+-", repeat=operations)
    )
    valid = (one for one in everything if min(one.values) >= 0 and max(one.values) < NUMBERS)
    ordered = sorted(valid, key=lambda problem: hashlib.sha256(problem.prompt.encode()).digest())
    ends = {"test": (0, HELD_OUT), "tune": (HELD_OUT, 2 * HELD_OUT), "train": (2 * HELD_OUT, None)}
    return tuple(ordered[slice(*ends[name])])


def problems(name: str, operations: int = 2) -> dict[str, list[str]]:
    """The columns of a split: "prompt", and "answer", the integer to box, as text."""
    rows = split(name, operations)
    return {"prompt": [row.prompt for row in rows], "answer": [str(row.values[-1]) for row in rows]}


def base_path(name: str) -> Path:
    """The folder with config.json and model.safetensors of a shipped base."""
    folder = HERE / name
    known = sorted(path.parent.name for path in HERE.glob("*/config.json"))
    told = f"--model testbed:{name}: no such base; known are {', '.join(known)}"
    require(name in known, told)
    return folder
