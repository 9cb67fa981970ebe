"""Datasets: splits, columns, templates, dropped prompts, and the errors that name a flag."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

import rewards
from common.errors import UserError
from prompts import BOXED_SUFFIX, Prompts, doubts, load_prompts
from rewards import accuracy
from rewards.answers import reference
from support.models import fails_in_doctor
from support.running import ROOT, train
from testbed.arithmetic import tokenizer

MATH500 = ROOT.parent / "shared" / "data" / "math500"


def load(dataset, prompt_column="", answer_column="", suffix="", max_length=64, tok=None, **options) -> dict[str, Prompts]:
    return load_prompts(str(dataset), tok or tokenizer(), prompt_column, answer_column, suffix, max_length, **options)


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
    write(tmp_path / "math.jsonl", [{"problem": f"{i}+1", "solution": text} for i, text in enumerate(solutions)])
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
        (lambda d: load("no/where"), "--dataset no/where could not be read.*expected arithmetic, arithmetic3, words, math500"),
        (lambda d: load(d / "few.jsonl"), "--dataset .*has 2 rows with 2 different prompts: too few"),
        (lambda d: load(d / "empty.jsonl"), "--dataset .*empty.jsonl"),
        (lambda d: load(d / "broken.jsonl"), "--dataset .*broken.jsonl could not be read"),
        (lambda d: load(d / "table.xlsx"), "--dataset .*table.xlsx.*parquet"),
        (lambda d: load(d / "fine.jsonl", prompt_column="promt"), "--prompt-column promt: no such column in train, which .* answer, level"),
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
    with pytest.raises(UserError, match="--answer-column answer: .* in row ., the answer to 'Q.' is .*: no completion could be right"):
        load(file)


def test_an_empty_cell_of_a_csv_is_told(tmp_path):
    (tmp_path / "mine.csv").write_text("problem,answer\n" + "".join(f"Q{i},{i or ''}\n" for i in range(9)))
    told = "1 of 9 rows of train cannot be used; in row 0, the answer to 'Q0' is '': no completion could be right"
    with pytest.raises(UserError, match=told):
        load(tmp_path / "mine.csv")


# --- Reference answers that cannot be used ---


def unusable(answers: list[str]) -> dict[str, str]:
    return accuracy.unusable(answers, "math-verify")


@pytest.mark.parametrize("bad", ["?!", r"\frac{1}{", "x" * 301, "", None, ["1", "2"], "word " * 13])
def test_every_answer_is_read_before_the_first_step(bad, tmp_path, capsys):
    """Those that are drawn late too; with the flag they are left out, and what is left is divided."""
    good = [["7"], r"\frac12", "12:00", "€18", "½", "words", 8]
    table = [{"problem": f"Q{i}", "answer": bad if i in (11, 23, 59) else good[i % 7], "n": i} for i in range(60)]
    file = write(tmp_path / "mine.jsonl", table)
    with pytest.raises(UserError) as caught:
        load(file, unusable=unusable)
    message = str(caught.value)
    assert message.startswith("--answer-column answer: 3 of 60 rows of train cannot be used; in row 11, the answer to 'Q11' is ")
    assert message.endswith("correct them, add --drop-unusable, or name another column")
    assert "\n" not in message
    data = load(file, unusable=unusable, drop_unusable=True)
    assert capsys.readouterr().out.startswith("dropped 3 of 60 rows of train with --drop-unusable; in row 11, the answer to 'Q11' is ")
    assert {split: len(prompts) for split, prompts in data.items()} == {"train": 34, "test": 11, "tune": 12}
    found = {
        n: (prompt, answer)
        for prompts in data.values()
        for n, prompt, answer in zip(*columns_of(prompts, "n", "prompt", "answer"), strict=True)
    }
    assert sorted(found) == [i for i in range(60) if i not in (11, 23, 59)]
    assert all(found[n] == (f"Q{n}", reference(good[n % 7])) for n in found)


def columns_of(prompts: Prompts, *names: str) -> list[list]:
    return [prompts.columns[name] for name in names]


def test_answers_of_the_test_split_are_read_too(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", [*rows(3), {"problem": "Q", "answer": "?!"}])
    with pytest.raises(UserError, match="1 of 4 rows of test cannot be used; in row 3, the answer to 'Q' is '[?]!'"):
        load(tmp_path, unusable=unusable)
    assert len(load(tmp_path, unusable=unusable, drop_unusable=True)["test"]) == 3


def test_a_split_is_called_as_its_file_is(tmp_path):
    for name, answer in (("train", 1), ("test", 1), ("val", "?!")):
        write(tmp_path / f"{name}.jsonl", [{"problem": f"{name}{i}", "answer": answer} for i in range(5)])
    with pytest.raises(UserError, match="5 of 5 rows of val cannot be used; in row 0, the answer to 'val0' is"):
        load(tmp_path, unusable=unusable)


def test_where_no_row_would_be_left(tmp_path):
    file = write(tmp_path / "mine.jsonl", [{"problem": f"Q{i}", "answer": "?!"} for i in range(9)])
    with pytest.raises(UserError, match="--drop-unusable leaves no row of train; --answer-column answer: in row 0"):
        load(file, unusable=unusable, drop_unusable=True)


def test_only_our_accuracy_minds():
    mine = {"mine": lambda **_: []}
    assert rewards.unusable({"accuracy": accuracy.accuracy}, ["?!", "7"], "math-verify").keys() == {"?!"}
    assert rewards.unusable({"accuracy": accuracy.accuracy}, ["?!", "7"], "exact") == {}
    assert rewards.unusable(mine, ["?!", "7"], "math-verify") == {}


GSM8K = [f"He has {i} + 1,000 = <<{i}+1000={1000 + i}>>1,{i:03d} of them.\n#### 1,{i:03d}" + " " * (i % 3) for i in range(20)]


def test_training_and_doctor_read_them(tmp_path, capsys, monkeypatch):
    """A set such as GSM8K is read; with one row that nobody can answer both refuse, and both take --drop-unusable."""
    monkeypatch.chdir(tmp_path)
    fine = [{"question": f"Q({i}+1)=?\n", "answer": text * 9 if i < 9 else text} for i, text in enumerate(GSM8K)]
    assert max(len(row["answer"]) for row in fine) > 300
    write(Path("mine.jsonl"), fine)
    train("linear", Path("run"), dataset="mine.jsonl", steps=1)
    answers = [answer for prompts in load("mine.jsonl").values() for answer in prompts.columns["answer"]]
    assert sorted(answers) == [str(1000 + i) for i in range(20)]
    write(Path("mine.jsonl"), [*fine, {"question": "Q(1+1)=?\n", "answer": "#### ?!"}])
    told = "1 of 21 rows of train cannot be used; in row 20, the answer to 'Q(1+1)=?"
    with pytest.raises(UserError, match=re.escape(told)):
        train("linear", Path("other"), dataset="mine.jsonl", steps=1)
    assert not Path("other").exists()
    fails_in_doctor(capsys, "dataset", told, dataset="mine.jsonl")
    train("linear", Path("other"), dataset="mine.jsonl", steps=1, drop_unusable=True)
    assert "dropped 1 of 21 rows of train" in capsys.readouterr().out


# --- The same prompt twice ---


@pytest.mark.parametrize("count", [5, 10, 50, 51, 333])
def test_a_file_is_divided_as_datasets_would(count, tmp_path):
    first = Dataset.from_dict({"n": range(count)}).train_test_split(0.4, seed=42)
    second = first["test"].train_test_split(0.5, seed=42)
    data = load(write(tmp_path / "mine.jsonl", [{"problem": f"{n}", "answer": 1, "n": n} for n in range(count)]))
    wanted = {"train": first["train"], "test": second["train"], "tune": second["test"]}
    assert {split: prompts.columns["n"] for split, prompts in data.items()} == {split: list(part["n"]) for split, part in wanted.items()}


@pytest.mark.parametrize("files", [["mine"], ["train", "test"]])
def test_rows_of_one_prompt_stay_together(files, tmp_path):
    """So no prompt of the splits made here stands in two of them, however often it is asked and however it is written."""
    table = [{"problem": [{"role": "user", "content": f"Q{n % 50}"}] if n % 2 else f"Q{n % 50}", "answer": 1, "n": n} for n in range(200)]
    for file in files:
        write(tmp_path / f"{file}.jsonl", table if file != "test" else [{"problem": "other", "answer": 1, "n": -1}])
    # parquet would not have both kinds of prompt in a column; our reader of JSON does
    data = load(tmp_path / "mine.jsonl" if len(files) == 1 else tmp_path)
    split_of = {}
    for split, prompts in data.items():
        for text, n in zip(*columns_of(prompts, "prompt", "n"), strict=True):
            assert split_of.setdefault(text, split) == split
            assert n < 0 or text == f"Q{n % 50}"
    assert sorted(n for prompts in data.values() for n in prompts.columns["n"] if n >= 0) == list(range(200))
    assert {split: len(set(prompts.columns["prompt"])) for split, prompts in data.items()} == (
        {"train": 30, "tune": 10, "test": 10} if len(files) == 1 else {"train": 45, "tune": 5, "test": 1}
    )


def test_few_different_prompts_cannot_be_divided(tmp_path):
    with pytest.raises(UserError, match="has 100 rows with 4 different prompts: too few to divide"):
        load(write(tmp_path / "mine.jsonl", [{"problem": f"Q{n % 4}", "answer": 1} for n in range(100)]))


def test_test_prompts_that_were_trained_on_are_told(tmp_path, capsys):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", [*rows(3), {"problem": "Q77+1=?\n", "answer": 1}])
    assert len(load(tmp_path)["test"]) == 4
    assert capsys.readouterr().out == f"--dataset {tmp_path}: 3 of its 4 test prompts are train prompts too\n"


@pytest.mark.parametrize("same", ["train", "test"])
def test_so_are_prompts_for_tuning(same, tmp_path, capsys):
    for name, start in (("train", 0), ("test", 100)):
        write(tmp_path / f"{name}.jsonl", [{"problem": f"Q{start + i}", "answer": 1} for i in range(9)])
    write(tmp_path / "val.jsonl", [{"problem": f"Q{100 * (same == 'test') + i}", "answer": 1} for i in range(3)])
    load(tmp_path)
    assert capsys.readouterr().out == f"--dataset {tmp_path}: 3 of its 3 tune prompts are {same} prompts too\n"


def test_one_training_prompt_cannot_be_divided(tmp_path):
    write(tmp_path / "train.jsonl", [{"problem": "Q", "answer": 1}] * 9)
    write(tmp_path / "test.jsonl", rows(3))
    with pytest.raises(UserError, match="has one training prompt: too few to hold one out for tuning"):
        load(tmp_path)


def test_empty_prompts_are_counted_as_what_they_are(tmp_path, capsys):
    write(tmp_path / "train.jsonl", [{"problem": "" if i < 3 else f"Q{i}", "answer": 1} for i in range(20)])
    write(tmp_path / "test.jsonl", [{"problem": f"T{i}", "answer": 1} for i in range(3)])
    load(tmp_path)
    assert re.fullmatch(r"(dropped \d of \d+ (train|tune) prompts that are empty\n)+", capsys.readouterr().out)


# --- Names of splits and columns ---


def test_a_column_with_a_dot_in_its_name(tmp_path):
    """As a flattened table has it."""
    file = write(tmp_path / "mine.jsonl", [{"prompt": f"Q{i}", "reward_model.ground_truth": i} for i in range(10)])
    assert sorted(int(a) for prompts in load(file).values() for a in prompts.columns["answer"]) == list(range(10))


def test_a_column_that_rewards_get_from_the_trainer_is_named(tmp_path):
    with pytest.raises(UserError, match="rewards get an argument named completions, prompts from the trainer: rename that column"):
        load(write(tmp_path / "mine.jsonl", [{"problem": f"Q{i}", "answer": i, "prompts": 1, "completions": 2} for i in range(10)]))


def test_a_split_without_the_column_is_named(tmp_path):
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "test.jsonl", [{"question": "Q", "answer": 1}] * 3)
    with pytest.raises(UserError, match="--prompt-column problem: no such column in test, which has answer, question"):
        load(tmp_path)


@pytest.mark.parametrize(("first", "second"), [("dev", "val"), ("dev", "validation"), ("tune", "validation"), ("dev", "tune")])
def test_of_two_splits_for_tuning_the_one_taken_is_told(first, second, tmp_path, capsys):
    for name, count in (("train", 20), ("test", 3), (first, 4), (second, 5)):
        write(tmp_path / f"{name}.jsonl", [{"problem": f"{name}{i}", "answer": 1} for i in range(count)])
    assert len(load(tmp_path)["tune"]) == 5
    assert capsys.readouterr().out == f"--dataset {tmp_path} has {first} and {second}: {second} is taken\n"


def test_a_hub_name_with_its_config(monkeypatch):
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        if config is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']")
        return DatasetDict({split: Dataset.from_list(rows(20)) for split in ("train", "test")})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"could not be read: Config name is missing.*'main', 'socratic'.*expected openai/gsm8k:CONFIG"):
        load("openai/gsm8k")
    assert len(load("openai/gsm8k:main")["test"]) == 20
    assert asked == [("openai/gsm8k", None), ("openai/gsm8k", "main")]


# --- Prompts that the model cannot read ---


@pytest.mark.parametrize(
    ("prompts", "model", "told"),
    [
        (["How many apples has Tom?\n"] * 9, "testbed", "% of the prompts' tokens are unknown to the tokenizer of --model testbed"),
        (["Q1+1=?\n"] * 8 + ["What is 3 plus 4, Tom?\n"], "m", "unknown to the tokenizer of --model m"),
        (["Q1+1=?"] * 2 + ["Q1+1=?\n"], "m", "2 of 3 prompts, such as 'Q1+1=?', do not end in a line break, as all did that --model m"),
        (["Q1+1=?\n"] * 9, "testbed", None),
        (["Q1+1=?\n"] * 99 + ["Q1+1=é\n"], "testbed", None),
    ],
)
def test_prompts_that_the_model_was_not_made_for(prompts, model, told):
    data = Prompts(tokenizer()(prompts)["input_ids"], {"prompt": prompts})
    found = doubts(data, tokenizer(), model)
    assert told in found if told else found == ""


def test_training_and_doctor_tell_of_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("mine.jsonl"), [{"prompt": f"What is {i} plus 1, Tom?", "answer": i + 1} for i in range(40)])
    train("linear", Path("run"), dataset="mine.jsonl", steps=1)
    assert re.search(r"warning: \d+% of the prompts' tokens are unknown", capsys.readouterr().out)
    fails_in_doctor(capsys, "dataset", "of the prompts' tokens are unknown", dataset="mine.jsonl")


@pytest.mark.parametrize("prompt", [None, [], [{"role": "user", "content": None}]])
def test_a_prompt_that_is_no_text_is_told(prompt, tmp_path):
    other = [{"role": "user", "content": "Q"}] if isinstance(prompt, list) else "Q"
    file = write(tmp_path / "mine.jsonl", [*({"prompt": other, "answer": i} for i in range(9)), {"prompt": prompt, "answer": 9}])
    with pytest.raises(UserError, match="--prompt-column prompt: in train, a prompt .row 9. is .*: it must be a text or a list of chat"):
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
