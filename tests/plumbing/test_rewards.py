"""The rewards on hostile and real completions, and the errors that loading and scoring give."""

import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards.accuracy
from common.errors import UserError
from rewards import DEFAULT, load, score
from rewards.accuracy import accuracy
from rewards.answers import MAX_ANSWER_LENGTH, last_boxed, normalize_answer
from rewards.clarity import clarity
from rewards.conciseness import conciseness
from rewards.sentence import sentence
from rewards.units import units
from support.running import ROOT, run_script

MATH500 = ROOT.parent / "shared" / "data" / "math500"


def check(text: str, gold: str, answer_check: str) -> float:
    return accuracy(completions=[text], answer=[gold], answer_check=answer_check)[0]


# --- The last box ---

BOXES = [
    ("", None),
    ("no box", None),
    (r"\boxed{15}", "15"),
    (r"\boxed{}", ""),
    (r"\boxed {15}", "15"),
    (r"\fbox{15}", "15"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\fbox{1} then \boxed{2} then \fbox{3}", "3"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\text{the \textbf{last} one}}.", r"\text{the \textbf{last} one}"),
    (r"\boxed{1 \boxed{2}}", "2"),
    (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
    (r"\boxed{\}}", r"\}"),
    (r"\boxed{a\\}", r"a\\"),
    (r"\boxed{15", None),
    (r"\boxed{\frac{1}{2}", None),
    (r"\boxed{1} but \boxed{2", None),
    (r"\boxed{1\}", None),
    (r"\boxed 5", None),
    (r"\boxed{4} as \boxed asks", "4"),
    (r"\boxedx{5}", None),
    ("\\boxed{1\n5}", "1\n5"),
    ("}}}{{{\\boxed{7}}}", "7"),
]


@pytest.mark.parametrize(("text", "content"), BOXES)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


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


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["\\boxed{", "\\fbox{", "{", "}", "}", "\\", "\\}", "\\{", "5", "boxed", "\n", " x "]
        ),
        max_size=14,
    )
)
def test_last_boxed_agrees_with_its_definition(pieces):
    text = "".join(pieces)
    assert last_boxed(text) == last_boxed_by_letter(text)


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
        for _ in range(
            3
        ):  # the best of three, since other work on the machine is not what is measured
            start = time.process_time()
            function()
            best = min(best, time.process_time() - start)
        return best

    text = HOSTILE[name]
    check(r"\boxed{2}", "2", "math-verify")  # not its import either
    assert cost(lambda: last_boxed(text)) < MOMENT
    assert cost(lambda: clarity(completions=[text])) < MOMENT
    for answer_check in ("exact", "boxed", "math-verify"):
        assert cost(lambda answer_check=answer_check: check(text, "2", answer_check)) < MOMENT
        assert check(text, "2", answer_check) == 0.0


# --- Accuracy ---

# content of the box, gold answer, right under: exact, boxed, math-verify
ANSWERS = [
    ("15", "15", 1, 1, 1),
    (" 15\n", "15", 1, 1, 1),
    ("15", " 15 ", 1, 1, 1),
    ("16", "15", 0, 0, 0),
    ("015", "15", 0, 0, 1),
    ("", "15", 0, 0, 0),
    ("   ", "15", 0, 0, 0),
    ("١٥", "15", 0, 0, 0),
    ("１５", "15", 0, 0, 0),
    ("1⁵", "15", 0, 0, 0),
    (r"\dfrac{1}{2}", r"\frac{1}{2}", 0, 1, 1),
    (r"\tfrac12", r"\frac{1}{2}", 0, 1, 1),
    (r"\frac1{72}", r"\frac{1}{72}", 0, 1, 1),
    (r"\frac{1}2", r"\frac{1}{2}", 0, 1, 1),
    (r"\frac\pi2", r"\frac{\pi}{2}", 0, 1, 1),
    ("1/2", r"\frac{1}{2}", 0, 1, 1),
    ("-1/2", r"-\frac{1}{2}", 0, 1, 1),
    ("0.5", r"\frac{1}{2}", 0, 1, 1),
    (".5", r"\frac{1}{2}", 0, 1, 1),
    ("0.25", r"\frac{1}{4}", 0, 0, 1),
    ("2/4", r"\frac{1}{2}", 0, 0, 1),
    (r"\frac{2}{1}", r"\frac{1}{2}", 0, 0, 0),
    (r"\sqrt2", r"\sqrt{2}", 0, 1, 1),
    (r"\sqrt 2", r"\sqrt{2}", 0, 1, 1),
    (r"\sqrt[3]{2}", r"\sqrt{2}", 0, 0, 0),
    (r"15\%", "15%", 0, 1, 1),
    (r"15\%", "15", 0, 1, 1),
    (r"\$15", "15", 0, 1, 1),
    (r"15 \text{ cm}", "15", 0, 1, 1),
    (r"15 \text{ cm}", "16", 0, 0, 0),
    (r"90^\circ", "90", 0, 1, 1),
    (r"90^{\circ}", r"90^\circ", 0, 1, 1),
    (r"x = 5", "5", 0, 1, 1),
    (r"x = 5", "6", 0, 0, 0),
    (r"\text{Evelyn}", r"\text{Evelyn}", 1, 1, 1),
    (r"\text{Evelyn}", r"\text{Angela}", 0, 0, 0),
    (r"\text{ Evelyn}", r"\text{ Angela}", 0, 0, 0),
    ("(1, 2)", "(1,2)", 0, 1, 1),
    (r"\left( 1, 2 \right]", "(1,2]", 0, 1, 1),
    ("[1,2]", "(1,2)", 0, 0, 0),
    (r"(-\infty, 2] \cup [3, \infty)", r"(-\infty,2]\cup[3,\infty)", 0, 1, 1),
    (r"\{2, 1\}", r"\{1,2\}", 0, 0, 1),
    ("2,1", "1,2", 0, 0, 1),
    ("15, 16", "15", 0, 0, 0),
    (r"\pm 15", "15", 0, 0, 0),
    ("x+1", "1+x", 0, 0, 1),
    (r"10,\!080", "10,080", 0, 1, 1),
    ("10,080", "10080", 0, 0, 1),
    (r"\frac{", "15", 0, 0, 0),
    (r"{}^{_}\\&#", "15", 0, 0, 0),
    ("0/0", "15", 0, 0, 0),
    ("1" * (MAX_ANSWER_LENGTH + 1), "1", 0, 0, 0),
]


@pytest.mark.parametrize("answer_check", ["exact", "boxed", "math-verify"])
@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: f"{row[0][:30]} for {row[1]}")
def test_answers(row, answer_check):
    content, gold, *expected = row
    text = f"I think \\boxed{{3}}, no: \\boxed{{{content}}}."
    assert (
        check(text, gold, answer_check)
        == expected[("exact", "boxed", "math-verify").index(answer_check)]
    )


def test_exact_is_the_default_and_other_keywords_are_ignored():
    assert accuracy(
        completions=[r"\boxed{1/2}", r"\boxed{1}"],
        answer=[r"\frac{1}{2}", "1"],
        prompts=["", ""],
        level=[1, 2],
    ) == [0.0, 1.0]


def test_known_hacks_of_math_verify_are_still_what_the_documentation_says():
    assert check(r"\boxed{(6+7)+2}", "15", "math-verify") == 1.0
    assert check(r"\boxed{14=15}", "15", "math-verify") == 1.0
    assert check(r"\boxed{(6+7)+2}", "15", "boxed") == 0.0
    assert (
        check(r"\boxed{14=15}", "15", "boxed") == 1.0
    )  # the rule for x=5 drops any two characters before the sign
    assert check(r"\boxed{144=15}", "15", "boxed") == 0.0
    assert check(r"\boxed{\leftarrow}", r"\rightarrow", "boxed") == 0.0


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789/=-xk \\{}%$fracsqt", max_size=20))
def test_normalizing_twice_changes_nothing_that_matters(text):
    assert normalize_answer(f"\\dfrac{{3}}{{4}} {text}") == normalize_answer(
        f"\\frac{{3}}{{4}}{text}"
    )


def test_a_tower_of_powers_is_wrong_after_the_time_limit(monkeypatch):
    monkeypatch.setattr(rewards.accuracy, "TIME_LIMIT", 1)
    start = time.monotonic()
    assert check(r"\boxed{9^{9^{9^{9}}}}", "15", "math-verify") == 0.0
    assert time.monotonic() - start < 10


def in_a_thread(function):
    results = []

    def target():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return results[0]


def test_math_verify_works_in_a_thread():
    # Answers that no other test uses, so that none comes from a cache filled by the main thread.
    assert (
        in_a_thread(lambda: check(r"\boxed{\frac{31}{62}}", r"\frac{17}{34}", "math-verify")) == 1.0
    )
    assert (
        in_a_thread(lambda: check(r"\boxed{\frac{31}{63}}", r"\frac{17}{34}", "math-verify")) == 0.0
    )
    assert (
        in_a_thread(lambda: check(r"\boxed{\frac{19}{38}}", r"\frac{17}{34}", "math-verify")) == 1.0
    )


def test_math_verify_works_without_sigalrm(monkeypatch):
    monkeypatch.delattr("signal.SIGALRM")
    monkeypatch.setattr("math_verify.utils.timeout", None)
    assert check(r"\boxed{\frac{29}{58}}", r"\frac{23}{46}", "math-verify") == 1.0


@pytest.mark.parametrize("gold", ["15)", "?!", r"\frac{1"])
def test_a_gold_answer_that_cannot_be_parsed_is_an_error(gold):
    for completion in (r"\boxed{15}", "no box", f"\\boxed{{{gold}}}"):
        with pytest.raises(
            UserError, match="--answer-check math-verify cannot use the gold answer"
        ) as error:
            check(completion, gold, "math-verify")
        assert repr(gold) in str(error.value)
        assert "--answer-check boxed" in str(error.value)


def test_an_error_inside_the_checker_is_no_wrong_answer(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("parser\nbroken")

    monkeypatch.setattr("math_verify.parse", broken)
    with pytest.raises(UserError, match=r"'41/42' \(RuntimeError\)"):
        check(r"\boxed{41/42}", "41/42", "math-verify")


def test_a_gold_answer_that_does_not_equal_itself_is_compared_as_text(monkeypatch):
    monkeypatch.setattr("math_verify.verify", lambda *args, **kwargs: False)
    assert check(r"\boxed{43/44}", "43/44", "math-verify") == 1.0
    assert check(r"\boxed{86/88}", "43/44", "math-verify") == 0.0


def test_a_gold_answer_is_parsed_once(monkeypatch):
    import math_verify

    parsed = []
    true_parse = math_verify.parse
    monkeypatch.setattr(
        math_verify,
        "parse",
        lambda text, **kwargs: parsed.append(text) or true_parse(text, **kwargs),
    )
    texts = [f"\\boxed{{{i}/89}}" for i in range(4)] * 2
    assert (
        accuracy(completions=texts, answer=["3/89"] * 8, answer_check="math-verify")
        == [0, 0, 0, 1] * 2
    )
    assert sorted(parsed) == sorted(
        texts[:4]
    )  # the gold answer once; the completion that is written like it, not at all


def test_without_math_verify_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match="--answer-check math-verify .* pip install math-verify"):
        check(r"\boxed{47}", "47", "math-verify")


@pytest.mark.parametrize("gold", [15, None, "", "  ", "1" * (MAX_ANSWER_LENGTH + 1)])
@pytest.mark.parametrize("answer_check", ["exact", "boxed", "math-verify"])
def test_a_gold_answer_that_nothing_could_match_is_an_error(gold, answer_check):
    with pytest.raises(
        UserError, match="the gold answer .* in the dataset column 'answer' must be a string"
    ):
        check(r"\boxed{15}", gold, answer_check)


def test_an_unknown_check_is_an_error():
    with pytest.raises(
        UserError,
        match="--answer-check 'sympy' does not exist: choose one of exact, boxed, math-verify",
    ):
        check(r"\boxed{15}", "15", "sympy")


@pytest.fixture(scope="module")
def math500() -> tuple[list[str], list[str], list[str]]:
    """The 500 problems: names, the authors' solutions, gold answers."""
    files = sorted(MATH500.glob("*.parquet"))
    if not files:
        pytest.skip("the MATH-500 files are not beside the repository (../shared/data/math500)")
    import pandas

    table = pandas.concat(pandas.read_parquet(file) for file in files)
    assert len(table) == 500
    return (
        list(table["unique_id"]),
        list(table["solution"]),
        [row["ground_truth"] for row in table["reward_model"]],
    )


@pytest.mark.parametrize("answer_check", ["exact", "boxed", "math-verify"])
def test_every_solution_of_math500_is_right(math500, answer_check):
    names, solutions, golds = math500
    scores = accuracy(completions=solutions, answer=golds, answer_check=answer_check)
    assert [name for name, value in zip(names, scores, strict=True) if value != 1.0] == []


@pytest.mark.parametrize("answer_check", ["boxed", "math-verify"])
def test_the_solution_of_another_problem_of_math500_is_wrong(math500, answer_check):
    _, solutions, golds = math500
    scores = accuracy(
        completions=solutions[1:] + solutions[:1], answer=golds, answer_check=answer_check
    )
    alike = [float(a == b) for a, b in zip(golds[1:] + golds[:1], golds, strict=True)]
    assert scores == alike


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
        (
            "Mia has 4 apples and gets 5 more. How many apples now?",
            1,
        ),  # a known hack: the question, repeated
        ("4 oranges", 0),
    ],
)
def test_units(text, paid):
    assert units(completions=[text], unit=["apples"]) == [float(paid)]


def test_units_belong_to_their_prompts():
    texts, nouns = ["a pencil, spent", "two pens", "fish", "3 axb"], ["pens", "pen", "fish", "a.b"]
    assert units(completions=texts, unit=nouns, other=1) == [0, 1, 1, 0]
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
    [None, 1.0, "abc", [1.0, 2.0], [], [0.0, 0.0, None], [0.0, 0.0, float("nan")],
     [0.0, 0.0, 1e39], [0.0, 0.0, "1"], torch.zeros(3, 2)],
)  # fmt: skip
def test_what_a_reward_may_not_return(values):
    with pytest.raises(UserError, match="^the reward 'mine' (raised|must return a finite number)"):
        score({"mine": lambda **kwargs: values}, **BATCH)


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
