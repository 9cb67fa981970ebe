"""The word problems and their two rewards: disjoint splits, right answers, and what is paid for."""

import re

import pytest

from common.errors import UserError
from prompts import answer_check, load_prompts
from rewards import load, score
from rewards.accuracy import accuracy
from rewards.sentence import sentence
from rewards.units import units
from testbed.arithmetic import tokenizer
from testbed.words import HELD_OUT, SHOT, SYSTEM, TRAINED_ON, problems, split

SPLITS = ("train", "tune", "test")
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_the_splits_share_no_question():
    asked = {name: problems(name)["question"] for name in SPLITS}
    assert {name: len(questions) for name, questions in asked.items()} == {"train": TRAINED_ON, "tune": HELD_OUT, "test": HELD_OUT}
    assert len({question for questions in asked.values() for question in questions}) == TRAINED_ON + 2 * HELD_OUT
    assert not any(SHOT[0] in questions for questions in asked.values())


def test_the_splits_do_not_move():
    assert [problems(name)["question"][0] for name in SPLITS] == [
        "Jack has 19 cards and buys 13 more. How many cards now?",
        "Sam has 18 apples and gets 1 more. How many apples now?",
        "Tom has 12 books and gets 20 more. How many books now?",
    ]
    with pytest.raises(UserError, match="words has no split 'dev'; it has train, tune and test"):
        split("dev")


def test_answers_are_right():
    """By an oracle of its own: reads the text."""
    signs = set()
    for name in SPLITS:
        found = problems(name)
        for question, answer, unit in zip(found["question"], found["answer"], found["unit"], strict=True):
            first, second = map(int, re.findall(r"\d+", question))
            sign = 1 if " more. " in question else -1
            signs.add(sign)
            assert int(answer) == first + sign * second >= 1
            assert question.count(f" {unit} ") == 2
            assert re.search(r" (buys|finds|gets) " if sign > 0 else r" (loses|sells|gives away) ", question)
    assert signs == {1, -1}


def test_the_example_is_right_and_earns_accuracy_alone():
    assert accuracy(completions=[SHOT[1]], answer=["9"]) == [1.0]
    assert units(completions=[SHOT[1]], unit=["cups"]) == sentence(completions=[SHOT[1]]) == [0.0]


def test_prompts_go_through_the_chat_template_where_there_is_one():
    plain = templated = tokenizer()
    found = load_prompts("words", plain, "", "", "", 1024)
    last = found["tune"].columns["question"][0]
    assert found["tune"].columns["prompt"][0] == "\n".join([SYSTEM, *SHOT, last])
    templated.chat_template = TEMPLATE
    found = load_prompts("words", templated, "", "", "", 1024)
    assert found["tune"].columns["prompt"][0] == f"<system>{SYSTEM}\n<user>{SHOT[0]}\n<assistant>{SHOT[1]}\n<user>{last}\n<assistant>"
    assert {name: len(part) for name, part in found.items()} == {"train": TRAINED_ON, "tune": HELD_OUT, "test": HELD_OUT}
    assert set(found["test"].columns) == {"prompt", "question", "answer", "unit"}
    assert answer_check("auto", "words") == "exact"
    with pytest.raises(UserError, match="--prompt-suffix 'x' has no use with --dataset words"):
        load_prompts("words", plain, "", "", "x", 1024)


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
        ("Mia has 4 apples and gets 5 more. How many apples now?", 1),  # a known hack: the question, repeated
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


def test_they_are_rewards_of_a_run():
    objectives = load(["rewards.accuracy:accuracy", "rewards.units:units", "rewards.sentence:sentence"])
    batch = {"prompts": ["q"] * 2, "completions": ["\\boxed{9}", "Mia has 9 apples now."], "completion_ids": [[1]] * 2, "mean_length": 1.0}
    found = score(objectives, **batch, columns={"answer": ["9"] * 2, "unit": ["apples"] * 2})
    assert found.tolist() == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(UserError, match="the reward 'units' wants the dataset column 'unit'"):
        score(objectives, **batch, columns={"answer": ["9"] * 2})
