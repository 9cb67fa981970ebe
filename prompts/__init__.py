"""Prompts: the built-in problems, MATH-500, any dataset of the hub, or local parquet, json, jsonl and csv files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

import rewards
from common import ranks
from common.errors import UserError, require
from common.flags import RunFlags
from common.seeds import derive
from prompts import gym
from prompts.chat import render
from prompts.files import TUNE_NAMES, Columns, read_splits, tell_choice
from rewards.answers import reference

BOXED_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."  # the paper's, for MATH-500
ARITHMETIC = {"arithmetic": 2, "arithmetic3": 3}  # operations of a problem
WORDS = "words"
BUILT_IN = (*ARITHMETIC, WORDS)  # made by testbed/, with whole numbers for answers
PROMPT_COLUMNS = ("prompt", "problem", "question")  # the first that is there is taken
ANSWER_COLUMNS = ("answer", "reward_model.ground_truth", "solution")
UNKNOWN = 0.03  # share of unknown tokens from which on a model is said not to read its prompts


@dataclass(frozen=True)
class Prompts:
    """N prompts with the columns of their dataset."""

    ids: list[list[int]]  # token ids
    columns: dict[str, list]  # each of length N: `prompt` (the text the model reads), `answer`, and the dataset's other columns
    seeds: list[int] | None = None  # of a training step's prompts: what their completions are drawn with

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: list[int]) -> "Prompts":
        """The prompts at these row numbers."""
        return Prompts([self.ids[i] for i in rows], {name: [column[i] for i in rows] for name, column in self.columns.items()})

    def batch(self, step: int, size: int, seed: int) -> "Prompts":
        """The prompts of a step (from 1), with seeds: epochs, each shuffled by (seed, epoch), laid end to end. A function of its arguments
        alone, so a resumed run needs no cursor."""
        first = (step - 1) * size
        places = [divmod(place, len(self)) for place in range(first, first + size)]
        orders = {epoch: np.random.default_rng(derive(seed, epoch)).permutation(len(self)) for epoch in {e for e, _ in places}}
        chosen = self.select([int(orders[epoch][i]) for epoch, i in places])
        return replace(chosen, seeds=[derive(seed, step, i) for i in range(size)])

    def repeat(self, times: int) -> dict[str, list]:
        """The columns with every row `times` in succession, to stand beside completions."""
        return {name: [value for value in column for _ in range(times)] for name, column in self.columns.items()}


def load_splits(args: RunFlags, tokenizer, objectives: Mapping[str, Callable]) -> dict[str, Prompts]:
    """`load_prompts` by the flags of a run. objectives: its rewards, which may be unable to use an answer. Collective: the first rank reads
    the answers, which takes a while for thousands of formulas."""
    check = answer_check(args.answer_check, args.dataset)
    return load_prompts(
        args.dataset,
        tokenizer,
        args.prompt_column,
        args.answer_column,
        args.prompt_suffix,
        args.max_prompt_length,
        lambda answers: ranks.on_first(lambda: rewards.unusable(objectives, answers, check)),
        args.drop_unusable,
    )


def answer_check(check: str, dataset: str) -> str:
    """--answer-check, with auto resolved. Raises UserError where the tasks of reasoning-gym and their own check do not come together."""
    ours = gym.is_ours(dataset)
    require(check != gym.NAME or ours, f"--answer-check {check} is for --dataset {gym.NAME}:TASK alone; leave it at auto")
    require(
        check in ("auto", gym.NAME) or not ours, f"--answer-check {check} has no use with --dataset {dataset}, which has its own; drop it"
    )
    if ours:
        return gym.NAME
    return check if check != "auto" else "exact" if dataset in BUILT_IN else "math-verify"


def load_prompts(
    dataset: str,
    tokenizer,
    prompt_column: str,
    answer_column: str,
    prompt_suffix: str,
    max_prompt_length: int,
    unusable: Callable[[list[str]], dict[str, str]] = lambda answers: {},
    drop_unusable: bool = False,
) -> dict[str, Prompts]:
    """The splits "train", "tune" and "test" of a dataset, tokenized; longer prompts than max_prompt_length tokens are dropped and counted.

    dataset: `arithmetic` or `arithmetic3`, sums of two or three steps; `words`, word problems of one step; `math500` (300/100/100 by seed
    42 as in the paper, and its prompt suffix); `reasoning-gym:TASK`, see `gym.problems`; or what `read_splits` reads. A single split is
    divided 60/20/20 by seed 42, rows with the same prompt together. An empty column name means: find it. A prompt column holds what
    `render` takes, with tools in a column of that name; an answer column may be nested, `reward_model.ground_truth`, and holds what
    `reference` takes. unusable: names those of a list of reference answers, of reasoning-gym entries, that no completion could match,
    with the reason. drop_unusable: leave such rows out and count them.
    Raises UserError naming --dataset, the column flags, --drop-unusable or --max-prompt-length.
    """
    in_gym = gym.is_ours(dataset)
    if dataset in BUILT_IN or in_gym:
        given = {"--prompt-column": prompt_column, "--answer-column": answer_column, "--prompt-suffix": "" if in_gym else prompt_suffix}
        for flag, value in given.items():
            if value:
                raise UserError(f"{flag} {value!r} has no use with --dataset {dataset}, which writes its own prompts and answers; drop it")
    if dataset in BUILT_IN:
        splits = {split: _made(dataset, split, tokenizer) for split in ("train", "tune", "test")}
        templated = dataset == WORDS and bool(tokenizer.chat_template)
        return {split: _tokenize(columns, tokenizer, max_prompt_length, templated, split) for split, columns in splits.items()}
    if dataset == "math500":
        dataset, prompt_suffix = "HuggingFaceH4/MATH-500", prompt_suffix or BOXED_SUFFIX
    templated = bool(tokenizer.chat_template)
    if in_gym:
        table = _from_gym(dataset, prompt_suffix or gym.SUFFIX, tokenizer, unusable, drop_unusable)
        splits = _three_splits({"train": table}, dataset)
        return {split: _tokenize(columns, tokenizer, max_prompt_length, templated, split) for split, columns in splits.items()}
    read = read_splits(dataset)
    tables, theirs = _named(read, dataset), {("tune" if name in TUNE_NAMES else name): name for name in read}
    some = tables.get("train") or next(iter(tables.values()))
    prompt_column = prompt_column or _find(PROMPT_COLUMNS, some, "--prompt-column")
    answer_column = answer_column or _find(ANSWER_COLUMNS, some, "--answer-column")
    for split, columns in tables.items():  # before any is divided: an error names the rows of the file
        name = theirs[split]
        texts = _column(columns, prompt_column, "--prompt-column", name)
        require(bool(texts), f"--dataset {dataset}: its {name} split is empty")
        taken = sorted(rewards.ARGUMENTS & columns.keys())
        require(not taken, f"--dataset {dataset}: rewards get an argument named {', '.join(taken)} from the trainer: rename that column")
        cells = _column(columns, answer_column, "--answer-column", name)
        kept, answers = read_answers(cells, texts, f"--answer-column {answer_column}", name, unusable, drop_unusable)
        tools = columns.get("tools", [None] * len(texts))
        where = f"--prompt-column {prompt_column}: in {name}, a prompt (row"
        prompts = [render(texts[row], prompt_suffix, tokenizer, f"{where} {row})", tools[row]) for row in kept]
        columns = {column: [cells[row] for row in kept] for column, cells in columns.items()}
        tables[split] = {**columns, "prompt": prompts, "answer": answers}
    return {
        split: _tokenize(columns, tokenizer, max_prompt_length, templated, split)
        for split, columns in _three_splits(tables, dataset).items()
    }


def _made(dataset: str, split: str, tokenizer) -> Columns:
    """A split of one of BUILT_IN, its prompts as the model reads them."""
    from testbed import arithmetic, words

    if dataset in ARITHMETIC:
        return arithmetic.problems(split, ARITHMETIC[dataset])
    columns = words.problems(split)
    return {**columns, "prompt": [render(prompt, "", tokenizer, f"--dataset {dataset}: a prompt") for prompt in columns["prompt"]]}


def _from_gym(dataset: str, suffix: str, tokenizer, unusable: Callable[[list[str]], dict[str, str]], drop_unusable: bool) -> Columns:
    """The problems of a task of reasoning-gym, prompts as the model reads them."""
    table = ranks.on_first(lambda: gym.problems(dataset))
    kept, _ = read_answers(table["entry"], table["question"], f"--dataset {dataset}", "", unusable, drop_unusable, read=str)
    table = {name: [cells[row] for row in kept] for name, cells in table.items()}
    where = f"--dataset {dataset}: a problem"
    return table | {"prompt": [render(question.rstrip(), suffix, tokenizer, where) for question in table["question"]]}


def _named(tables: dict[str, Columns], dataset: str) -> dict[str, Columns]:
    """The only split, or those of use of several, as train, tune and test."""
    if len(tables) == 1:
        return dict(tables)
    tell_choice(dataset, [name for name in tables if name in TUNE_NAMES])
    names = {name: ("tune" if name in TUNE_NAMES else name) for name in tables}
    found = {names[name]: tables[name] for name in tables if names[name] in ("train", "tune", "test")}
    require({"train", "test"} <= set(found), f"--dataset {dataset} has the splits {sorted(tables)}; it needs train and test, or just one")
    return found


def read_answers(
    cells: list,
    texts: list,
    flag: str,
    split: str,
    unusable: Callable[[list[str]], dict[str, str]],
    drop_unusable: bool,
    read: Callable[[object], str | None] = reference,
) -> tuple[list[int], list[str]]:
    """The rows of a table that have an answer which a completion could match, and these answers, as `read` reads them.

    cells, texts: the answer and the prompt of each row. split: the table's name, or "". Raises UserError naming the flag, the split, how
    many rows have none and which is the first; with drop_unusable they are counted and left out, unless no row is left.
    """
    answers = [read(cell) for cell in cells]
    reasons = {None: "no completion could be right"} | unusable([answer for answer in answers if answer is not None])
    kept = [row for row, answer in enumerate(answers) if answer not in reasons]
    if len(kept) < len(answers):
        row = next(row for row, answer in enumerate(answers) if answer in reasons)
        in_split = f" of {split}" if split else ""
        count = f"{len(answers) - len(kept)} of {len(answers)} rows{in_split}"
        first = f"in row {row}, the answer to {str(texts[row])[:60]!r} is {cells[row]!r:.80}: {reasons[answers[row]]}"
        require(drop_unusable, f"{flag}: {count} cannot be used; {first}; correct them, add --drop-unusable, or name another column")
        require(bool(kept), f"--drop-unusable leaves no row{in_split}; {flag}: {first}")
        if ranks.rank() == 0:
            print(f"dropped {count} with --drop-unusable; {first}")
    return kept, [answers[row] for row in kept]


def _three_splits(tables: dict[str, Columns], dataset: str) -> dict[str, Columns]:
    """train, tune and test. Rows with the same prompt stay together, so that splits made here share none."""
    if len(tables) == 3:
        return _tell_shared(tables, dataset)
    if len(tables) == 1:
        (table,) = tables.values()
        if (distinct := len(set(table["prompt"]))) < 5:
            told = f"{len(table['prompt'])} rows with {distinct} different prompts"
            raise UserError(f"--dataset {dataset} has {told}: too few to divide into train, tune and test")
        train, rest = _divided(table, 0.4)
        test, tune = _divided(rest, 0.5)
        return {"train": train, "test": test, "tune": tune}
    distinct = len(set(_tell_shared(tables, dataset)["train"]["prompt"]))
    require(distinct > 1, f"--dataset {dataset} has one training prompt: too few to hold one out for tuning; add a tune file")
    train, tune = _divided(tables["train"], 0.1)  # the test split stays whole
    return {"train": train, "tune": tune, "test": tables["test"]}


def _tell_shared(tables: dict[str, Columns], dataset: str) -> dict[str, Columns]:
    """The tables, after saying how many prompts of the splits that came with the data stand in another one too."""
    for split, other in (("test", "train"), ("tune", "train"), ("tune", "test")):
        if split in tables and ranks.rank() == 0:
            prompts, others = tables[split]["prompt"], set(tables[other]["prompt"])
            if shared := sum(prompt in others for prompt in prompts):
                print(f"--dataset {dataset}: {shared} of its {len(prompts)} {split} prompts are {other} prompts too")
    return tables


def _divided(table: Columns, share: float) -> tuple[Columns, Columns]:
    """All but a share of the different prompts, and that share, with their rows: shuffled as by datasets' `train_test_split`, seed 42."""
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(table["prompt"]):
        groups.setdefault(prompt, []).append(row)
    rows, order, held = list(groups.values()), np.random.default_rng(42).permutation(len(groups)), ceil(share * len(groups))
    parts = ([row for place in places for row in rows[place]] for places in (order[held:], order[:held]))
    kept, held_out = ({name: [column[row] for row in part] for name, column in table.items()} for part in parts)
    return kept, held_out


def _column(columns: Columns, name: str, flag: str, split: str) -> list:
    """A column by name, or a field inside one by a dotted name."""
    head, *fields = [name] if name in columns else name.split(".")
    if head not in columns:
        raise UserError(f"{flag} {name}: no such column in {split}, which has {', '.join(sorted(columns))}")
    values = columns[head]
    for field in fields:
        for row, value in enumerate(values):
            if not isinstance(value, dict) or field not in value:
                raise UserError(f"{flag} {name}: column {head} has no field {field} in row {row} of {split}")
        values = [value[field] for value in values]
    return values


def _find(candidates: tuple[str, ...], columns: Columns, flag: str) -> str:
    for name in candidates:
        if name in columns or name.split(".")[0] in columns:
            return name
    raise UserError(f"{flag} is needed: none of {', '.join(candidates)} is a column; the dataset has {', '.join(columns)}")


def doubts(prompts: Prompts, tokenizer, model: str) -> str:
    """Why the model cannot read these prompts as it learned to, in one line; "" where nothing speaks against it."""
    from testbed.arithmetic import tokenizer as testbed_tokenizer

    unknown, texts = tokenizer.unk_token_id, prompts.columns["prompt"]
    share = 0.0 if unknown is None else sum(row.count(unknown) for row in prompts.ids) / sum(map(len, prompts.ids))
    if share > UNKNOWN:
        return f"{share:.0%} of the prompts' tokens are unknown to the tokenizer of --model {model}, which reads other texts"
    unended = [text for text in texts if not text.endswith("\n")]
    if unended and tokenizer.get_vocab() == testbed_tokenizer().get_vocab():
        told = f"{len(unended)} of {len(texts)} prompts, such as {unended[0][:40]!r}, do not end in a line break"
        return f"{told}, as all did that --model {model} was trained on"
    return ""


def _tokenize(columns: dict[str, list], tokenizer, max_length: int, templated: bool, split: str) -> Prompts:
    # a chat template has written the special tokens already
    ids = tokenizer(columns["prompt"], add_special_tokens=not templated)["input_ids"]
    empty = sum(not row for row in ids)
    kept = [i for i, row in enumerate(ids) if 0 < len(row) <= max_length]
    if not kept:
        shortest = min(map(len, ids), default=0)
        raise UserError(f"--max-prompt-length {max_length} drops every {split} prompt: the shortest has {shortest} tokens")
    if len(kept) + empty < len(ids) and ranks.rank() == 0:
        print(f"dropped {len(ids) - len(kept) - empty} of {len(ids)} {split} prompts longer than --max-prompt-length {max_length} tokens")
    if empty and ranks.rank() == 0:
        print(f"dropped {empty} of {len(ids)} {split} prompts that are empty")
    return Prompts(ids, columns).select(kept)
