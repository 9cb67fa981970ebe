"""Problems of reasoning-gym: the same everywhere, judged by their own scorers, and the errors that name the flag."""

import ast
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

import rewards
from tools.score import look_at
from common.errors import UserError
from prompts import answer_check, gym, load_prompts
from rewards import gym as judge
from rewards.accuracy import accuracy, unusable
from support.models import fails_in_doctor
from support.running import train
from testbed.arithmetic import tokenizer

NAME = "reasoning-gym"
SUMS = "reasoning-gym:chain_sum:min_terms=2,max_terms=3,max_digits=1"
TASKS = [
    *("base_conversion", "basic_arithmetic", "binary_alternation", "binary_matrix", "caesar_cipher", "chain_sum", "color_cube_rotation"),
    *("count_bits", "countdown", "family_relationships", "fraction_simplification", "gcd", "leg_counting", "letter_counting"),
    *("n_queens", "number_sorting", "palindrome_generation", "polynomial_multiplication", "rearc", "shortest_path", "simple_equations"),
    *("spell_backward", "spiral_matrix", "string_insertion", "time_intervals", "tower_of_hanoi", "word_sorting"),
]


@pytest.fixture
def package():
    return pytest.importorskip("reasoning_gym", reason="pip install reasoning-gym")


@pytest.fixture
def here(package, monkeypatch):
    """Problems made in this process: importing the package anew takes seconds."""

    def made(task, settings, dataset):
        from prompts.gym_problems import main

        found = json.loads(json.dumps(main(task, settings), default=str))
        if "error" in found:
            raise UserError(found["error"])
        return found["entries"]

    monkeypatch.setattr(gym, "_made", made)


def load(dataset, suffix="", length=9999, **options):
    return load_prompts(dataset, tokenizer(), "", "", suffix, length, **options)


def judged(texts: list[str], entries: list[str]) -> list[float]:
    return accuracy(texts, [""] * len(texts), NAME, entry=entries)


def boxed(answer: str) -> str:
    return f"So it is\n\\boxed{{{answer}}}."


# --- Scores ---


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_own_answer_is_right_and_others_are_less(task, here):
    columns = gym.problems(f"{NAME}:{task}:size=4")
    entries, answers = columns["entry"], columns["answer"]
    assert judged([boxed(answer) for answer in answers], entries) == [1.0] * 4
    assert unusable(entries, NAME) == {}
    assert judged(["", *answers[1:3], boxed("")], entries) == [0.0] * 4
    assert max(judged([boxed("nothing of the kind")] * 4, entries)) < 1
    assert max(judged([boxed("0") + " No: " + boxed("?!")] * 4, entries)) < 1


def test_long_answers_of_many_lines_and_partial_credit(here):
    columns = gym.problems(f"{NAME}:tower_of_hanoi:size=3,min_disks=6,max_disks=6")
    first = columns["answer"][0]
    assert len(first) > 300
    assert "\n" in first
    assert judged([boxed(first)], columns["entry"][:1]) == [1.0]
    sums = gym.problems(SUMS)
    assert judged([boxed("0 or so: " + sums["answer"][0])], sums["entry"][:1])[0] in (pytest.approx(1 / 10), pytest.approx(2 / 11))


def test_tasks_without_an_answer_of_their_own_have_a_scorer(here):
    columns = gym.problems(f"{NAME}:graph_color:size=3")
    assert columns["answer"] == [""] * 3
    assert unusable(columns["entry"], NAME) == {}
    solutions = [json.dumps(json.loads(entry)["metadata"]["possible_answer"]) for entry in columns["entry"]]
    assert judged(list(map(boxed, solutions)), columns["entry"]) == [1.0] * 3


def test_the_scorer_has_the_tasks_settings(here):
    """That of puzzle24 wants every number within them."""
    (entry,) = gym.problems(f"{NAME}:puzzle24:size=1,max_value=9")["entry"]
    answer = judge.oracle(entry)
    assert judged([boxed(answer)], [entry]) == [1.0]
    other = json.loads(entry)
    other["settings"] |= {"min_value": 10, "max_value": 10}
    assert judged([boxed(answer)], [json.dumps(other)])[0] < 1


def entry_of(task: str, **fields) -> str:
    return json.dumps({"task": task, "settings": {}, "question": "Q", "answer": "5", "metadata": {}} | fields)


def test_what_a_scorer_raises_is_no_credit(package, monkeypatch):
    def raises(content, problem):
        raise ValueError(content)

    monkeypatch.setattr(judge, "_task_scorer", lambda task, settings: raises)
    assert judged([boxed("5")], [entry_of("chain_sum")]) == [0.0]


def test_one_real_scorer_that_raises(package):
    with pytest.raises(ValueError, match="invalid literal"):
        package.get_score_answer_fn("prime_factorization")("two", json.loads(entry_of("prime_factorization")))
    assert judged([boxed("two")], [entry_of("prime_factorization")]) == [0.0]


def test_a_scorer_that_would_compute_for_ever_is_stopped(package, monkeypatch):
    monkeypatch.setattr("rewards.accuracy.TIME_LIMIT", 1)
    entry = entry_of("countdown", metadata={"numbers": [9], "target": 9})
    assert judged([boxed("9**9**9**9")], [entry]) == [0.0]


# --- Scorers that evaluate an answer as Python ---

MATRIX = entry_of("spiral_matrix", answer="1 2")
CODE = ['open("{file}", "w")', "open ('{file}', 'w')", "(open)('{file}', 'w')", "[open][0]('{file}', 'w')", "S('open(1)')"]
CODE += ["[].__class__", "().__class__.__base__", "sin('open\\x281)')", "[print('{file}')]", "1 .real", "f(2)", "exec('x')", "'a'.join(x)"]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("entry", [MATRIX, entry_of("countdown", metadata={"numbers": [1], "target": 1})])
def test_no_answer_is_run_as_code(code, entry, package, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(judge, "_task_scorer", lambda task, settings: lambda content, problem: seen.append(content) or 1.0)
    assert judged([boxed(code.format(file=tmp_path / "made"))], [entry]) == [0.0]
    assert not seen


def test_the_package_would_run_it(package, tmp_path):
    """So there is a reason for the rule above."""
    answer = f'[open("{tmp_path}/made", "w")]'
    package.get_score_answer_fn("spiral_matrix")(answer, json.loads(MATRIX))
    assert (tmp_path / "made").exists()
    (tmp_path / "made").unlink()
    assert judged([boxed(answer)], [MATRIX]) == [0.0]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "formula", ["(8 - 2)*4", "2*(3+(1))", "sin(x) + 2*exp(-x)/3 + C", "x**2 - (x + 1)*(x - 1)", "[[1, 0], [0, 1]]", "Q _ _\n_ Q"]
)
def test_formulas_and_lists_are_no_code(formula):
    assert not judge._is_code(formula)


def test_every_task_whose_scorer_evaluates_is_known(package):
    """By the source of the installed version."""
    from reasoning_gym.factory import DATASETS

    found = set()
    for task, (cls, _) in DATASETS.items():
        tree = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
        scorers = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "score_answer"]
        calls = [node for scorer in scorers for node in ast.walk(scorer) if isinstance(node, ast.Call)]
        names = {getattr(call.func, "id", getattr(call.func, "attr", "")) for call in calls}
        if names & {"eval", "exec", "parse_expr", "sympify"}:
            found.add(task)
    assert found - {"number_sorting"} == judge.EVALUATED  # which evaluates the entry's own answer


# --- Problems ---


def test_splits_share_no_prompt_and_settings_reach_the_task(here):
    data = load(SUMS)
    texts = {split: set(prompts.columns["prompt"]) for split, prompts in data.items()}
    assert sum(map(len, data.values())) == 1280 > sum(map(len, texts.values()))  # some are asked twice
    assert not texts["train"] & (texts["test"] | texts["tune"])
    assert not texts["tune"] & texts["test"]
    assert len(texts["train"]) == pytest.approx(0.6 * sum(map(len, texts.values())), abs=1)
    sums = [re.search(r": (.*) =", text)[1].split() for split in texts.values() for text in split]
    assert {len(terms) for terms in sums} == {3, 5}
    assert max(int(term) for terms in sums for term in terms[::2]) == 9
    assert all(text.endswith(gym.SUFFIX) for split in texts.values() for text in split)
    assert all(text.endswith("= Go\n") for text in load(SUMS, " Go\n")["test"].columns["prompt"])


@pytest.mark.parametrize("task", ["chain_sum", "isomorphic_strings"])
def test_problems_are_the_same_in_every_process(task, package, monkeypatch):
    """Those of isomorphic_strings are drawn from a set of letters, whose order is another in every process."""
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(gym.problems(f"{NAME}:{task}:size=5"))
    assert found[0] == found[1]
    assert len(found[0]["question"]) == 5
    assert found[0] != gym.problems(f"{NAME}:{task}:size=5,seed=7")


def test_rows_whose_own_answer_is_wrong_are_told(here, monkeypatch, capsys):
    made = gym._made
    spoilt = lambda *given: [entry | ({"answer": "?"} if row in (3, 5) else {}) for row, entry in enumerate(made(*given))]  # noqa: E731
    monkeypatch.setattr(gym, "_made", spoilt)
    real = judge._task_scorer
    monkeypatch.setattr(judge, "_task_scorer", lambda *of: lambda content, problem: 0.5 * (content == "?") or real(*of)(content, problem))
    check = {"unusable": lambda entries: rewards.unusable({"accuracy": accuracy}, entries, NAME)}
    told = f"--dataset {NAME}:chain_sum:size=30: 2 of 30 rows cannot be used; in row 3, .*: in a box it scores 0.5; .*--drop-unusable"
    with pytest.raises(UserError, match=told):
        load(f"{NAME}:chain_sum:size=30", **check)
    data = load(f"{NAME}:chain_sum:size=30", **check, drop_unusable=True)
    assert sum(map(len, data.values())) == 28
    assert "dropped 2 of 30 rows with --drop-unusable" in capsys.readouterr().out


# --- Errors ---


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match="--dataset reasoning-gym:TASK cannot import the package .*: pip install reasoning-gym"):
        load(SUMS)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("chain_sums", "reasoning-gym has no task 'chain_sums'; did you mean chain_sum"),
        ("", "reasoning-gym has no task ''; its tasks are ab, acre"),
        ("chain_sum:min_term=2", "chain_sum has no setting 'min_term'; its settings are min_terms=2, max_terms=6, .*size=500"),
        ("chain_sum:min_terms", "'min_terms' is no setting; write them as reasoning-gym:chain_sum:NAME=VALUE,NAME=VALUE"),
        ("chain_sum:min_terms=2,min_terms=3", "min_terms is given twice"),
        ("chain_sum:min_terms=two", "min_terms is 'two' and must be a whole number; its default is 2"),
        ("chain_sum:min_terms=2.5", "min_terms is '2.5' and must be a whole number"),
        ("chain_sum:min_terms=true", "min_terms is 'true' and must be a whole number"),
        ("chain_sum:min_terms=1+1", "min_terms is '1[+]1' and must be a whole number"),
        ("chain_sum:allow_negation=1", "allow_negation is '1' and must be true or false"),
        ("basic_arithmetic:operators=+", "operators is '[+]' and must be a list"),
        ("chain_sum:min_terms=9", "chain_sum cannot make problems with these settings .max_terms must be >= min_terms"),
    ],
)
def test_errors_name_the_flag(dataset, told, package):
    with pytest.raises(UserError, match=f"--dataset {NAME}:{re.escape(dataset)}: {told}") as caught:
        load(f"{NAME}:{dataset}")
    assert "\n" not in str(caught.value)


def test_the_package_alone_lists_its_tasks(package):
    with pytest.raises(UserError, match="--dataset reasoning-gym: reasoning-gym has no task ''; its tasks are ab, acre"):
        load(NAME)


def test_settings_as_they_are_written(here):
    assert len(gym.problems(f'{NAME}:basic_arithmetic:size=4,operators=["+","-"],allow_parentheses=False')["answer"]) == 4
    question = gym.problems(f'{NAME}:basic_arithmetic:size=9,operators=["*"],allow_parentheses=false')["question"]
    assert all("*" in text and not set("+/(") & set(text) for text in question)


@pytest.mark.parametrize(("check", "dataset"), [("auto", SUMS), (NAME, SUMS)])
def test_its_tasks_have_a_check_of_their_own(check, dataset):
    assert answer_check(check, dataset) == NAME


def test_checks_that_do_not_fit():
    with pytest.raises(UserError, match="--answer-check reasoning-gym is for --dataset reasoning-gym:TASK alone"):
        answer_check(NAME, "arithmetic")
    with pytest.raises(UserError, match="--answer-check math-verify has no use with --dataset reasoning-gym:chain_sum"):
        answer_check("math-verify", SUMS)
    with pytest.raises(UserError, match="--answer-check reasoning-gym wants the dataset column 'entry'"):
        accuracy(["x"], ["y"], NAME)
    with pytest.raises(UserError, match="the dataset column 'entry' has 'y', which is no problem"):
        judged([boxed("x")], ["y"])
    with pytest.raises(UserError, match="--prompt-column 'q' has no use with --dataset reasoning-gym"):
        load_prompts(SUMS, tokenizer(), "q", "", "", 64)


# --- A run, the doctor, and score ---


def test_a_run_the_doctor_and_score_read_them(here, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = Path("mine.py")
    seen.write_text("def mine(completions, answer, entry, **kwargs):\n    return [float(len(e) > len(a)) for e, a in zip(entry, answer)]\n")
    train("linear", Path("run"), dataset=SUMS, prompt_suffix="\n", steps=1, rewards=("rewards.accuracy:accuracy", "mine.py:mine"))
    assert "of the prompts' tokens are unknown" in capsys.readouterr().out
    fails_in_doctor(capsys, "dataset", "of the prompts' tokens are unknown", dataset=SUMS)
    fails_in_doctor(capsys, "dataset", "chain_sum has no setting 'x'", dataset=f"{NAME}:chain_sum:x=1")
    part = load(SUMS)["test"].select(list(range(4)))
    texts = [boxed(answer) if row % 2 else "no" for row, answer in enumerate(part.columns["answer"])]
    rows = [dict(zip(part.columns, cells, strict=True)) for cells in zip(*part.columns.values(), strict=True)]
    lines = [json.dumps(row | {"completion": text, "answer": ["not", "read"]}) for row, text in zip(rows, texts, strict=True)]
    Path("own.jsonl").write_text("\n".join(lines))
    found = look_at("own.jsonl", ["rewards.accuracy:accuracy"], dataset=SUMS, tokenizer="testbed")
    assert re.search(r"accuracy +0.5 ", found)
