"""Answers as people, models and data sets write them: what earns a reward, what must not, and which reference answers can be used."""

import pytest

from common.errors import UserError
from rewards.accuracy import accuracy, unusable
from rewards.answers import answer_box, answer_boxes, reference
from rewards.clarity import clarity


def check(content: str, gold: str, answer_check: str = "math-verify") -> float:
    return accuracy(completions=[f"\\boxed{{{content}}}"], answer=[gold], answer_check=answer_check)[0]


# content of the box, gold answer
WRONG = [
    # numbers that differ in proportion, however small both are
    ("0.0000001", "0.0000002"), ("0.0000001", "0"), (r"10^{-7}", r"2\cdot10^{-7}"), ("0.333", r"\frac13"), ("3.14", r"\pi"),
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"), (r"x+\frac{1}{2^{98}}", r"x+\frac{1}{2^{99}}"), (r"x=10^{-9}", r"x=2\cdot 10^{-9}"),
    (r"\{0.0000001,1\}", r"\{0.0000002,1\}"), (r"(10^{-9},1)", r"(2\cdot 10^{-9},1)"), (r"[10^{-9},1]", r"[2\cdot10^{-9},1]"),
    (r"\begin{pmatrix}10^{-8}\\2\end{pmatrix}", r"\begin{pmatrix}2\cdot 10^{-8}\\2\end{pmatrix}"),
    # times of day and ratios
    ("1:10", "3:30"), ("1:3", "3:9"), ("1:2:3", "1:3:2"), ("12:30", "1:2"), (r"3:30\text{ a.m.}", r"3:30\text{ p.m.}"),
    ("5 pm", "5 am"), (r"\frac{1}{3}", "1:30"),
    # mixed numbers, and numbers side by side, which the library adds
    ("2 2/3", r"\frac43"), ("2 2/3", r"\frac{22}{3}"), ("22/3", "2 2/3"), ("3 1/4", r"\frac34"), ("2 5", "7"), ("12 345", "357"),
    # words are no products of their letters
    ("silent", "listen"), ("on", "no"), (r"\text{on}", "no"), ("n o", "on"), ("act, dog", "cat, dog"), (r"\text{Thursday}", "Tuesday"),
    ("2x", "x+X"), ("2A", "a+A"), ("x+x", "x+X"),
    # names, bases and brackets
    ("2516_9", "2516_8"), ("25_{16}", "25_{12}"), ("25_8+1_8", "25_9+1_9"), ("y=5", "x=5"), (r"\alpha=5", r"\beta=5"),
    ("x=1,y=2", "y=1,x=2"), (r"\{1,2\}", "(1,2)"), ("(1,2)", r"\{1,2\}"), (r"\left\{1,2\right\}", r"\left(1,2\right)"),
    # a sentence is not its last number
    ("6 left, 4 fewer than Tom has", "4"), ("4", "She has 6 left, which is 4 fewer than Tom"), ("5", "1/0"), (r"0.\overline{3}", "0.3"),
    ("東京", "京都"), ("A", "B"), ("9^{9^{9^9}}", "9"),
]  # fmt: skip
RIGHT = [
    ("0.0000001", "0.0000001"), (r"2^{-99}", r"\frac{1}{2^{99}}"), ("0.333333", r"\frac13"), (r"\frac{9}{2}", "4.5"),
    (r"x+\frac{1}{2^{99}}", r"\frac{1}{2^{99}}+x"), (r"((2,\infty))", r"(2,\infty)"),
    ("3:30", "3:30"), ("03:30", "3:30"), ("12:00", "12:00"), ("3:00 PM", r"3:00\text{ p.m.}"), (r"3:00\text{ p.m.}", r"3:00\text{ p.m.}"),
    ("2 : 3", "2:3"), (r"\frac32", "3:2"), ("1:2:3", "1:2:3"),
    ("2 2/3", r"\frac83"), (r"2\ 2/3", r"\frac83"), ("-1 1/2", r"-\frac32"), (r"2\frac23", r"\frac83"),
    ("yes", r"\text{Yes}"), ("dog, cat", "cat, dog"), ("True", "true"), ("X+x", "x+X"), ("1+x", "x+1"), (r"\text{(C)}", "C"),
    ("2516_{8}", "2516_8"), ("5", "x=5"), ("x=5", "5"), ("y=2,x=1", "x=1,y=2"), (r"\{2,1\}", r"\{1,2\}"), ("2,1", r"\{1,2\}"),
    (r"\frac{1}{\mathrm e}", r"\frac1e"), (r"\frac{1}{e}", r"\frac{1}{\mathrm{e}}"), (r"2\mathrm{i}+1", "1+2i"),
    (r"12\,345", "12345"), ("12345", r"12\,345"), (r"1\,234\,567", "1234567"), ("12 345", "12345"),
    ("42.", "42"), ("3.0.", "3"), ("45°", "45"), ("45", r"45^\circ"), (r"\sin 45°", r"\sin 45^\circ"), ("**73**", "73"), ("__73__.", "73"),
    ("€18", "€18"), ("18", "€18"), ("£3.50", "3.5"), ("18 dollars", "18"), ("18", "18 apples"),
    (r"0.\overline{3}", r"0.\overline{3}"), (r"\frac13", r"0.\overline{3}"), (r"0.1\overline{6}", r"\frac16"),
    ("½", "½"), ("1/2", "½"), ("2½", "2.5"), ("x²", "x²"), ("x^2", "x²"), ("x₁", "x_1"), ("√2", r"\sqrt2"), ("2π", r"2\pi"), ("−5", "-5"),
    ("Да", "да"), ("東京", "東京"), ("١٥", "١٥"), ("1/0", "1/0"),
    ("3 hours and 20 minutes", r"3\text{ hours and }20\text{ minutes}"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "gold"), WRONG)
def test_false_credit(content, gold):
    assert check(content, gold) == 0.0


@pytest.mark.parametrize(("content", "gold"), RIGHT)
def test_missed_credit(content, gold):
    assert check(content, gold) == 1.0


@pytest.mark.parametrize(("content", "gold"), [("y=5", "x=5"), ("2 2/3", r"\frac{22}{3}"), (r"5\text{ a.m.}", r"5\text{ p.m.}")])
def test_false_credit_of_the_string_comparison(content, gold):
    assert check(content, gold, "boxed") == 0.0


LENIENT = [
    ("2516", "2516_8"), ("1,2", "(1,2)"), ("9", r"9\%"), (r"10\text{ cm}", r"10\text{ m}"), ("x", "X"),
    ("0.33333333", r"\frac13"), ("5 oranges", "5 apples"), ("1 0", "10"),
]  # fmt: skip
STRICT = [
    ("ba", "ab"), ("2:4", "1:2"), ("1e-7", "0.0000001"), (r"\frac{1}{10}", "1:10"), ("١٥", "15"),
    (r"\pi", "pi"), (r"\sqrt{2}", "sqrt2"), ("x^2", "x**2"), ("100000", "1e5"),
]  # fmt: skip


@pytest.mark.parametrize(("pairs", "credit"), [(LENIENT, 1.0), (STRICT, 0.0)])
def test_what_is_not_mended_is_what_the_documentation_says(pairs, credit):
    assert [check(content, gold) for content, gold in pairs] == [credit] * len(pairs)


# --- Boxes ---


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3} and \boxed{5}", "3,5"),
        (r"$\boxed{3}$, $\boxed{5}$.", "3,5"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1,2,3"),
        (r"\boxed{3}\text{ or }\boxed{5}", "3,5"),
        (r"First \boxed{1}. Then \boxed{3} or \boxed{5}", "3,5"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{3}. No: \boxed{5}", "5"),
        (r"\boxed{3}, so \boxed{5}", "5"),
        (r"\boxed{3} \boxed{5}", "5"),
        (r"\boxed{1 \boxed{2}}", "2"),
        (r"\boxed{3} and \boxed{5", None),
    ],
)
def test_boxes_tied_together_are_one_answer(text, answer):
    assert answer_boxes(text) == answer


def test_two_boxes_answer_a_list_and_hedge_no_single_number():
    texts = [r"\boxed{3} and \boxed{5}"] * 3
    assert accuracy(completions=texts, answer=["3,5", r"\{5,3\}", "5"], answer_check="math-verify") == [1.0, 1.0, 0.0]
    assert accuracy(completions=texts, answer=["3,5", r"\{5,3\}", "5"], answer_check="boxed") == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "prompt", "answer"),
    [
        (r"<think> so \boxed{5}", "", None),
        (r"\boxed{4} <think> or \boxed{5}", "", None),
        (r"<think> a </think> b <think> \boxed{5}", "", None),
        (r"so \boxed{5}", "Q<|assistant|><think>\n", None),
        (r"<think> \boxed{4} </think> so \boxed{5}", "", "5"),
        (r"hm </think> so \boxed{5}", "Q<|assistant|><think>\n", "5"),
        (r"so \boxed{5}", "Q: what does <think> mean?", "5"),
    ],
)
def test_a_box_in_a_thought_that_never_ends_earns_nothing(completion, prompt, answer):
    assert answer_box(completion, prompt) == answer
    for answer_check in ("exact", "boxed", "math-verify"):
        assert accuracy([completion], ["5"], answer_check, prompts=[prompt]) == [float(answer is not None)]
    assert clarity(["1. a\n2. b\n" + completion], prompts=[prompt]) == [float(answer is not None)]


# --- Golds ---


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("He sold 500 + 503 = 1003 of 4.\n#### 1,003", "1003"),
        ("So she has 6, 4 fewer than Tom.\n#### 6", "6"),
        ("#### -1,234,567.5 ", "-1234567.5"),
        ("#### (1,003)", "(1,003)"),
        ("It is 5.\n#### \\boxed{5}", "5"),
        ("#### Step 1\nAdd.\n#### Step 2\nSo \\boxed{7}.", "7"),
        (r"The answer is \boxed 5.", "5"),
        (r"The answer is $\boxed 5$", "5"),
        (r"\boxed \pi", r"\pi"),
        (r"The final answer is $\boxed{34}$.", "34"),
        (["34"], "34"),
        ([34], "34"),
        ('["34"]', "34"),
        ("['34']", "34"),
        ('["#### 1,003"]', "1003"),
        ("[1,2]", "[1,2]"),
        ("[34]", "[34]"),
        (10**25, "1" + "0" * 25),
        (7.0, "7"),
        (-0.5, "-0.5"),
        (2.0**53 - 1, "9007199254740991"),
        (1e25, None),
        (0.00001, "0.00001"),
        (-2.5e-7, "-0.00000025"),
        ("So \\boxed{}", None),
        ("\\boxed{ }", None),
        ("It is 5.\n#### ", None),
        (float("inf"), None),
        (["3", "4"], None),
        ('["3", "4"]', None),
        ([], None),
        (None, None),
        (float("nan"), None),
        ("", None),
    ],
)
def test_the_reference_in_a_cell(cell, gold):
    assert reference(cell) == gold


def test_unusable_golds_are_listed_with_the_reason():
    golds = ["5", "?!", "15)", r"\frac{1", " ", "1" * 301, "12:00", "word " * 13, "5"]
    assert list(unusable(golds, "math-verify")) == [" ", "1" * 301, "?!", "15)", r"\frac{1", "word " * 13]
    assert "a worked solution must end in ####" in unusable(["word " * 13], "math-verify")["word " * 13]
    assert list(unusable(golds, "boxed")) == list(unusable(golds, "exact")) == [" ", "1" * 301]


def test_what_is_listed_is_what_stops_a_reward_and_nothing_else():
    golds = ["?!", r"\frac{1", "12:00", r"\frac{1}{2}", "x²", "words in a row", "1/0"]
    listed = unusable(golds, "math-verify")
    for gold in golds:
        if gold in listed:
            with pytest.raises(UserError, match="cannot use the gold answer .* drop such rows"):
                check("5", gold)
        else:
            assert check(gold, gold) == 1.0


def test_a_gold_is_parsed_once_and_plain_numbers_not_at_all(monkeypatch):
    import math_verify

    parsed, true_parse = [], math_verify.parse
    monkeypatch.setattr(math_verify, "parse", lambda text, **kwargs: parsed.append(text) or true_parse(text, **kwargs))
    assert unusable([r"\sqrt{97}", "97", "-97.5", r"\frac{97}{3}"] * 3, "math-verify") == {}
    assert parsed == [r"\boxed{\sqrt{97}}"]
    assert check(r"\sqrt{97}", r"\sqrt{97}") == 1.0  # nor again by the reward
    assert parsed == [r"\boxed{\sqrt{97}}"]


LABELS = ["2024-05-06", "10-15", "1990-1995", "1-0", "555-1234", "1/2/2020", "AC-12", "0x1F", "0b101", "COVID-19"]


@pytest.mark.parametrize("gold", LABELS)
def test_dates_ranges_and_codes_are_what_is_written(gold):
    """And no sums, quotients or products of letters."""
    others = [other for other in [*LABELS, "0", "2018", "-5", "0xFF", "0b100", "2-1", "CA-12", "1/4040", "20-25"] if other != gold]
    said = [rf"\boxed{{{text}}}" for text in (gold, rf"\text{{{gold}}}", *others)]
    assert accuracy(said, [gold] * len(said), "math-verify") == [1.0, 1.0, *[0.0] * len(others)]


def test_small_numbers_are_right_as_they_are_written():
    for number in (0.00001, 0.00005, 1.5e-6):
        gold = reference(number)
        assert accuracy([rf"\boxed{{{gold}}}"], [gold], "math-verify") == accuracy([rf"\boxed{{{gold}}}"], [gold], "exact") == [1.0]
