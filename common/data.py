"""Prompts: the built-in problems, MATH-500, a dataset of the hub, or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

import rewards
from common import ranks
from common.errors import UserError, require, told_as
from common.flags import RunFlags
from common.seeds import derive
from prompts.chat import render
from prompts.tables import Columns, read_splits
from rewards import gym
from rewards.answers import reference

# the paper's, for MATH-500
BOXED_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."

BUILT_IN = {"arithmetic": 2, "arithmetic3": 3, "words": 1}  # operations of a problem
PROMPT_COLUMNS = ("prompt", "problem", "question")  # the first that is there is taken
ANSWER_COLUMNS = ("answer", "reward_model.ground_truth", "solution")
SPLITS = {"val": "tune", "validation": "tune", "dev": "tune"}  # other names


@dataclass(frozen=True)
class Prompts:
    """N prompts with the columns of their dataset."""

    ids: list[list[int]]  # token ids
    columns: dict[str, list]  # `prompt` (the text), `answer`, and the dataset's others, N values
    seeds: list[int] | None = None  # what the completions of a step's prompts are drawn with

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> "Prompts":
        """The prompts at these row numbers."""
        return Prompts([self.ids[i] for i in rows], _rows(self.columns, rows))

    def batch(self, step: int, size: int, seed: int) -> "Prompts":
        """The prompts of a step (from 1), with seeds: epochs, each shuffled by (seed, epoch), end
        to end. A function of its arguments alone, so a resumed run needs no cursor."""
        places = [divmod(place, len(self)) for place in range((step - 1) * size, step * size)]
        orders = {
            epoch: np.random.default_rng(derive(seed, epoch)).permutation(len(self))
            for epoch in {epoch for epoch, _ in places}
        }
        chosen = self.select([int(orders[epoch][i]) for epoch, i in places])
        return replace(chosen, seeds=[derive(seed, step, i) for i in range(size)])

    def repeat(self, times: int) -> "Prompts":
        """Every prompt `times` in succession, to stand beside completions."""
        return self.select([i for i in range(len(self)) for _ in range(times)])


def answer_check(check: str, dataset: str) -> str:
    """--answer-check, with auto resolved."""
    ours = dataset.startswith(gym.NAME)
    usual = gym.NAME if ours else "exact" if dataset in BUILT_IN else "math-verify"
    found = usual if check == "auto" else check
    told = f"--answer-check {check} does not go with --dataset {dataset}: leave it at auto"
    require(ours == (found == gym.NAME), told)
    return found


def load(args: RunFlags, tokenizer, objectives: Mapping, check: str) -> dict[str, Prompts]:
    """The splits "train", "tune" and "test" of --dataset, tokenized; longer prompts than
    --max-prompt-length are dropped. objectives: its rewards, which may be unable to use an answer
    (check: how accuracy compares it). Collective. Raises UserError naming the flag."""
    dataset, rendered = args.dataset, {}
    usual = gym.SUFFIX if check == gym.NAME else BOXED_SUFFIX if dataset == "math500" else ""
    suffix = args.prompt_suffix or usual
    for split, columns in _named(_tables(dataset), dataset).items():
        columns = usable(args, split, columns, objectives, check)
        where = f"--dataset {dataset}: a prompt of {split}"
        tools = columns.get("tools", [None] * len(columns["prompt"]))
        texts = [
            render(prompt, suffix, tokenizer, where, tool)
            for prompt, tool in zip(columns["prompt"], tools, strict=True)
        ]
        rendered[split] = columns | {"prompt": texts}
    return {
        split: _tokenize(columns, tokenizer, args.max_prompt_length, split)
        for split, columns in _three_splits(rendered, dataset).items()
    }


def _tables(dataset: str) -> dict[str, Columns]:
    """The columns of every split, as they come."""
    from testbed import arithmetic, words

    if dataset.startswith(gym.NAME):
        return {"train": ranks.on_first(lambda: gym.problems(dataset))}
    if dataset not in BUILT_IN:
        return read_splits("HuggingFaceH4/MATH-500" if dataset == "math500" else dataset)
    steps = BUILT_IN[dataset]
    made = words.problems if dataset == "words" else lambda split: arithmetic.problems(split, steps)
    return {split: made(split) for split in ("train", "tune", "test")}


def _named(tables: dict[str, Columns], dataset: str) -> dict[str, Columns]:
    """The only split as train, or those of use of several as train, tune and test."""
    if len(tables) == 1:
        return {"train": next(iter(tables.values()))}
    found = {SPLITS.get(split, split): columns for split, columns in tables.items()}
    told = f"--dataset {dataset} has {', '.join(tables)}; it needs train and test, or one split"
    clear = {"train", "test"} <= found.keys() and len(found) == len(tables)
    require(clear, f"{told}, and a single one to tune with")
    return {split: found[split] for split in ("train", "tune", "test") if split in found}


def usable(args: RunFlags, split: str, columns: Columns, objectives, check: str) -> Columns:
    """The rows with an answer that a completion could match; `prompt` and `answer` among their
    columns. Others are an error, or with --drop-unusable left out."""
    prompt = args.prompt_column or _first(PROMPT_COLUMNS, columns, "--prompt-column")
    answer = args.answer_column or _first(ANSWER_COLUMNS, columns, "--answer-column")
    texts, cells = column(columns, prompt, split), column(columns, answer, split)
    by_entry = check == gym.NAME  # whose scorer reads the whole problem
    answers = cells if by_entry else [reference(cell) for cell in cells]
    asked = column(columns, "entry", split) if by_entry else answers
    given = [one for one in asked if one is not None]
    reasons = {None: "no completion could be right"}
    reasons |= ranks.on_first(lambda: rewards.unusable(objectives, given, check))
    bad = [row for row, one in enumerate(asked) if one in reasons]
    if bad:
        told = f"--answer-column {answer}: {len(bad)} of {len(cells)} rows of {split} are unusable"
        first = f"in row {bad[0]} it is {cells[bad[0]]!r:.80}: {reasons[asked[bad[0]]]}"
        keep = args.drop_unusable and len(bad) < len(cells)
        require(keep, f"{told}; {first}; correct them, or add --drop-unusable")
        ranks.say(f"dropped: {told}; {first}")
    kept = sorted({*range(len(cells))} - {*bad})
    return _rows({**columns, "prompt": texts, "answer": answers}, kept)


def _first(candidates: tuple[str, ...], columns: Columns, flag: str) -> str:
    for name in candidates:
        if name in columns or name.split(".")[0] in columns:
            return name
    raise UserError(f"{flag} is needed: the dataset has the columns {', '.join(columns)}")


def column(columns: Columns, name: str, split: str) -> list:
    """A column by name, or a field inside one by a dotted name."""
    head, *fields = [name] if name in columns else name.split(".")
    try:
        values = columns[head]
        for field in fields:
            values = [value[field] for value in values]
    except (KeyError, TypeError) as error:
        told = f"--prompt-column, --answer-column: there is no {name} in {split}"
        raise UserError(f"{told}, which has {', '.join(columns)}") from error
    return values


def _three_splits(tables: dict[str, Columns], dataset: str) -> dict[str, Columns]:
    """train, tune and test: one table is divided 60/20/20, and without tune a tenth of train is
    taken. Rows with the same prompt stay together."""
    if "test" not in tables:
        train, rest = _divided(tables["train"], 0.4, dataset)
        test, tune = _divided(rest, 0.5, dataset)
        return {"train": train, "test": test, "tune": tune}
    if "tune" not in tables:
        train, tune = _divided(tables["train"], 0.1, dataset)
        return {"train": train, "tune": tune, "test": tables["test"]}
    return tables


def _divided(table: Columns, share: float, dataset: str) -> tuple[Columns, Columns]:
    """All but a share of the different prompts, and that share, by seed 42."""
    prompts = list(dict.fromkeys(table["prompt"]))
    require(len(prompts) > 1, f"--dataset {dataset} has too few prompts to divide")
    rows = {prompt: [] for prompt in prompts}
    for row, prompt in enumerate(table["prompt"]):
        rows[prompt].append(row)
    order, held = np.random.default_rng(42).permutation(len(prompts)), ceil(share * len(prompts))
    parts = ([i for p in part for i in rows[prompts[p]]] for part in (order[held:], order[:held]))
    kept, held_out = (_rows(table, part) for part in parts)
    return kept, held_out


def _rows(columns: Columns, rows: Sequence[int]) -> Columns:
    return {name: [cells[row] for row in rows] for name, cells in columns.items()}


def _tokenize(columns: Columns, tokenizer, longest: int, split: str) -> Prompts:
    # a chat template has written the special tokens already
    special = {"add_special_tokens": not tokenizer.chat_template}
    with told_as(f"a {split} prompt of --dataset is no text for the tokenizer"):
        ids = tokenizer(columns["prompt"], **special)["input_ids"]
    kept = [i for i, row in enumerate(ids) if 0 < len(row) <= longest]
    require(bool(kept), f"--max-prompt-length {longest} drops every {split} prompt")
    if len(kept) < len(ids):
        told = f"dropped {len(ids) - len(kept)} of {len(ids)} {split} prompts, empty or longer than"
        ranks.say(f"{told} --max-prompt-length {longest} tokens")
    return Prompts(ids, columns).select(kept)
