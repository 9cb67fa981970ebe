"""Rewards on a file of completions: the statistics against numpy and loops, what it says, the files it reads, and docs/rewards.md."""

import json
import math
import os
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import rewards
from tools.score import describe, look_at, read_completions, statistics
from common.errors import UserError
from common.files import write_whole
from support.running import ROOT
from testbed.arithmetic import problems

PAGE = (ROOT / "docs" / "rewards.md").read_text()

OWN = """
def words(completions, **kwargs):
    return [float(len(text.split())) for text in completions]

def copied(completions, **kwargs):
    return [2.0 * len(text.split()) + 1 for text in completions]

def terse(completions, **kwargs):
    return [-float(len(text.split())) for text in completions]

def flat(completions, **kwargs):
    return [0.1] * len(completions)

def easy(prompts, **kwargs):
    return [float(len(prompt)) / 3 for prompt in prompts]

def level(level, **kwargs):
    return [float(value) for value in level]

def ids(completion_ids, mean_length, **kwargs):
    return [len(row) - mean_length for row in completion_ids]

def fails(completions, **kwargs):
    raise ValueError("no idea")

def not_a_number(completions, **kwargs):
    return [float("nan")] * len(completions)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder to work in, with rewards in own.py; returns the path of one of them as in --rewards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return lambda *names: [f"own.py:{name}" for name in names]


def write(name: str, rows: list[dict]) -> str:
    with open(name, "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return name


def made(groups: list[int], K: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards [B, K], correlated with one another and different between prompts, lengths [B] and groups [B], in no order."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.array(groups))
    values = rng.normal(size=(len(groups), K)) @ rng.normal(size=(K, K)) + rng.normal(size=(groups.max() + 1, K))[groups]
    return values, np.rint(20 + 5 * values[:, 0] + rng.normal(size=len(groups))), groups


# --- Statistics ---


def test_over_all_completions_it_is_numpy():
    values, lengths, groups = made([0] * 8 + [1] * 8 + [2] * 8)
    values[:, 2] = np.rint(values[:, 2])
    found = statistics(values, lengths, groups, np.ones(3) / 3)
    assert found.correlation == pytest.approx(np.corrcoef(np.column_stack([values, lengths]), rowvar=False))
    for name, expected in (("mean", values.mean(0)), ("sd", values.std(0)), ("low", values.min(0)), ("high", values.max(0))):
        assert getattr(found, name) == pytest.approx(expected)
    assert found.distinct.tolist() == [24, 24, len(set(values[:, 2]))]
    assert found.commonest[2] == max(np.mean(values[:, 2] == value) for value in values[:, 2])


@pytest.mark.parametrize("groups", [[0] * 4 + [1] * 4 + [2] * 4, [0] * 2 + [1] * 5 + [2] * 3 + [3]], ids=["equal", "unequal, one alone"])
def test_within_prompts_it_is_a_loop_over_the_prompts(groups):
    values, lengths, groups = made(groups)
    values[groups == 1, 1] = 0.1  # no signal in one prompt
    weights = np.array([0.5, 0.2, 0.3])
    found = statistics(values, lengths, groups, weights)
    several = [g for g in np.unique(groups) if (groups == g).sum() > 1]
    assert found.prompts == len(several) == 3
    both = np.column_stack([values, lengths])
    C = np.mean([np.cov(both[groups == g], rowvar=False, bias=True) for g in several], axis=0)
    assert found.within_correlation == pytest.approx(C / np.sqrt(np.outer(C.diagonal(), C.diagonal())))
    assert found.within == pytest.approx(np.sqrt(C.diagonal()[:3]))
    assert found.between == pytest.approx(np.std([values[groups == g].mean(0) for g in several], axis=0))
    assert found.signal == pytest.approx([1, 2 / 3, 1])

    scores, laws = values @ weights, []
    for g in several:
        rows = np.flatnonzero(groups == g)
        mean = [sum(values[i, k] for i in rows) / len(rows) for k in range(3)]
        score = sum(scores[i] for i in rows) / len(rows)
        laws.append([sum((values[i, k] - mean[k]) * (scores[i] - score) for i in rows) / len(rows) for k in range(3)])
    assert found.law == pytest.approx(np.mean(laws, axis=0))
    assert found.law_se == pytest.approx(np.std(laws, axis=0, ddof=1) / math.sqrt(len(several)))


def test_the_law_is_what_a_run_logs_as_cov():
    import torch

    from algos.linear import scalarize, within_prompt_covariance

    values, lengths, _ = made([0] * 32)
    weights = np.array([0.5, 0.2, 0.3])
    found = statistics(values, lengths, np.repeat(np.arange(4), 8), weights)
    scores = scalarize(torch.tensor(values), torch.tensor(weights))
    assert found.law == pytest.approx(within_prompt_covariance(scores, torch.tensor(values), 8).numpy())


def test_variance_is_divided_between_and_within_prompts():
    values, lengths, groups = made([0] * 6 + [1] * 6 + [2] * 6)
    found = statistics(values, lengths, groups, np.ones(3) / 3)
    assert found.sd**2 == pytest.approx(found.between**2 + found.within**2)


def test_the_order_of_the_file_does_not_matter():
    values, lengths, groups = made([0] * 5 + [1] * 4 + [2] * 2)
    order = np.random.default_rng(1).permutation(len(groups))
    texts = [
        describe(["a", "b", "c"], np.ones(3) / 3, statistics(values[rows], lengths[rows], groups[rows], np.ones(3) / 3))
        for rows in (np.arange(len(groups)), order)
    ]
    assert texts[0] == texts[1]


def test_what_is_constant_has_no_correlation_and_no_prediction_however_it_rounds():
    values, lengths, groups = made([0] * 7 + [1] * 7)
    values[:, 0], values[:, 1] = 0.1, np.array([0.1, 0.7])[groups]  # seven times .1 does not sum to .7
    weights = np.ones(3) / 3
    found = statistics(values, lengths, groups, weights)
    assert np.isnan(found.correlation[0, 1:]).all()
    assert np.isnan(found.within_correlation[:2]).all()
    assert found.law[:2].tolist() == found.within[:2].tolist() == found.signal[:2].tolist() == [0, 0]
    text = describe(["flat", "easy", "free"], weights, found)
    assert "flat is dead: 0.1 for every completion" in text
    assert "easy is dead: constant within each of 2 prompts (sd between them 0.3)." in text
    assert "free is dead" not in text


def test_where_two_rewards_cancel_nothing_is_predicted():
    for seed in range(10):
        values, lengths, groups = made([0] * 8 + [1] * 8, K=2, seed=seed)
        values[:, 1] = -values[:, 0] / 3
        weights = np.array([0.25, 0.75])
        text = describe(["a", "b"], weights, statistics(values, lengths, groups, weights))
        assert text.count("+0 ± ") == text.count("not told from 0") == 2
        assert "given up" not in text


@pytest.mark.parametrize("K", [1, 5, 10])
def test_the_tables_fit_into_100_columns(K):
    values, lengths, groups = made([0] * 8 + [1] * 8, K)
    names = [f"a_reward_with_a_long_name_{k}" for k in range(K)]
    found = statistics(-1e4 * values, lengths, groups, np.ones(K) / K)
    tables = describe(names, np.ones(K) / K, found).split("\n\n")[:3]
    assert max(map(len, "\n".join(tables).splitlines())) <= 100


# --- Words ---


def test_the_matrix_has_all_completions_above_its_diagonal_and_prompts_below():
    values = np.array([[0, 1], [1, 0], [10, 11], [11, 10]], dtype=np.float64)  # rise together between prompts, against each other within
    found = statistics(values, np.array([1, 1, 2, 2]), np.array([0, 0, 1, 1]), np.ones(2) / 2)
    text = describe(["a", "b"], np.ones(2) / 2, found)
    assert re.search(r"\na +\. +\+0\.98 +\+1\.00\nb +-1\.00 +\. +\+1\.00\nlength +- +- +\.\n", text)
    assert "a and b pull apart, correlation -1.00 within prompts" in text


def rows_of(lengths: dict[str, list[int]]) -> list[dict]:
    return [{"prompt": prompt, "completion": "so " * n} for prompt, counts in lengths.items() for n in counts]


def test_it_tells_duplicates_opposition_and_what_would_be_given_up(own):
    file = write("f.jsonl", rows_of({"a": [1, 2, 5, 6], "bb": [2, 2, 3, 8], "ccc": [1, 4, 4, 7]}))
    text = look_at(file, own("words", "copied", "terse", "flat", "easy"))
    assert "f.jsonl: 12 completions of 3 prompts, 4 of each\nlength in words, for want of --tokenizer: mean 3.75, 1 to 8;" in text
    assert "words and copied are nearly the same, correlation +1.00 within prompts" in text
    assert "words and terse pull apart, correlation -1.00 within prompts" in text
    assert "words is nearly the length, correlation +1.00" in text
    assert "terse is nearly the length, correlation -1.00" in text
    assert "flat is dead: 0.1 for every completion" in text
    assert "easy is dead: constant within each of 3 prompts" in text
    assert "With equal weights terse would be given up at first order" in text
    weighed = look_at(file, own("words", "terse"), weights=[1, 3])
    assert re.search(r"words +-2\.49 ± 0\.3 +falls", weighed)
    assert "With weights 0.25 0.75 words would be given up at first order" in weighed


def test_without_two_completions_of_a_prompt_it_says_what_is_missing(own):
    for rows in (rows_of({"a": [1], "b": [2], "c": [5]}), [{"text": "so " * n} for n in (1, 2, 5)]):
        text = look_at(write("f.jsonl", rows), own("words", "copied"))
        assert "No prompt has two completions" in text
        assert "words and copied are nearly the same, correlation +1.00:" in text
        assert "first order," not in text
        assert "nan" not in text
    assert "3 completions without prompts" in text


def test_one_prompt_has_no_standard_error(own):
    text = look_at(write("f.jsonl", rows_of({"a": [1, 2, 5]})), own("words", "terse"), weights=[1, 3])
    assert re.search(r"words +-1\.4\S* ± - +not told from 0", text)


# --- Files ---


def as_jsonl(rows):
    write("f.jsonl", rows)


def as_json(rows):
    with open("f.json", "w") as file:
        json.dump(rows, file)


def as_csv(rows):
    import csv

    with open("f.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "f.parquet")


@pytest.mark.parametrize("writer", [as_jsonl, as_json, as_csv, as_parquet])
def test_every_format_gives_the_rewards_the_same(writer, own, capsys):
    texts = ["two\nlines", 'a "quote", so', "", "None", "\\boxed{7}", " 7 "]
    rows = [{"question": "ab"[i % 2], "text": text, "answer": 7, "level": i} for i, text in enumerate(texts)]
    writer(rows)
    (file,) = (f"f.{kind}" for kind in ("jsonl", "json", "csv", "parquet") if writer.__name__ == f"as_{kind}")
    data = read_completions(file)
    assert data.texts == texts
    assert data.prompts == data.columns["prompt"] == ["a", "b"] * 3
    assert data.groups.tolist() == [0, 1] * 3
    assert data.columns["answer"] == ["7"] * 6
    print(look_at(file, [*own("level", "words"), "rewards.accuracy:accuracy"]))
    shown = capsys.readouterr().out
    assert re.search(r"level +2\.5 +1\.71 +0 +5 +6 +17% +100%", shown)
    assert re.search(r"accuracy +0\.167 +0\.373 +0 +1 +2 +83% +50%", shown)


def test_columns_are_found_by_name_nested_and_in_messages(own):
    message = [{"role": "assistant", "content": "seven"}]
    rows = [{"p": [{"role": "user", "content": "why?"}], "out": {"text": message}, "reward_model": {"ground_truth": "\\boxed{7}"}}] * 2
    data = read_completions(write("f.jsonl", rows), completion_column="out.text", prompt_column="p")
    assert (data.texts, data.prompts, data.columns["answer"]) == (["seven"] * 2, ["why?"] * 2, ["7"] * 2)
    several = read_completions(
        write("g.jsonl", [{"prompt": "a", "completions": ["x", "y"], "level": 1}, {"prompt": "b", "completions": ["z"], "level": 2}])
    )
    assert several.texts == ["x", "y", "z"]
    assert several.prompts == ["a", "a", "b"]
    assert several.columns["level"] == [1, 1, 2]


def test_lengths_are_the_files_ids_or_the_tokenizers_with_an_end(own):
    rows = [{"prompt": "Q1+1=?\n", "completion": "\\boxed{2}"}, {"prompt": "Q1+1=?\n", "completion": "so \\boxed{2}"}]
    text = look_at(write("f.jsonl", rows), own("ids"), tokenizer="testbed")
    assert "length in tokens of testbed, an end of sequence added to each: mean 4.5, 4 to 5; mean_length 4.5, the mean of the file" in text
    text = look_at(
        write("g.jsonl", [row | {"completion_ids": [1] * n} for row, n in zip(rows, (2, 8), strict=True)]), own("ids"), mean_length=3
    )
    assert "length in tokens (completion_ids): mean 5, 2 to 8; mean_length 3\n" in text
    assert re.search(r"ids +2 +3 +-1 +5", text)


def test_a_runs_completions_take_answers_tokenizer_and_rewards_from_its_flags(own, tmp_path):
    prompts = problems("test")["prompt"][:3]
    answers = problems("test")["answer"][:3]
    rows = [
        {"step": step, "prompt": prompt, "completion": f"\\boxed{{{'' if step else 0}{answer}}}", "accuracy": 0.5}
        for step in (0, 10)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    run = tmp_path / "run"
    run.mkdir()
    file = write(str(run / "completions.jsonl"), rows)
    with pytest.raises(
        UserError, match="'accuracy' wants the dataset column 'answer'; the columns there are step, prompt, accuracy: name it with --ans"
    ):
        look_at(file)
    flags = {"script": "linear", "objectives": ["accuracy"], "rewards": ["rewards.accuracy:accuracy"], "model": "testbed"}
    write_whole(
        run / "args.json", json.dumps(flags | {"dataset": "arithmetic", "prompt_column": "", "answer_column": "", "answer_check": "auto"})
    )
    for name in ("completions", "training_completions"):
        text = look_at(write(str(run / f"{name}.jsonl"), rows))
        assert re.search(r"accuracy +0\.5 +0\.5 +0 +1 +2 +50% +100% +0 +0\.5", text)
        assert "the column step has 2 values: completions of different policies" in text
    assert "conciseness" not in text
    copied = write("c.jsonl", rows)
    explicit = look_at(copied, ["rewards.accuracy:accuracy"], dataset="arithmetic", tokenizer="testbed")
    assert explicit.split("\n")[1:] == text.split("\n")[1:]
    checked = look_at(file, answer_check="math-verify")  # 07 is 7, but not exactly
    assert re.search(r"accuracy +1 +0 +1 +1 +1 +100% +0%", checked)
    theirs = write("c.jsonl", [row | {"answer": "50"} for row in rows])
    assert re.search(r"accuracy +0 +0 ", look_at(theirs, ["rewards.accuracy:accuracy"], dataset="arithmetic", tokenizer="testbed"))


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (None, {}, "--completions f.jsonl: there is no such file"),
        ([], {}, "--completions f.jsonl is empty"),
        ([{"completion": "one"}], {}, "--completions f.jsonl has fewer than two completions"),
        ([{"prompt": "a"}] * 2, {}, "--completion-column is needed: f.jsonl has only prompt"),
        (
            [{"completion": "a"}] * 2,
            {"completion_column": "kompletion"},
            "--completion-column kompletion: no such column; the file has completion",
        ),
        ([{"completion": "a"}] * 2, {"prompt_column": "q"}, "--prompt-column q: no such column"),
        ([{"completion": "a", "x": {"y": 1}}] * 2, {"answer_column": "x.z"}, "--answer-column x.z: not every x has a field z"),
        (
            [{"completion": "a"}, {"completion": None}],
            {},
            "--completions f.jsonl: row 1 of completion is 'None', of type NoneType: it must be text",
        ),
        ([{"completion": "a", "completion_ids": "1 2"}] * 2, {}, "completion_ids is no list of token ids for completion 0"),
        ([{"completion": "a", "mean_length": 2}] * 2, {}, "'mean_length' has the name of an argument"),
        ([{"completion": "a"}] * 2, {"rewards": ["own.py:fails"]}, "the reward 'fails' raised ValueError: no idea .* on completion 0"),
        ([{"completion": "a"}] * 2, {"rewards": ["own.py:not_a_number"]}, "the reward 'not_a_number' returned nan for completion 0"),
        ([{"completion": "a"}] * 2, {"rewards": ["own.py:level"]}, "'level' wants the dataset column 'level'; the columns there are none"),
        (
            [{"completion": "a"}] * 2,
            {"rewards": ["rewards.accuracy:accuracy"]},
            "columns there are none: name it with --answer-column, or take it",
        ),
        ([{"completion": "a"}] * 2, {"weights": [1, 2]}, "--weights has 2 numbers for 1 objectives"),
        ([{"completion": "a"}] * 2, {"weights": [-1]}, "--weights -1 must not be negative"),
        ([{"completion": "a"}] * 2, {"weights": [float("nan")]}, "--weights nan must not be negative"),
        ([{"completion": "a"}] * 2, {"mean_length": -3}, "--mean-length -3 must be a positive number"),
        (
            [{"completion": "a"}] * 2,
            {"tokenizer": "testbed", "dataset": "arithmetic"},
            "--dataset arithmetic: f.jsonl has no prompts to look up",
        ),
        ([{"completion": "a", "prompt": "Q"}] * 2, {"dataset": "arithmetic"}, "--dataset arithmetic needs --tokenizer"),
        (
            [{"completion": "a", "prompt": "Q1+1=?"}] * 2,
            {"dataset": "arithmetic", "tokenizer": "testbed"},
            "--dataset arithmetic lacks 1 of the file's 1 prompts, such as 'Q1\\+1=\\?'",
        ),
        ([{"completion": "a"}] * 2, {"tokenizer": "./nowhere"}, "--tokenizer ./nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(own, rows, flags, message):
    if rows is not None:
        write("f.jsonl", rows)
    with pytest.raises(UserError, match=message) as caught:
        look_at("f.jsonl", **{"rewards": own("words")} | flags)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_or_broken(own):
    write("f.txt", [{"completion": "a"}] * 2)
    with pytest.raises(UserError, match="--completions f.txt: cannot read this format; use one of .parquet, .json, .jsonl, .csv"):
        look_at("f.txt")
    with open("f.jsonl", "w") as file:
        file.write('{"completion": "a"}\n{"completion": ')
    with pytest.raises(UserError, match="--completions f.jsonl could not be read: line 2 is not JSON"):
        look_at("f.jsonl")


# --- docs/rewards.md ---


def block(first_line: str) -> str:
    (found,) = re.findall(rf"```\w*\n({re.escape(first_line)}.*?)```", PAGE, re.DOTALL)
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text)]


def test_the_pages_example_is_what_is_printed(own, capsys):
    exec(compile(block("# sample.py"), "sample.py", "exec"), {})
    print(look_at("base.jsonl"))
    shown, written = capsys.readouterr().out, block("base.jsonl: 512 completions")
    assert re.sub(r"[\d. ]+", " ", shown) == re.sub(r"[\d. ]+", " ", written)
    # another processor may round a probability, and so a few of 512 completions, differently
    assert numbers(shown) == pytest.approx(numbers(written), rel=0.1, abs=0.03)


class Trainer:
    """A stand-in for TRL's GRPOTrainer: calls rewards as its `_calculate_rewards` does, with the completions that a test gives."""

    batches = ()  # of (completions, completion_ids), for the first rows of the data

    def __init__(self, model, reward_funcs, args, train_dataset):
        self.rewards, self.data, self.log = reward_funcs, train_dataset, []

    def train(self):
        for completions, completion_ids in self.batches:
            inputs = [self.data[i] for i in range(len(completions))]
            keywords = {key: [row[key] for row in inputs] for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")}
            keywords |= {"trainer_state": SimpleNamespace(global_step=1), "log_extra": print, "log_metric": print}
            prompts = [row["prompt"] for row in inputs]
            scores = {
                f.__name__: f(prompts=prompts, completions=completions, completion_ids=completion_ids, **keywords) for f in self.rewards
            }
            self.log.append(scores)


def test_the_pages_trl_script_gives_trl_our_rewards(own, monkeypatch):
    trl = ModuleType("trl")
    trl.GRPOTrainer, trl.GRPOConfig = Trainer, SimpleNamespace
    monkeypatch.setitem(sys.modules, "trl", trl)
    write("train.jsonl", [{"prompt": "half?", "answer": "1/2"}, {"prompt": "one?", "answer": "1"}])
    texts = ["1. it is\n2. \\boxed{0.5}", "\\boxed{2}"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[[0] * 4, [0] * 8], [[0] * 5, [0] * 7], [[0] * 2, [0] * 5]]  # means before them: its own 6, 6, 6
    ids.append([[0] * 4, [0] * 5])  # 31 tokens in 6 before it: 5.17
    monkeypatch.setattr(Trainer, "batches", [(texts, ids[0]), (messages, ids[1]), (texts, ids[2]), (messages, ids[3])])
    script = {}
    exec(compile(block("# train_trl.py"), "train_trl.py", "exec"), script)
    assert [batch["accuracy"] for batch in script["trainer"].log] == [[1.0, 0.0]] * 4
    assert [batch["clarity"] for batch in script["trainer"].log] == [[1.0, 0.0]] * 4
    assert [batch["conciseness"] for batch in script["trainer"].log] == [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]


def test_the_pages_trl_rewards_are_rewards_here(own, monkeypatch):
    """With TRL's two functions as its documentation gives their signatures: one reads ids, one reads messages."""

    def get_soft_overlong_punishment(max_completion_len, soft_punish_cache):
        def soft_overlong_punishment_reward(completion_ids, **kwargs):
            return [-float(len(ids) > max_completion_len - soft_punish_cache) for ids in completion_ids]

        return soft_overlong_punishment_reward

    def think_format_reward(completions, **kwargs):
        return [float(completion[0]["content"].startswith("<think>")) for completion in completions]

    library = ModuleType("trl.rewards")
    library.get_soft_overlong_punishment, library.think_format_reward = get_soft_overlong_punishment, think_format_reward
    monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))
    monkeypatch.setitem(sys.modules, "trl.rewards", library)
    with open("trl_rewards.py", "w") as file:
        file.write(block("# trl_rewards.py"))
    rows = [{"prompt": "a", "completion": text, "completion_ids": [1] * n} for text, n in (("<think>", 3), ("so", 800))]
    text = look_at(write("f.jsonl", rows), ["trl_rewards.py:overlong", "trl_rewards.py:think"])
    assert re.search(r"overlong +-0\.5 +0\.5 +-1 +0 ", text)
    assert re.search(r"think +0\.5 +0\.5 +0 +1", text)
    assert list(rewards.load(["trl_rewards.py:overlong"])) == ["overlong"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"answer": None}, "is None: no completion could be right"),
        ({"answer": {"value": 3}}, "is {'value': 3}: no completion could be right"),
        ({"answer": "?!"}, "is '?!': "),
        ({"answer": "x" * 301}, "must be a string of 1 to 300 characters"),
    ],
)
def test_answers_are_read_as_strictly_as_in_training(bad, told, own, capsys):
    """Before anything is scored, with their number and the first row of the file; or they are left out."""
    good = [{"prompt": f"p{i // 2}", "completion": rf"\boxed{{{i}}}", "answer": "3"} for i in range(8)]
    write("f.jsonl", [*good[:4], good[4] | bad, *good[5:], good[7] | bad])
    with pytest.raises(UserError) as caught:
        look_at("f.jsonl")
    message = str(caught.value)
    assert message.startswith("--completions f.jsonl: answer: 2 of 9 rows cannot be used; in row 4, the answer to 'p2' is ")
    assert told in message
    assert "\n" not in message
    assert "7 completions of 4 prompts" in look_at("f.jsonl", drop_unusable=True)
    assert capsys.readouterr().out.startswith("dropped 2 of 9 rows with --drop-unusable; in row 4")
    if isinstance(bad["answer"], str) and len(bad["answer"]) < 9:  # which is a text as good as any
        assert "9 completions" in look_at("f.jsonl", answer_check="exact")


def test_a_row_that_was_dropped_is_not_counted_in_the_next_error(own):
    rows = [{"completion": "a", "answer": None}, {"completion": "a", "answer": "1"}, {"completion": None, "answer": "1"}]
    write("f.jsonl", rows)
    with pytest.raises(UserError, match="row 2 of completion is 'None'"):
        look_at("f.jsonl", drop_unusable=True)


def test_answers_of_a_data_set_are_read_as_strictly(own):
    write("d.jsonl", [{"prompt": f"Q{i}+1=?\n", "answer": "?!" if i == 7 else i + 1} for i in range(9)])
    write("f.jsonl", [{"prompt": "Q1+1=?\n", "completion": rf"\boxed{{{i}}}"} for i in range(4)])
    flags = {"dataset": "d.jsonl", "tokenizer": "testbed"}
    with pytest.raises(UserError, match="--answer-column answer: 1 of 9 rows of train cannot be used; in row 7"):
        look_at("f.jsonl", **flags)
    assert "4 completions of 1 prompt" in look_at("f.jsonl", drop_unusable=True, **flags)


def test_a_reward_that_hardly_varies_is_named(own):
    """Its covariance with advantages of unit variance is at most its standard deviation within prompts."""
    rewards = np.array([[0.50, 0.0], [0.51, 1.0], [0.50, 1.0], [0.51, 0.0]])
    found = statistics(rewards, np.arange(4.0), np.array([0, 0, 1, 1]), np.array([0.5, 0.5]))
    text = describe(["small", "large"], np.array([0.5, 0.5]), found)
    assert "small hardly varies: within prompts its sd is 0.005, and no covariance with advantages is larger." in text
    assert "large hardly varies" not in text


def test_parts_of_text_and_numbers_are_read_as_in_training(own):
    part = [{"role": "assistant", "content": [{"type": "text", "text": "1. a\n2. \\boxed{7}"}]}]
    write(
        "f.jsonl",
        [{"prompt": 1.5, "completion": part, "answer": 7, "step": [1]}, {"prompt": 1.5, "completion": 0.00001, "answer": 7, "step": [2]}],
    )
    data = read_completions("f.jsonl")
    assert data.texts == ["1. a\n2. \\boxed{7}", "0.00001"]
    assert data.prompts == ["1.5", "1.5"]
    assert "the column step has 2 values" in look_at("f.jsonl")


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        ([], "row 1 of completion is '..', of type list: it must be text"),
        ([{"role": "assistant", "content": None}], "row 1 of completion is .*: it must be a text or a list of chat messages"),
        ("\ud83d", "row 1 of completion has half a character"),
        (True, "row 1 of completion is 'True'"),
    ],
)
def test_a_completion_that_is_no_text_is_named(completion, told, own):
    write("f.jsonl", [{"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": completion}])
    with pytest.raises(UserError, match=told):
        look_at("f.jsonl")


def test_a_folder_is_no_file(own):
    os.mkdir("there")
    with pytest.raises(UserError, match="--completions there is a folder: give a file in it"):
        look_at("there")
