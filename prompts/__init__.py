"""Prompts: the built-in arithmetic, MATH-500, any dataset of the hub, or local parquet, json, jsonl and csv files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import ranks
from common.errors import UserError, require
from common.seeds import derive
from integrations.model_checks import is_missing
from rewards.answers import reference

BOXED_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."  # the paper's, for MATH-500
FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
ARITHMETIC = {"arithmetic": 2, "arithmetic3": 3}  # operations of a problem
TUNE_NAMES = ("tune", "val", "validation", "dev")


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


def load_prompts(
    dataset: str, tokenizer, prompt_column: str, answer_column: str, prompt_suffix: str, max_prompt_length: int
) -> dict[str, Prompts]:
    """The splits "train", "tune" and "test" of a dataset, tokenized; longer prompts than max_prompt_length tokens are dropped and counted.

    dataset: `arithmetic` or `arithmetic3`, sums of two or three steps; `math500` (300/100/100 by seed 42 as in the paper, and its prompt
    suffix); a hub name, a file, or a folder of files named after their splits. A single split is divided 60/20/20 by seed 42. An empty
    column name means: find it. A prompt column holds text or a list of chat messages; an answer column may be nested,
    `reward_model.ground_truth`, or hold worked solutions whose last box is the answer.
    The tokenizer's chat template is used where there is one. Raises UserError naming --dataset, the column flags or --max-prompt-length.
    """
    if dataset in ARITHMETIC:
        from testbed.arithmetic import problems

        given = {"--prompt-column": prompt_column, "--answer-column": answer_column, "--prompt-suffix": prompt_suffix}
        for flag, value in given.items():
            if value:
                raise UserError(f"{flag} {value!r} has no use with --dataset {dataset}, which writes its own prompts and answers; drop it")
        splits = {split: problems(split, ARITHMETIC[dataset]) for split in ("train", "tune", "test")}
        return {split: _tokenize(columns, tokenizer, max_prompt_length, False, split) for split, columns in splits.items()}
    if dataset == "math500":
        dataset, prompt_suffix = "HuggingFaceH4/MATH-500", prompt_suffix or BOXED_SUFFIX
    tables = _three_splits(_read(dataset), dataset)
    prompt_column = prompt_column or _find(("prompt", "problem", "question"), tables["train"], "--prompt-column")
    answer_column = answer_column or _find(("answer", "reward_model.ground_truth", "solution"), tables["train"], "--answer-column")
    splits = {}
    for split, table in tables.items():
        if len(table) == 0:
            raise UserError(f"--dataset {dataset}: its {split} split is empty")
        columns = {name: list(table[name]) for name in table.column_names}
        texts = _column(columns, prompt_column, "--prompt-column")
        prompts = [_text(text, prompt_suffix, tokenizer, f"--prompt-column {prompt_column}: in {split}, a prompt") for text in texts]
        of = f"--answer-column {answer_column}: in {split}, the answer to"
        found = zip(_column(columns, answer_column, "--answer-column"), texts, strict=True)
        answers = [_reference(answer, f"{of} {str(text)[:60]!r}") for answer, text in found]
        splits[split] = _tokenize(
            {**columns, "prompt": prompts, "answer": answers}, tokenizer, max_prompt_length, bool(tokenizer.chat_template), split
        )
    return splits


def _read(dataset: str):
    """The tables of a file, a folder or the hub, by the name of their split."""
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    def file_table(file: Path):
        if file.stat().st_size == 0:  # which the library reports as the end of an iteration
            raise UserError(f"--dataset {dataset}: {file.name} is empty")
        return load_dataset(FORMATS[file.suffix], data_files=str(file), split="train")

    require(not is_missing(dataset), f"--dataset {dataset}: no such file or folder")
    disable_progress_bars()
    path = Path(dataset)
    try:
        if path.is_file():
            if path.suffix not in FORMATS:
                raise UserError(f"--dataset {dataset}: cannot read its format; use one of {', '.join(FORMATS)}")
            return {"train": file_table(path)}
        if path.is_dir():
            files = {f.stem: f for f in sorted(path.iterdir()) if f.suffix in FORMATS}
            if "train" not in files:
                raise UserError(f"--dataset {dataset}: the folder needs a train file ({', '.join(FORMATS)}); it has {sorted(files)}")
            return {name: file_table(f) for name, f in files.items()}
        return load_dataset(dataset)
    except (OSError, ValueError, DatasetsError) as error:  # no such file or name, no network, broken content
        known = "arithmetic, arithmetic3, math500, a hub name, or a parquet, json, jsonl or csv file"
        raise UserError(f"--dataset {dataset} could not be read: {str(error).strip().splitlines()[0]} (expected {known})") from error


def _three_splits(tables, dataset: str) -> dict:
    """train, tune and test out of whatever splits there are."""
    names = {name: ("tune" if name in TUNE_NAMES else name) for name in tables}
    found = {names[name]: tables[name] for name in tables if names[name] in ("train", "tune", "test")}
    if len(found) == 3:
        return found
    if len(tables) == 1:
        (table,) = tables.values()
        if len(table) < 5:
            raise UserError(f"--dataset {dataset} has {len(table)} rows: too few to divide into train, tune and test")
        first = table.train_test_split(0.4, seed=42)
        second = first["test"].train_test_split(0.5, seed=42)
        return {"train": first["train"], "test": second["train"], "tune": second["test"]}
    if {"train", "test"} <= set(found):  # hold prompts for tuning out of the training ones: the test split stays whole
        divided = found["train"].train_test_split(0.1, seed=42)
        return {"train": divided["train"], "tune": divided["test"], "test": found["test"]}
    raise UserError(f"--dataset {dataset} has the splits {sorted(tables)}; it needs train and test, or just one")


def _column(columns: dict[str, list], name: str, flag: str) -> list:
    """A column by name, or a field inside one by a dotted name."""
    head, *fields = name.split(".")
    if head not in columns:
        raise UserError(f"{flag} {name}: no such column; the dataset has {', '.join(sorted(columns))}")
    values = columns[head]
    for field in fields:
        for row, value in enumerate(values):
            if not isinstance(value, dict) or field not in value:
                raise UserError(f"{flag} {name}: column {head} has no field {field} in row {row}")
        values = [value[field] for value in values]
    return values


def _reference(answer: object, where: str) -> str:
    """The answer in a cell, which may hold a worked solution: see `rewards.answers.reference`. where: what it is, for the error."""
    found = reference(answer)
    if found is None:
        raise UserError(f"{where} is {answer!r}: no completion could be right; drop the row, or name a column of texts or numbers")
    return found


def _find(candidates: tuple[str, ...], table, flag: str) -> str:
    for name in candidates:
        if name.split(".")[0] in table.column_names:
            return name
    raise UserError(f"{flag} is needed: none of {', '.join(candidates)} is a column; the dataset has {', '.join(table.column_names)}")


def _text(prompt: object, suffix: str, tokenizer, where: str) -> str:
    """What the model reads: through the chat template where the tokenizer has one, else the messages' text. where: what it is, for the
    error about what is neither a text nor a list of chat messages."""
    messages = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in prompt)
    if not isinstance(prompt, str) and not messages:
        raise UserError(
            f"{where} is {str(prompt)[:60]!r}: it must be a text or a list of chat messages; drop the row, or name another column"
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    messages[-1]["content"] += suffix
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return "\n".join(message["content"] for message in messages)


def _tokenize(columns: dict[str, list], tokenizer, max_length: int, templated: bool, split: str) -> Prompts:
    # a chat template has written the special tokens already
    ids = tokenizer(columns["prompt"], add_special_tokens=not templated)["input_ids"]
    kept = [i for i, row in enumerate(ids) if 0 < len(row) <= max_length]
    if not kept:
        shortest = min(map(len, ids), default=0)
        raise UserError(f"--max-prompt-length {max_length} drops every {split} prompt: the shortest has {shortest} tokens")
    if len(kept) < len(ids) and ranks.rank() == 0:
        print(f"dropped {len(ids) - len(kept)} of {len(ids)} {split} prompts longer than --max-prompt-length {max_length} tokens")
    return Prompts(ids, columns).select(kept)
