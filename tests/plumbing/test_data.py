"""Datasets: splits, columns, templates, dropped prompts, and the errors that name a flag."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from prompts import BOXED_SUFFIX, Prompts, load_prompts
from support.running import ROOT
from testbed.arithmetic import tokenizer

MATH500 = ROOT.parent / "shared" / "data" / "math500"


def load(dataset, prompt_column="", answer_column="", suffix="", max_length=64, tok=None) -> dict[str, Prompts]:
    return load_prompts(str(dataset), tok or tokenizer(), prompt_column, answer_column, suffix, max_length)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int) -> list[dict]:
    return [{"problem": f"Q{i % 40}+1=?\n", "answer": i, "level": "easy"} for i in range(count)]


@pytest.mark.parametrize(("dataset", "operations"), [("arithmetic", 2), ("arithmetic3", 3)])
def test_arithmetic_splits_share_no_problem(dataset, operations):
    data = load(dataset)
    texts = {split: set(prompts.columns["prompt"]) for split, prompts in data.items()}
    assert set(texts) == {"train", "tune", "test"}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["tune"]
    assert not texts["tune"] & texts["test"]
    assert all(len(prompts) == len(prompts.columns["answer"]) >= 256 for prompts in data.values())
    assert all(sum(map(text.count, "+-")) == operations for prompts in texts.values() for text in prompts)


def test_one_file_is_split_60_20_20_without_overlap(tmp_path):
    data = load(write(tmp_path / "mine.jsonl", [{"problem": f"{i}", "answer": i} for i in range(50)]))
    assert {split: len(prompts) for split, prompts in data.items()} == {"train": 30, "tune": 10, "test": 10}
    assert sorted(int(a) for prompts in data.values() for a in prompts.columns["answer"]) == list(range(50))
    again = load(tmp_path / "mine.jsonl")
    assert all(again[split].columns == data[split].columns for split in data)


def test_a_folder_keeps_its_splits_and_columns_reach_the_rewards(tmp_path):
    for name, count in (("train", 12), ("validation", 4), ("test", 3)):
        write(tmp_path / f"{name}.jsonl", rows(count))
    data = load(tmp_path)
    assert {split: len(prompts) for split, prompts in data.items()} == {"train": 12, "tune": 4, "test": 3}
    assert data["test"].columns["level"] == ["easy"] * 3
    assert data["test"].columns["answer"] == ["0", "1", "2"]


def test_without_a_validation_split_the_test_split_stays_whole(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", rows(5))
    assert {split: len(prompts) for split, prompts in load(tmp_path).items()} == {"train": 18, "tune": 2, "test": 5}


def test_batches_are_shuffled_epochs_and_a_function_of_step_and_seed():
    prompts = Prompts([[i] for i in range(10)], {"answer": [str(i) for i in range(10)]})
    drawn = [prompts.batch(step, 4, seed=3).ids for step in range(1, 6)]  # 20 prompts: two epochs
    flat = [row[0] for batch in drawn for row in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert prompts.batch(4, 4, seed=3).ids == drawn[3]
    assert prompts.batch(4, 4, seed=4).ids != drawn[3]


def test_repeat_puts_a_prompts_rows_side_by_side():
    assert Prompts([[1], [2]], {"answer": ["a", "b"]}).repeat(2) == {"answer": ["a", "a", "b", "b"]}


def test_the_answer_of_a_worked_solution_is_what_it_boxes_last(tmp_path):
    solutions = [rf"First \boxed{{0}} is wrong, so it is \boxed{{\frac{{{n}}}{{7}}}}." for n in range(10)]
    write(tmp_path / "math.jsonl", [{"problem": "1+1", "solution": solution} for solution in solutions])
    answers = [a for split in load(tmp_path / "math.jsonl").values() for a in split.columns["answer"]]
    assert sorted(answers) == [rf"\frac{{{n}}}{{7}}" for n in range(10)]


def test_chat_template_and_suffix(tmp_path):
    tok = tokenizer()
    write(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": f"{i % 40}+1"}], "answer": i} for i in range(10)])
    plain = load(tmp_path / "chat.jsonl", "messages", suffix=" so")
    assert all(text.endswith("+1 so") for text in plain["train"].columns["prompt"])
    tok.chat_template = "{% for m in messages %}Q{{ m.content }}{% endfor %}{% if add_generation_prompt %}check{% endif %}"
    templated = load(tmp_path / "chat.jsonl", "messages", suffix=" so", tok=tok)
    assert all(text.startswith("Q") and text.endswith(" socheck") for text in templated["train"].columns["prompt"])


def test_longer_prompts_are_dropped_and_counted(tmp_path, capsys):
    write(tmp_path / "train.jsonl", [{"problem": "1+" * (n % 8) + "1", "answer": n} for n in range(60)])
    write(tmp_path / "test.jsonl", rows(3))
    data = load(tmp_path, max_length=9)
    assert all(len(ids) <= 9 for ids in data["train"].ids)
    assert len(data["train"].columns["answer"]) == len(data["train"])
    assert "dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: load(d / "nowhere"), "--dataset .*nowhere.*expected arithmetic, arithmetic3, math500"),
        (lambda d: load(d / "few.jsonl"), "--dataset .*has 2 rows"),
        (lambda d: load(d / "empty.jsonl"), "--dataset .*empty.jsonl"),
        (lambda d: load(d / "broken.jsonl"), "--dataset .*broken.jsonl could not be read"),
        (lambda d: load(d / "table.xlsx"), "--dataset .*table.xlsx.*parquet"),
        (lambda d: load(d / "fine.jsonl", prompt_column="promt"), "--prompt-column promt: no such column; .* answer, level, problem"),
        (lambda d: load(d / "fine.jsonl", answer_column="level.gold"), "--answer-column level.gold: column level has no field gold"),
        (lambda d: load(d / "odd.jsonl"), "--prompt-column is needed: none of prompt, problem, question"),
        (lambda d: load(d / "fine.jsonl", max_length=2), "--max-prompt-length 2 drops every train prompt"),
        (lambda d: load(d), "--dataset .*needs a train file"),
        (lambda d: load("arithmetic", suffix="Think."), "--prompt-suffix 'Think.' has no use with --dataset arithmetic"),
        (lambda d: load("arithmetic3", prompt_column="q"), "--prompt-column 'q' has no use with --dataset arithmetic3"),
    ],
)  # fmt: skip
def test_errors_name_the_flag(tmp_path, call, message):
    write(tmp_path / "few.jsonl", rows(2))
    write(tmp_path / "fine.jsonl", rows(20))
    write(tmp_path / "odd.jsonl", [{"x": 1, "answer": 2}] * 20)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"prompt": \n!!')
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(UserError, match=message):
        call(tmp_path)


@pytest.mark.parametrize("answer", [None, float("nan"), "", ["5", "6"], {"value": 5}])
def test_a_missing_answer_is_told_and_not_taken_for_a_word(answer, tmp_path):
    """Against the gold answer "None" no completion would ever be right."""
    good = [{"problem": f"Q{i}", "answer": answer if answer.__class__ in (list, dict) else float(i)} for i in range(9)]
    file = write(tmp_path / "mine.jsonl", [*good, {"problem": "Q9", "answer": answer}])
    with pytest.raises(UserError, match="--answer-column answer: in .*, the answer to 'Q.' is .*: no completion could be right"):
        load(file)


def test_an_empty_cell_of_a_csv_is_told(tmp_path):
    (tmp_path / "mine.csv").write_text("problem,answer\n" + "".join(f"Q{i},{i or ''}\n" for i in range(9)))
    with pytest.raises(UserError, match="the answer to 'Q0' is .*: no completion could be right"):
        load(tmp_path / "mine.csv")


@pytest.mark.parametrize("prompt", [None, [], [{"role": "user", "content": None}]])
def test_a_prompt_that_is_no_text_is_told(prompt, tmp_path):
    other = [{"role": "user", "content": "Q"}] if isinstance(prompt, list) else "Q"
    file = write(tmp_path / "mine.jsonl", [*({"prompt": other, "answer": i} for i in range(9)), {"prompt": prompt, "answer": 9}])
    with pytest.raises(UserError, match="--prompt-column prompt: in .*, a prompt is .*: it must be a text or a list of chat messages"):
        load(file)


def test_a_field_that_a_row_lacks_is_told(tmp_path):
    rows = [{"prompt": "Q", "reward_model": {"ground_truth": "5"} if i else None} for i in range(10)]
    with pytest.raises(UserError, match="--answer-column reward_model.ground_truth: column reward_model has no field ground_truth in row"):
        load(write(tmp_path / "mine.jsonl", rows))


@pytest.mark.skipif(not MATH500.is_dir(), reason="MATH-500 is not beside the repository")
def test_math500_from_files_has_the_papers_split_and_suffix():
    data = load(MATH500, max_length=10**6)
    assert {split: len(prompts) for split, prompts in data.items()} == {"train": 300, "tune": 100, "test": 100}
    assert all(text.endswith(BOXED_SUFFIX) for prompts in data.values() for text in prompts.columns["prompt"])
    assert len({text for prompts in data.values() for text in prompts.columns["prompt"]}) == 500
