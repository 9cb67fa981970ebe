"""Problems of reasoning-gym: the same at every call, judged by their own scorers, never run."""

import ast
import importlib
import inspect
import json

import pytest

from common import data
from common.errors import UserError
from common.flags import RunFlags
from rewards import gym
from rewards.accuracy import accuracy, unusable
from testbed.arithmetic import tokenizer

package = pytest.importorskip("reasoning_gym", reason="pip install reasoning-gym")
SUMS = "reasoning-gym:basic_arithmetic:min_terms=2,max_terms=2,max_digits=1,"
SUMS += 'operators=["+","*"],allow_parentheses=False'
TASKS = ["base_conversion", "caesar_cipher", "chain_sum", "color_cube_rotation", "graph_color"]
TASKS += ["fraction_simplification", "number_sorting", "rearc", "shortest_path", "tower_of_hanoi"]


def entries(task: str, **of) -> list[str]:
    """As `gym.problems` makes them, in this process: importing the package anew takes seconds."""
    of = {"seed": 42, "size": 3} | of
    made = package.create_dataset(task, **of)
    return [json.dumps({"task": task, "settings": of} | gym._tagged(made[i])) for i in range(3)]


def entry(task: str, **fields) -> str:
    usual = {"task": task, "settings": {}, "question": "Q", "answer": "5", "metadata": {}}
    return json.dumps(usual | fields)


def judged(contents: list[str], asked: list[str]) -> list[float]:
    texts = [f"So it is\n\\boxed{{{content}}}." for content in contents]
    return accuracy(texts, [""] * len(texts), gym.NAME, entry=asked)


# --- Scores ---


@pytest.mark.parametrize("task", sorted({*TASKS, *gym.EVALUATED}))
def test_a_tasks_own_answer_is_right_and_others_are_less(task):
    asked = entries(task)
    answers = [json.loads(one)["answer"] for one in asked]
    if task == "graph_color":  # has only a scorer
        assert answers == [None] * 3
        answers = [json.dumps(json.loads(one)["metadata"]["possible_answer"]) for one in asked]
    assert judged(answers, asked) == [1.0] * 3
    assert unusable(asked, gym.NAME) == {}
    assert judged([""] * 3, asked) == accuracy(answers, answers, gym.NAME, entry=asked) == [0.0] * 3
    assert max(judged(["nothing of the kind"] * 3, asked)) < 1


def test_a_scorer_has_the_tasks_settings():
    (asked, *_) = entries("puzzle24", max_value=9)
    other = json.loads(asked)
    other["settings"] |= {"min_value": 10, "max_value": 10}
    assert judged([json.loads(asked)["answer"]], [asked]) == [1.0]
    assert judged([json.loads(asked)["answer"]], [json.dumps(other)])[0] < 1


def test_a_scorer_that_raises_gives_nothing():
    spoilt = entry("prime_factorization")
    with pytest.raises(ValueError, match="invalid literal"):
        package.get_score_answer_fn("prime_factorization")("two", json.loads(spoilt))
    assert judged(["two"], [spoilt]) == [0.0]


def test_a_scorer_that_would_compute_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr("rewards.accuracy.TIME_LIMIT", 1)
    endless = entry("countdown", metadata={"numbers": [9], "target": 9})
    assert judged(["9**9**9**9"], [endless]) == [0.0]


# --- No answer is run as code ---

MATRIX = entry("spiral_matrix", answer="1 2")
NUMBERS = entry("countdown", metadata={"numbers": [1], "target": 1})
CODE = ['__import__("os")', "[].__class__", "().__class__.__base__", "1 .real", "exec('x')"]
CODE += ["[open][0]('x')", "'a'.join(x)", "ｏｐｅｎ('x')", "sin('open\\x281)')"]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("asked", [MATRIX, NUMBERS])
def test_code_does_not_reach_a_scorer(code, asked, monkeypatch):
    seen = []
    judge = lambda content, problem: seen.append(content) or 1.0  # noqa: E731
    monkeypatch.setattr(gym, "_task_scorer", lambda *of: judge)
    assert judged([code], [asked]) == [0.0]
    assert not seen
    assert judged(["[[1, 2]]"], [asked]) == [1.0]


@pytest.mark.parametrize(
    ("asked", "write"),
    [(MATRIX, "[{code}]"), (NUMBERS, "S('{octal}')")],  # sympy evaluates the text
)
def test_what_the_package_would_run_is_not_run(asked, write, tmp_path):
    """Each of them writes a file where the package's own scorer gets it."""
    made, problem = tmp_path / "made", json.loads(asked)
    code = f"open('{made}', 'w')"
    content = write.format(code=code, octal="".join(f"\\{ord(sign):o}" for sign in code))
    package.get_score_answer_fn(problem["task"])(content, problem)
    made.unlink()
    assert gym.scorer(asked)(content) == 0.0
    assert not made.exists()


@pytest.mark.parametrize(
    ("task", "content"),
    [("countdown", "2*(3+(1)) - sin(x)/3.5"), ("simple_integration", "2*x**2*exp(-x)/3 + C"),
     ("n_queens", '[["Q", "_"], ["_", "Q"]]'), ("string_insertion", '["AB", "C"]'),
     ("chain_sum", "os.path")],
)  # fmt: skip
def test_formulas_lists_and_other_tasks_are_no_code(task, content):
    assert not gym._is_code(task, content)


def test_every_task_whose_scorer_evaluates_is_known():
    """By the source of the installed version."""
    from reasoning_gym.factory import DATASETS

    found = {"eval": set(), "parse_expr": set()}
    for task, (cls, _) in DATASETS.items():
        tree = ast.parse(inspect.getsource(importlib.import_module(cls.__module__)))
        for scorer in ast.walk(tree):
            if isinstance(scorer, ast.FunctionDef) and scorer.name == "score_answer":
                called = [one.func for one in ast.walk(scorer) if isinstance(one, ast.Call)]
                names = {getattr(one, "id", getattr(one, "attr", "")) for one in called}
                assert not names & {"exec", "sympify"}
                for name in names & found.keys():
                    found[name].add(task)
    assert found["parse_expr"] == gym.FORMULAS
    # number_sorting evaluates the problem's own answer
    assert found["eval"] == gym.EVALUATED - gym.FORMULAS | {"number_sorting"}


# --- Problems ---


def test_problems_are_the_same_in_every_process(monkeypatch):
    """Those of isomorphic_strings come from a set of letters, of another order in each process."""
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(gym.problems("reasoning-gym:isomorphic_strings:size=5"))
    assert found[0] == found[1]
    assert len(found[0]["prompt"]) == 5
    assert found[0].keys() == {"prompt", "answer", "entry"}


def test_a_dataset_is_divided_carries_the_instruction_and_has_its_own_check():
    assert data.answer_check("auto", SUMS) == data.answer_check(gym.NAME, SUMS) == gym.NAME
    found = data.load(RunFlags(dataset=SUMS), tokenizer(), {"accuracy": accuracy}, gym.NAME)
    texts = {split: set(prompts.columns["prompt"]) for split, prompts in found.items()}
    together = set.union(*texts.values())
    assert sum(map(len, found.values())) == 1280 > len(together) == sum(map(len, texts.values()))
    assert all(text.endswith(gym.SUFFIX) and text.count("boxed") == 1 for text in together)
    asked = [text.removesuffix(gym.SUFFIX) for text in together]
    assert any("*" in text for text in asked)
    assert not any({*"/("} & {*text} for text in asked)


def test_a_bad_setting_is_one_line():
    with pytest.raises(UserError, match="^--dataset reasoning-gym:gcd:x=1: .*argument 'x'") as e:
        gym.problems("reasoning-gym:gcd:x=1")
    assert "\n" not in str(e.value)


def test_a_check_that_does_not_fit():
    with pytest.raises(UserError, match="--answer-check exact does not go with --dataset reaso"):
        data.answer_check("exact", SUMS)
