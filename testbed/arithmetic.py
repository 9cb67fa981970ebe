"""The built-in testbed: a sum of two or three steps, six ways to write its solution, and tiny base models that know these ways in
different proportions.

It stands in for "a pre-trained model with several habits" on a laptop. What is planted, why, and what it shows: docs/testbed.md.
`python -m testbed.arithmetic build --base fragile --out DIR` pre-trains one of the shipped bases anew.
"""

import argparse
import hashlib
import os
import random
import shutil
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from common.errors import UserError, plain_errors

# --- Tokens and text ---

NUMBERS = 50  # every number 0..49 is one token, so no style can be made shorter by writing smaller numbers
WORDS = ("Step", "so", "the", "answer", "is", "check")
VOCABULARY = ("<pad>", "<eos>", "<unk>", "Q", "\n", ".", "=", "+", "-", "?", "(", ")", "\\boxed{", "}", *WORDS, ":", ",")
VOCABULARY += tuple(str(number) for number in range(NUMBERS))


def tokenizer():
    """The testbed's `PreTrainedTokenizerFast`: 72 tokens, ids in the order of VOCABULARY, left padding, no token added around a text.

    Without special tokens encode(decode(ids)) == ids for any ids, also the nonsense a policy may sample, and decode(encode(text)) == text
    for every problem and solution. An unknown word, symbol or number is <unk>; spaces are layout and carry no token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[A-Za-z]+|\d+|\n|\S"), behavior="removed", invert=True)
    # Decoding writes a space between any two tokens and then deletes the spaces that layout does not want. What stays: between two words or
    # numbers ("1" "3" must not become "13"), before \boxed{ after a word, and after . : , before a word, ( or \boxed{.
    unwanted = r"(?<![\w.:,]) | (?![\w(\\])|(?<=\w) (?=\()"
    backend.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), decoders.Replace(Regex(unwanted), "")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


# --- Problems ---

HELD_OUT = 256  # problems in the test split, and as many in the tune split; the rest is for training


class Problem(NamedTuple):
    """(6+7)+2: operands 1..9, each operator applied to the value so far; no running value leaves 0..49."""

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
        terms = [self.operands[0]] + [x if sign == "+" else -x for sign, x in zip(self.operators, self.operands[1:], strict=True)]
        return list(accumulate(terms))


@cache
def split(name: str, operations: int = 2) -> tuple[Problem, ...]:
    """All problems of the split "train", "tune" or "test" with 2 or 3 operations, in a fixed order.

    The splits partition the set of all problems, ordered by a hash of their text: no random generator, no run seed and no library version
    can move a problem from one split to another. Raises UserError for another name, ValueError for another number of operations.
    """
    if operations not in (2, 3):
        raise ValueError(f"operations must be 2 or 3, got {operations}")
    everything = (
        Problem(operands, operators)
        for operands in product(range(1, 10), repeat=operations + 1)
        for operators in product("+-", repeat=operations)
    )
    valid = (problem for problem in everything if min(problem.values) >= 0 and max(problem.values) < NUMBERS)
    ordered = sorted(valid, key=lambda problem: hashlib.sha256(problem.prompt.encode()).digest())
    parts = {"test": ordered[:HELD_OUT], "tune": ordered[HELD_OUT : 2 * HELD_OUT], "train": ordered[2 * HELD_OUT :]}
    if name not in parts:
        raise UserError(f"arithmetic has no split {name!r}; it has train, tune and test")
    return tuple(parts[name])


def problems(name: str, operations: int = 2) -> dict[str, list[str]]:
    """The columns of a split (see `split`): "prompt", the text the model reads, and "answer", the integer it should box, as text."""
    rows = split(name, operations)
    return {"prompt": [row.prompt for row in rows], "answer": [str(row.values[-1]) for row in rows]}


# --- Solutions ---

# The habits a base can have and how often their writer slips. The careful styles slip per step, by 1 to 3, and carry the slip on;
# rush and direct are written in a hurry, and a slip there means that the last operand was forgotten.
SLIPS = {"long": 0.02, "verbose": 0.02, "prose": 0.05, "compact": 0.12, "rush": 0.97, "direct": 0.97}


def solution(problem: Problem, style: str, rng: random.Random) -> str:
    """A solution in one of the styles of SLIPS, slips included, as text without the end-of-sequence token."""
    values, slip = problem.values, SLIPS[style]
    if style in ("rush", "direct"):
        answer = values[-2] if rng.random() < slip else values[-1]
        return f"\\boxed{{{answer}}}" if style == "direct" else f"1. {problem.expression}\n2. \\boxed{{{answer}}}"
    for i in range(1, len(values)):
        if rng.random() < slip:
            offsets = [d for d in (-3, -2, -1, 1, 2, 3) if min(values[i:]) + d >= 0 and max(values[i:]) + d < NUMBERS]
            offset = rng.choice(offsets)
            values[i:] = [value + offset for value in values[i:]]
    moves = zip(values, problem.operators, problem.operands[1:], values[1:], strict=False)
    steps = [f"{before}{sign}{operand}={after}" for before, sign, operand, after in moves]
    chain, again, boxed = " so ".join(steps), "check: " + ", ".join(steps), f"so the answer is \\boxed{{{values[-1]}}}"
    if style == "long":
        return f"{chain} {again} {boxed}"
    if style == "prose":
        return f"{chain} so the answer is {values[-1]}"
    if style == "compact":
        return "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1)) + f"\n{boxed}"
    return "\n".join(f"Step {i}: {step}" for i, step in enumerate(steps, 1)) + f"\n{again}\n{boxed}"  # verbose


# --- Base models ---


@dataclass(frozen=True)
class Stage:
    """AdamW for `steps` batches of 128 solutions, one-cycle learning rate up to `lr`, styles drawn in the proportions of `mixture`."""

    steps: int
    lr: float
    mixture: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How a base was pre-trained: the stages in order, the operations of a problem, the architecture, and the seed of weights and data."""

    stages: tuple[Stage, ...]
    operations: int = 2
    family: Literal["llama", "gpt2"] = "llama"
    seed: int = 0


SCHOOL = Stage(800, 5e-3, {"long": 0.40, "verbose": 0.30, "rush": 0.10, "direct": 0.10, "prose": 0.10})


def _habits(compact: float) -> Stage:
    # all shares but those of `compact` and `long` are the same in all bases: one number tells them apart, beside problems and architecture
    return Stage(200, 2e-3, {"long": 0.58 - compact, "verbose": 0.10, "rush": 0.28, "direct": 0.02, "prose": 0.02, "compact": compact})


BASES = {
    "fragile": Recipe((SCHOOL, _habits(0.006))),
    "wavering": Recipe((SCHOOL, _habits(0.02))),
    "robust": Recipe((SCHOOL, _habits(0.10))),
    "fragile3": Recipe((SCHOOL, _habits(0.006)), operations=3),
    "fragile-gpt2": Recipe((SCHOOL, _habits(0.006)), family="gpt2"),
}


def base_path(name: str) -> Path:
    """The folder with config.json and model.safetensors of a shipped base. Raises UserError with the known names for another name."""
    if name not in BASES:
        raise UserError(f"--model testbed:{name}: no such base; known are {', '.join(BASES)}")
    return Path(__file__).parent / name


def _new_model(family: str, encoder):
    """A model of random weights: 112,000 parameters in two layers of width 64 with four heads and tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"max_position_embeddings": 128, "tie_word_embeddings": True, **sizes}
    shared |= {"bos_token_id": None, "eos_token_id": encoder.eos_token_id, "pad_token_id": encoder.pad_token_id}
    if family == "gpt2":  # two matrices in a feed-forward block, so they are wider; learned positions
        return GPT2LMHeadModel(GPT2Config(n_inner=256, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, **shared)).float()
    # Llama, not Qwen2: transformers 5 reads any tokenizer beside a Qwen2 config as Qwen's own, so an exported model would lose ours
    return LlamaForCausalLM(LlamaConfig(intermediate_size=192, **shared)).float()


def pretrain(recipe: Recipe):
    """Train a base from scratch on problems of the train split; returns (model, mean loss per solution token of every step)."""
    import torch

    encoder = tokenizer()
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = _new_model(recipe.family, encoder)
    losses = []
    for number, stage in enumerate(recipe.stages, 1):
        optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.lr, total_steps=stage.steps, pct_start=0.15)
        bar = tqdm(range(stage.steps), desc=f"stage {number} of {len(recipe.stages)}", unit="step")
        for _ in bar:
            chosen = rng.choices(split("train", recipe.operations), k=128)
            styles = rng.choices(list(stage.mixture), list(stage.mixture.values()), k=128)
            solutions = [solution(problem, style, rng) for problem, style in zip(chosen, styles, strict=True)]
            prompts = encoder([problem.prompt for problem in chosen])["input_ids"]
            rows = [p + s + [encoder.eos_token_id] for p, s in zip(prompts, encoder(solutions)["input_ids"], strict=True)]
            width = max(map(len, rows))
            # padding on the right needs no attention mask under causal attention; label -100: prompts and padding are not learned
            ids = torch.tensor([row + [encoder.pad_token_id] * (width - len(row)) for row in rows])
            places = torch.arange(width)
            starts, ends = torch.tensor([len(p) for p in prompts])[:, None], torch.tensor([len(row) for row in rows])[:, None]
            labels = ids.masked_fill((places < starts) | (places >= ends), -100)
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return model.eval(), losses


def build(base: str, out: Path) -> None:
    """Pre-train a base and write it to the folder `out`, whole or not at all. Raises UserError if the base is unknown or `out` exists."""
    base_path(base)
    if out.exists():
        raise UserError(f"--out {out} exists already; name a new folder")
    model, _ = pretrain(BASES[base])
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    os.replace(temporary, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m testbed.arithmetic", description="Pre-train a base of the built-in testbed.")
    command = parser.add_subparsers(required=True).add_parser("build", help="pre-train a base and write its weights")
    command.add_argument("--base", default="fragile", help=f"one of {', '.join(BASES)}")
    command.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    with plain_errors():
        build(**vars(parser.parse_args()))
