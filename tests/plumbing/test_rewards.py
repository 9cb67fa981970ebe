"""The rewards on hostile completions, and the errors that loading and scoring give. What earns
accuracy is in test_answers.py."""

import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from rewards import DEFAULT, load, score
from rewards.accuracy import accuracy
from rewards.answers import last_boxed, outside_boxes
from rewards.clarity import clarity
from rewards.conciseness import conciseness
from rewards.sentence import sentence
from rewards.units import units
from support.running import run_script

# --- Boxes ---


def last_boxed_by_letter(text: str) -> str | None:
    """The definition, letter by letter: open every box anew and keep the content of the last."""
    content = None
    for start in range(len(text)):
        for name in ("\\boxed", "\\fbox"):
            brace = start + len(name)
            while text[brace : brace + 1].isspace():
                brace += 1
            if text.startswith(name, start) and text[brace : brace + 1] == "{":
                content, depth, i = None, 0, brace + 1
                begin = i
                while i < len(text):
                    if text[i] == "\\":
                        i += 2
                        continue
                    if text[i] == "}" and depth == 0:
                        content = text[begin:i]
                        break
                    depth += {"{": 1, "}": -1}.get(text[i], 0)
                    i += 1
    return content


SIGNS = ["\\boxed{", "\\fbox{", "{", "}", "}", "\\", "\\}", "\\{", "5", "boxed", "\n", " x "]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(SIGNS), max_size=14))
def test_last_boxed_agrees_with_its_definition(pieces):
    text = "".join(pieces)
    assert last_boxed(text) == last_boxed_by_letter(text)
    assert last_boxed(outside_boxes(text)) is None
    assert outside_boxes(f"a \\boxed{{{text.replace('{', '').replace('}', '')} \\}}}} b") == "a   b"


LONG = 100_000
HOSTILE = {
    "letters": "a" * LONG,
    "boxes never closed": "\\boxed{" * (LONG // 7),
    "boxes never opened": "\\boxed" * (LONG // 6),
    "box and a gulf": "\\boxed" + " " * LONG,
    "gulfs": ("\\boxed" + " " * 300) * (LONG // 306),
    "opening braces": "\\boxed{" + "{" * LONG,
    "nested": "\\boxed{" + "{" * (LONG // 2) + "}" * (LONG // 2) + "}",
    "backslashes": "\\boxed{" + "\\" * LONG,
    "long answer": "\\boxed{" + "1" * LONG + "}",
    "long fraction": "\\boxed{" + "\\frac{" * (LONG // 6) + "}" * (LONG // 6) + "}",
    "long unit": "\\boxed{1" + " " * LONG + "\\text{ }}",
    "new lines": "\n" * LONG + "\\boxed{1}",
    "indents": (" " * 1000 + "\n") * (LONG // 1001) + "\\boxed{1}",
    "bullets": "* " * (LONG // 2) + "\\boxed{1}",
    "dashes": "-" * LONG + "\\boxed{1}",
    "step step": "step " * (LONG // 5) + "\\boxed{1}",
    "step and a gulf": "step" + " " * LONG + "\\boxed{1}",
    "digits": "1" * LONG + ".\\boxed{1}",
    "roman": "ivx" * (LONG // 3) + "\\boxed{1}",
    "parentheses": "(\n" * (LONG // 2) + "\\boxed{1}",
    "nearly ordinals": "firstsecond" * (LONG // 11) + "\\boxed{1}",
}


# seconds: several times what a scan takes on a slow core, and a fraction of one in quadratic time
MOMENT = 0.25


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_no_time(name):
    def cost(function) -> float:
        best = float("inf")
        for _ in range(3):  # since other work on the machine is not what is measured
            start = time.process_time()
            function()
            best = min(best, time.process_time() - start)
        return best

    text = HOSTILE[name]
    accuracy([r"\boxed{2}"], ["3"], "math-verify")  # not its import either
    for function in (clarity, sentence, lambda texts: units(texts, ["apples"])):
        assert cost(lambda function=function: function([text])) < MOMENT
    for how in ("exact", "boxed", "math-verify"):
        assert cost(lambda how=how: accuracy([text], ["2"], how)) < MOMENT
        assert accuracy([text], ["2"], how) == [0.0]


# --- Conciseness ---


def test_conciseness_is_strict():
    ids = [[1] * n for n in (0, 2, 3, 4)]
    assert conciseness(completion_ids=ids, mean_length=3.0) == [1.0, 1.0, 0.0, 0.0]
    assert conciseness(completion_ids=ids, mean_length=3.0 + 1e-9, completions=["x"] * 4) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.floats(0, 31),
    st.randoms(use_true_random=False),
)
def test_conciseness_is_permutation_equivariant(lengths, mean_length, random):
    order = random.sample(range(len(lengths)), len(lengths))
    values = conciseness(completion_ids=[[7] * n for n in lengths], mean_length=mean_length)
    assert conciseness(
        completion_ids=[[7] * lengths[i] for i in order], mean_length=mean_length
    ) == [values[i] for i in order]
    assert values == [float(n < mean_length) for n in lengths]


# --- Clarity ---

CLARITY = [
    # the styles of the arithmetic testbed
    ("1. 6+7=13\n2. 13+2=15\nso the answer is \\boxed{15}", 1),
    ("Step 1: 6+7=13\nStep 2: 13+2=15\ncheck: 6+7=13, 13+2=15\nso the answer is \\boxed{15}", 1),
    ("1. (6+7)+2\n2. \\boxed{13}", 1),
    ("6+7=13 so 13+2=15 so the answer is \\boxed{15}", 0),
    ("6+7=13 so 13+2=15 check: 6+7=13, 13+2=15 so the answer is \\boxed{15}", 0),
    ("9-3=6 so 6-2=4 check: 9-3=6, 6-2=4 so the answer is \\boxed{4}", 0),
    ("\\boxed{15}", 0),
    ("6+7=13 so 13+2=15 so the answer is 15", 0),
    # steps without an answer, and answers that do not count
    ("1. 6+7=13\n2. 13+2=15\nso the answer is 15", 0),
    ("1. 6+7=13\n2. 13+2=15\n\\boxed{}", 0),
    ("1. 6+7=13\n2. 13+2=15\n\\boxed{ }", 0),
    ("1. 6+7=13\n2. 13+2=15\n\\boxed{15", 0),
    ("1. 6+7=13\nso the answer is \\boxed{15}", 0),
    # what is an enumerator
    ("a) one\nb) two \\boxed{1}", 1),
    ("  (a) one\n  (B) two \\boxed{1}", 1),
    ("i. one\nii. two \\boxed{1}", 1),
    ("1- one\n2- two \\boxed{1}", 1),
    ("- one\n- two \\boxed{1}", 1),
    ("* one\n• two \\boxed{1}", 1),
    ("**Step 1:** one. **Step 2:** two \\boxed{1}", 1),
    ("### STEP 1.\none\n### STEP 2.\ntwo \\boxed{1}", 1),
    ("step a: one, step b: two \\boxed{1}", 1),
    ("**1.** one\n\n> 2. two \\boxed{1}", 1),
    ("1.\none\n2.\ntwo \\boxed{1}", 1),
    ("1. one\nthen \\boxed{1}", 0),
    ("- Step 1: one \\boxed{1}", 0),
    # and what only looks like one
    ("3.14\n2.72\n\\boxed{1}", 0),
    ("about 3.14 or 2.72, so \\boxed{1}", 0),
    ("we solve for x. It is 5. So y: \\boxed{1}", 0),
    ("f(x) = 2 and g(x) = (x) (y) so \\boxed{1}", 0),
    ("9 - 3 - 2 = 4 so \\boxed{4}", 0),
    ("I did. They mix. \\boxed{1}", 0),
    ("Steps: one. Footstep 1: two. Step-by-step: \\boxed{1}", 0),
    # ordinal words
    ("First add, then subtract: \\boxed{1}", 1),
    ("THEN this, NEXT that: \\boxed{1}", 1),
    ("The tenth and the second: \\boxed{1}", 1),
    ("First add: \\boxed{1}", 0),
    ("firstly this, thence that, seconds, context \\boxed{1}", 0),
]


@pytest.mark.parametrize(("text", "expected"), CLARITY)
def test_clarity(text, expected):
    assert clarity(completions=[text, ""], answer=["", ""]) == [float(expected), 0.0]


# --- Units and sentences ---


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("Mia has 9 apples now.", 1),
        ("9 apple", 1),
        ("APPLES: 9", 1),
        ("9 apples", 1),
        ("\\boxed{9} apples", 1),
        ("9", 0),
        ("", 0),
        ("9 pineapples", 0),
        ("9 applesauces", 0),
        ("\\boxed{9 apples}", 0),  # the answer's place: accuracy judges it
        ("\\boxed{9 apples", 0),  # cut off
        ("so \\boxed{9} and 9 apples, \\boxed{9", 1),
        ("Mia has 4 apples and gets 5 more. How many apples now?", 1),  # known: the question again
        ("4 oranges", 0),
        ("\\boxed{\\text{five red apples}}", 0),
        ("\\fbox{9 \\} \\text{apples}}", 0),
        ("\\boxed{9 \\text{apples}", 0),
        ("\\boxed{\\frac{9}{1}} apples", 1),
        ("<think> 9 apples", 0),
        ("<think> hm </think> 9 apples", 1),
    ],
)
def test_units(text, paid):
    assert units(completions=[text], unit=["apples"]) == [float(paid)]


def test_units_belong_to_their_prompts():
    texts, nouns = ["a pencil, spent", "two pens", "fish", "3 axb"], ["pens", "pen", "fish", "a.b"]
    assert units(completions=texts, unit=nouns, other=1) == [0, 1, 1, 0]
    prompts = ["", "2?<think>", "", ""]
    assert units(completions=texts, unit=nouns, prompts=prompts) == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="zip"):
        units(completions=["a"], unit=["a", "b"])


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("Mia has 9 apples now.", 1),
        ("So the answer is \\boxed{9}", 1),
        ("The answer is \\boxed{9}", 0),  # three words
        ("1. 4 + 5 = 9\n2. \\boxed{9}", 0),
        ("apples apples apples, Apples", 0),  # one word
        ("\\boxed{Mia has nine apples}", 0),
        ("\\boxed{\\text{five red apples}}", 0),
        ("\\boxed{\\text{Mia has} \\{nine\\} \\text{red apples}} now", 0),
        ("[THINK] Mia has 9 apples now.", 0),
        ("Mia has \\boxed{nine apples", 0),
        ("a b c d e", 0),  # letters
        ("\\boxed{1} \\boxed{2} \\boxed{3} \\boxed{4}", 0),
        ("", 0),
        ("Мия имеет девять яблок", 1),
        ("word1word two_three four", 1),  # digits and underscores part words
    ],
)
def test_sentence(text, paid):
    assert sentence(completions=[text], prompts=[""]) == [float(paid)]


# --- Loading and scoring ---

ACCURACY = DEFAULT[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_functions_are_found_in_modules_and_files(folder):
    """One in the current directory, and one that is named like a module, which it does not hide."""
    assert list(load(DEFAULT[::-1]).values()) == [clarity, conciseness, accuracy]
    (folder / "mine").mkdir()
    body = "(completions, **kwargs):\n    return [1 / (1 + len(c)) for c in completions]\n"
    (folder / "mine/module.py").write_text("def brevity" + body)
    (folder / "mine/math.py").write_text("def shortness" + body)
    functions = load(["mine.module:brevity", "mine/math.py:shortness", DEFAULT[2]])
    assert list(functions) == ["brevity", "shortness", "clarity"]
    for name in ("brevity", "shortness"):
        assert functions[name](completions=["", "a"]) == [1.0, 0.5]
    import math

    assert math.pi > 3
    (folder / "mine/judge.py").write_text(f"loaded = []\ndef one{body}def two{body}")
    both = load(["mine/judge.py:one", "mine/judge.py:two"])  # a judge's weights are loaded once
    assert both["one"].__globals__ is both["two"].__globals__
    load(DEFAULT)
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("accuracy", "is not of the form"),
        (":clarity", "is not of the form"),
        ("rewards.clarity:", ""),
        ("rewards.acuracy:accuracy", "No module named 'rewards.acuracy'"),
        ("nowhere.py:f", "FileNotFoundError"),
        ("rewards.clarity:clairty", "has no attribute 'clairty'"),
        ("rewards.accuracy:TIME_LIMIT", "not a callable"),
        ("rewards.answers:last_boxed", "end its parameters with"),
        ("wrong:f", "ModuleNotFoundError: No module named 'not_installed'"),
        ("wrong.py:f", "ModuleNotFoundError: No module named 'not_installed'"),
        ("syntax:f", "SyntaxError"),
        ("leaves.py:f", "SystemExit: no licence"),
        ("taken.py:step", "rename the function"),
        ("taken.py:clarity_se", "rename the function"),
        (ACCURACY, "rename the function"),  # twice
    ],
)
def test_a_reward_that_cannot_be_loaded_is_one_line(path, told, folder):
    (folder / "wrong.py").write_text("import not_installed\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "leaves.py").write_text("raise SystemExit('no licence')\n")
    (folder / "taken.py").write_text("def step(**kwargs): ...\nclarity_se = step\n")
    with pytest.raises(UserError) as error:
        load([ACCURACY, path])
    assert str(error.value).startswith(f"--rewards {path!r}")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


BATCH = {
    "completions": ["\\boxed{2}", "1. one\n2. two \\boxed{3}", "nothing"],
    "completion_ids": [[5, 1], [5, 6, 7, 1], [5, 6, 1]],
    "columns": {"prompt": ["1+1=", "1+1=", "1+2="], "answer": ["2", "2", "3"], "unit": ["a"] * 3},
    "mean_length": 3.0,
    "answer_check": "exact",
}


def test_the_matrix_and_the_keywords(folder):
    """What one reward does to its arguments the next one does not see."""
    seen = {}

    def first(completions, answer, **kwargs):
        completions.sort()
        answer.clear()
        return [0] * 3

    def second(**kwargs):
        seen.update(kwargs)
        return torch.tensor([True, False, True])

    functions = load(DEFAULT) | {"first": first, "second": second}
    matrix = score(functions, **BATCH)
    assert matrix.dtype == torch.float32
    assert matrix.tolist() == [[1, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    rest = {name: value for name, value in BATCH.items() if name != "columns"}
    assert seen == rest | BATCH["columns"] | {"prompts": BATCH["columns"]["prompt"]}


@pytest.mark.parametrize(
    "values",
    [None, 1.0, "abc", [1.0, 2.0], [], [0.0, 0.0, float("nan")],
     [0.0, 0.0, 1e39], [0.0, 0.0, "1"], torch.zeros(3, 2)],
)  # fmt: skip
def test_what_a_reward_may_not_return(values):
    with pytest.raises(UserError, match="^the reward 'mine' (raised|must return a finite number)"):
        score({"mine": lambda **kwargs: values}, **BATCH)


def test_a_reward_may_be_awaited_and_may_not_apply():
    async def mine(**kwargs):
        return [None, np.float32(0.5), torch.tensor(2.0)]

    (found,) = score({"mine": mine}, **BATCH).T
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == [0.5, 2.0]


def test_a_rank_without_completions_asks_no_reward():
    empty = {"completions": [], "completion_ids": [], "columns": {"prompt": []}}
    assert score({"mine": lambda **kwargs: 1 / 0}, **BATCH | empty).shape == (0, 1)


def test_a_reward_in_a_file_may_define_a_dataclass(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Judge:\n    level: int = 1\n"
        "def mine(completions, **kwargs):\n    return [Judge().level] * len(completions)\n"
    )
    assert score(load([f"{file}:mine"]), **BATCH).tolist() == [[1.0]] * 3


def test_a_reward_that_raises_is_named_with_the_columns():
    def leaves(**kwargs):
        raise SystemExit("no key\nmore")

    told = "^the reward 'mine' raised SystemExit: no key; columns of the dataset: prompt, answer"
    with pytest.raises(UserError, match=told):
        score({"mine": leaves}, **BATCH)
    with pytest.raises(UserError, match="'accuracy' raised TypeError: .*'answer'.*: prompt$"):
        score(load([ACCURACY]), **BATCH | {"columns": {"prompt": ["q"] * 3}})
    with pytest.raises(UserError, match="--rewards is empty"):
        load([])


def test_importing_rewards_does_not_import_math_verify():
    code = "import sys, rewards.accuracy, rewards.clarity; print('math_verify' in sys.modules)"
    assert run_script("-c", code).stdout == "False\n"
