"""Rewards on a file of completions: the statistics against loops, what is said of them, the files
that are read."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from algos.linear import scalarize
from common.controllers import within_prompt_covariance
from common.errors import UserError
from support.running import ROOT, read_lines, run_script
from tools.score import describe, main, statistics

OWN = """
def words(completions, **kwargs):
    return [float(len(text.split())) for text in completions]

def copied(completions, **kwargs):
    return [2.0 * len(text.split()) + 1 for text in completions]

def terse(completions, **kwargs):
    return [-float(len(text.split())) for text in completions]

def flat(completions, **kwargs):
    return [-0.0] * len(completions)

def easy(prompts, **kwargs):
    return [float(len(prompt)) / 3 for prompt in prompts]

def level(level, **kwargs):
    return [float(value) for value in level]

def ids(completion_ids, mean_length, **kwargs):
    return [len(row) - mean_length for row in completion_ids]

def fails(completions, **kwargs):
    raise ValueError("no idea")
"""
ACCURACY = "--rewards rewards.accuracy:accuracy"
BED = "--dataset arithmetic --tokenizer testbed"


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    """Call with the rows of a file, or its name, and flags; own: rewards of OWN. -> what is said"""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)

    def call(rows: list[dict] | str, flags: str = "", own: str = "") -> str:
        file = rows if isinstance(rows, str) else "f.jsonl"
        if file != rows:
            Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        rewards = ["--rewards", *(f"own.py:{name}" for name in own.split())] if own else []
        main(["--completions", file, *rewards, *flags.split()])
        return capsys.readouterr().out

    return call


def made(groups: list[int]) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Rewards [B, 3], correlated and different between prompts, lengths and groups [B], in no
    order."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(groups)
    values = rng.normal(size=(len(groups), 3)) @ rng.normal(size=(3, 3)) + groups[:, None]
    lengths = np.rint(20 + 5 * values[:, 0] + rng.normal(size=len(groups)))
    return pd.DataFrame(values, columns=list("abc")), pd.Series(lengths), pd.Series(groups)


@pytest.mark.parametrize("groups", [[0] * 4 + [1] * 4 + [2] * 4, [0] * 2 + [1] * 5 + [2] * 3 + [3]])
def test_it_is_numpy_and_a_loop_over_the_prompts(groups):
    rewards, lengths, groups = made(groups)
    rewards.loc[groups == 1, "b"] = 0.1  # no signal in one prompt
    weights = np.array([0.5, 0.2, 0.3])
    each, over, inside, prompts = statistics(rewards, lengths, groups, weights)
    both = np.column_stack([rewards, lengths])
    assert over.to_numpy() == pytest.approx(np.corrcoef(both, rowvar=False))
    assert prompts == 3
    own = [both[groups == g] for g in range(3)]
    C = np.array([np.cov(rows, rowvar=False, bias=True) for rows in own])  # [P, K+1, K+1]
    scale = np.sqrt(C.mean(0).diagonal())
    assert inside.to_numpy() == pytest.approx(C.mean(0) / np.outer(scale, scale))
    laws = C[:, :3, :3] @ weights
    law, se = laws.mean(0), laws.std(0, ddof=1) / 3**0.5
    moves = np.sign(law) * (abs(law) > 2 * se)
    between = np.std([rows.mean(0)[:3] for rows in own], axis=0)
    expected = [[1, 2 / 3, 1], between, scale[:3], law, se, moves]
    found = each.loc[:, "signal":].to_numpy().T
    assert found == pytest.approx(np.array(expected))


@pytest.mark.parametrize("size", range(2, 12))
def test_what_is_constant_or_cancels_predicts_nothing_however_it_rounds(size):
    rewards, lengths, groups = made([0] * size + [1] * 7)
    rewards["a"], rewards["b"] = 0.1, 0.1 + 0.6 * groups  # seven times .1 does not sum to .7
    rewards["d"] = -rewards["c"] / 9
    weights = np.array([0, 0, 0.1, 0.9], np.float32)
    found = each, over, inside, _ = statistics(rewards, lengths, groups, weights)
    assert over.loc["a"].isna().all()
    assert inside.loc[["a", "b"]].isna().all(axis=None)
    assert (each[["law", "se", "move"]] == 0).all(axis=None)
    text = describe(weights, *found)
    assert re.findall(r"(.) is dead", text) == ["a", "b"]
    assert text.count("not told from 0") == 4


def test_a_reward_that_does_not_apply_adds_nothing_as_in_training():
    rewards, lengths, groups = made([0] * 6 + [1] * 6 + [2] * 6)
    order = np.argsort(groups, kind="stable")
    rewards.loc[np.random.default_rng(1).random(18) < 0.4, "c"] = np.nan
    weights = np.array([0.5, 0.2, 0.3])
    each, *_ = statistics(rewards, lengths, groups, weights)
    rows = torch.tensor(rewards.to_numpy()[order])
    score = scalarize(rows, torch.tensor(weights))
    one = [
        within_prompt_covariance(score[s], rows[s], 6) for s in map(slice, (0, 6, 12), (6, 12, 18))
    ]
    assert each["law"].to_numpy() == pytest.approx(torch.stack(one).nanmean(0).numpy())


def test_above_the_diagonal_are_all_completions_and_below_it_prompts():
    rewards = pd.DataFrame({"a": [0, 1, 10, 11], "b": [0.02, 0.01, 0.12, 0.11]})
    weights, groups = np.array([0.5, 0.5]), pd.Series([0, 0, 1, 1])
    text = describe(weights, *statistics(rewards, pd.Series([1, 1, 2, 2]), groups, weights))
    assert re.search(r"\na +\. +\+0\.98 +\+1\.00\nb +-1\.00 +\. +\+1\.00\nlength +- +- +\.\n", text)
    assert "a and b pull apart, correlation -1.00 within prompts" in text
    assert re.findall(r"(\w+) hardly varies", text) == ["b"]


def rows_of(**lengths: list[int]) -> list[dict]:
    return [{"prompt": p, "completion": "so " * n} for p, counts in lengths.items() for n in counts]


def test_it_tells_duplicates_opposition_and_what_would_be_given_up(score):
    rows = rows_of(a=[1, 2, 5, 6], bb=[2, 2, 3, 8], ccc=[1, 4, 4, 7])
    text = score(rows, own="words copied terse flat easy")
    assert "f.jsonl: 12 completions of 3 prompts\nlength in words" in text
    assert "words and copied say nearly the same, correlation +1.00 within prompts" in text
    assert "words and terse pull apart, correlation -1.00 within prompts" in text
    assert "terse and length say nearly the same, correlation -1.00" in text
    assert re.findall(r"(\w+) is dead", text) == ["flat", "easy"]
    assert re.search(r"flat +0 +0 +0 +0 +1 +100% ", text)
    assert "terse would be given up at first order" in text
    weighed = score(rows, "--weights 1 3", own="words terse")
    assert re.search(r"words +-2\.49 ± 0\.3 +falls", weighed)
    assert "With weights 0.25 0.75 words would be given up at first order" in weighed


def test_without_two_completions_of_a_prompt_it_says_what_is_missing(score):
    for rows in (rows_of(a=[1], b=[2], c=[5]), [{"text": "so " * n} for n in (1, 2, 5)]):
        text = score(rows, own="words copied terse")
        assert "3 completions of 3 prompts" in text
        assert "No prompt has two completions" in text
        assert "words and copied say nearly the same, correlation +1.00\n" in text
        assert not re.search("first order|pull apart", text)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_rewards_the_same(kind, score):
    texts = ["two\nlines", 'a "quote", so', "", "None", "\\boxed{7}", " 7 "]
    rows = {"question": list("ababab"), "text": texts, "answer": 7, "level": range(6)}
    frame, file = pd.DataFrame(rows), f"f.{kind}"
    if kind == "csv":
        frame.to_csv(file, index=False)
    elif kind == "parquet":
        frame.to_parquet(file)
    else:
        frame.to_json(file, orient="records", lines=kind == "jsonl")
    assert re.search(r"level +2\.5 +1\.71 +0 +5 +6 +17% +100%", score(file, own="level"))
    assert re.search(r"words +1\.33 +0\.943 +0 +3 ", score(file, own="words"))
    assert re.search(r"accuracy +0\.167 +0\.373 +0 +1 +2 +83% +50%", score(file, ACCURACY))


def test_columns_are_found_by_name_nested_in_messages_and_in_lists(score):
    out = [{"role": "assistant", "content": "\\boxed{7} seven"}]
    asked = [{"role": "user", "content": "why?"}]
    row = {"p": asked, "out": {"text": out}, "reward_model": {"ground_truth": "\\boxed{7}"}}
    text = score([row] * 2, f"--completion-column out.text --prompt-column p {ACCURACY}")
    assert re.search(r"2 completions of 1 prompts\n.*mean 2,(.*\n)+accuracy +1 ", text)
    rows = [{"prompt": "a", "completions": ["x", "y z"], "level": 1}]
    rows += [{"prompt": "b", "completions": ["z"], "level": 4}]
    text = score(rows, own="level")
    assert re.search(r"3 completions of 2 prompts\n.*mean 1.33,(.*\n)+level +2 ", text)


def test_lengths_are_the_files_ids_or_the_tokenizers_with_an_end(score):
    rows = [{"prompt": "Q1+1=?\n", "completion": text} for text in ("\\boxed{2}", "so \\boxed{2}")]
    text = score(rows, "--tokenizer testbed", own="ids")
    assert re.search("length in tokens of testbed.*: mean 4.5, 4 to 5; mean_length 4.5\n", text)
    rows = [row | {"completion_ids": [1] * n} for row, n in zip(rows, (2, 8), strict=True)]
    text = score(rows, "--mean-length 3", own="ids")
    assert "length in tokens: mean 5, 2 to 8; mean_length 3\n" in text
    assert re.search(r"ids +2 +3 +-1 +5", text)


def test_a_runs_completions_take_what_they_lack_from_its_flags(score, tmp_path):
    """Those of the first training step are the untrained model's."""
    flags = "--steps 1 --prompts 4 --completions 4 --eval-prompts 2 --log-completions 16 --out run"
    done = run_script(str(ROOT / "run.py"), "linear", *f"{flags} {ACCURACY}".split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = score("run/training_completions.jsonl")
    assert "16 completions of 4 prompts\nlength in tokens of testbed" in text
    mean, signal = re.search(r"accuracy +(\S+) .* (\d+)% +\S+ +\S+\n", text).groups()
    logged = read_lines(Path("run/metrics.jsonl"))[1]
    assert float(mean) == pytest.approx(logged["reward/accuracy"], abs=1e-3)
    assert int(signal) == 100 * logged["signal/accuracy"]
    rows = read_lines(Path("run/training_completions.jsonl"))
    flags = f"{ACCURACY} --answer-column answer {BED}"
    assert score(rows, flags).split("\n")[1:] == text.split("\n")[1:]
    rows[0] |= {"answer": "none", "step": 0}  # what the file has is not looked up
    with pytest.raises(UserError, match="--answer-column answer: 15 of 16 rows"):
        score(rows, flags)
    assert "several values" in score([row | {"answer": "1"} for row in rows], flags)


ONE = [{"completion": "a"}]


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ("g.jsonl", "", "--completions g.jsonl cannot be read .*No such file"),
        ([{"prompt": "a"}], "", "--completion-column is needed: f.jsonl has prompt"),
        (ONE, "--prompt-column q", "there is no q in f.jsonl"),
        ([*ONE, {"completion": None}], "", "--completions f.jsonl: row 1 is 'None'"),
        ([*ONE, {"completion": []}], "", "--completions f.jsonl: row 1 is '\\[\\]'"),
        (ONE, "--rewards own.py:fails", "the reward 'fails' raised ValueError: no idea"),
        (ONE, "--weights 1 2 3 4", "--weights has 4 numbers for 3 objectives"),
        (ONE, "--mean-length -3", "--mean-length -3.0 must be at least 0"),
        (ONE, "--dataset arithmetic", "--dataset arithmetic needs --tokenizer"),
        (ONE, BED, "--dataset arithmetic lacks prompts of the file, such as \\[''\\]"),
        (ONE, "--tokenizer ./nowhere", "--tokenizer ./nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(score, rows, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        score(rows, flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bad", "check"), [({"value": 3}, "exact"), ("?!", "math-verify")])
def test_answers_are_read_as_strictly_as_in_training(bad, check, score):
    rows = [{"prompt": "p", "completion": f"\\boxed{{{i}}}", "answer": "7"} for i in range(8)]
    rows[4:6] = rows[4] | {"answer": bad}, {"prompt": "p", "completion": "a"}
    flags = f"{ACCURACY} --answer-check {check}"
    with pytest.raises(UserError, match="--answer-column answer: 2 of 8 rows of f.jsonl .* row 4 "):
        score(rows, flags)
    text = score(rows, f"{flags} --drop-unusable")
    assert re.search(
        r"dropped: --.*\n.* 6 completions of 1 prompts\n(.*\n)+accuracy +0\.167 ", text
    )
