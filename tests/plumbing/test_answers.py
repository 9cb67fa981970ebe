r"""Answers as people, models and data sets write them: boxes, references, and what earns accuracy.

Tables are lines of `what is said ⇄ gold answer`; ⇄ holds in both directions, → in this one."""

import random
import re
import sys
import threading
import time
from itertools import pairwise

import pytest

import rewards.accuracy
from rewards.accuracy import LONGEST, accuracy, unusable
from rewards.answers import THOUGHT_TAG, answer_box, answer_boxes, last_boxed, reference
from rewards.clarity import clarity
from support.running import ROOT

MATH500 = ROOT.parent / "shared" / "data" / "math500"


def check(content: str, gold: str, answer_check: str = "math-verify") -> float:
    return accuracy([f"\\boxed{{{content}}}"], [gold], answer_check)[0]


def misjudged(table: str, credit: float, answer_check: str = "math-verify") -> list[tuple]:
    """The pairs of a table that do not earn this credit."""
    rows = [re.split("([⇄→])", line) for line in table.strip().splitlines() if line]
    pairs = [(content.strip(), gold.strip()) for content, _, gold in rows]
    pairs += [(gold.strip(), content.strip()) for content, arrow, gold in rows if arrow == "⇄"]
    assert len(pairs) > 4
    return [pair for pair in pairs if check(*pair, answer_check) != credit]


RIGHT = {
    "mathematics": r"""
(a+b)^2 ⇄ a^2+b^2+2ab
\cos(2t) ⇄ \cos 2t
\frac{9}{2} ⇄ 4.5
x+\frac{1}{2^{99}} ⇄ \frac{1}{2^{99}}+x
2^{-99} ⇄ \frac{1}{2^{99}}
\frac{\sqrt{3}}{3} ⇄ \frac{1}{\sqrt{3}}
\sqrt{8} ⇄ 2\sqrt{2}
\log_{2} 3 ⇄ \log_2 3
2^3 3^2 ⇄ 72
\frac 3 4 ⇄ 0.75
X+x ⇄ x+X
1+2i ⇄ 2i+1
\sin 45° ⇄ \sin 45^\circ
\frac{\pi}{2} ⇄ 90^\circ
2x+4y-3=0 ⇄ y=-\frac{1}{2}x+\frac{3}{4}
((2,\infty)) ⇄ (2,\infty)
x>2 ⇄ (2,\infty)
-2 \le x \le 7 ⇄ [-2,7]
\begin{bmatrix}1\\2\end{bmatrix} ⇄ \begin{pmatrix}1\\2\end{pmatrix}
015 ⇄ 15""",
    "names": r"""
5 ⇄ x=5
x \in [-2,7] ⇄ [-2,7]
2x+3 ⇄ f(x)=2x+3
a+b=7 → 7
\text{Area} = 5 ⇄ 5
x=-1 \text{ or } x=2 ⇄ -1,2""",
    "lists": r"""
2,1 ⇄ 1,2
2,1 ⇄ \{1,2\}
1,2 ⇄ (1,2)
\{2, 1\} ⇄ \{1,2\}
3\text{ or }2 ⇄ 2, 3
3, 4, and 5 ⇄ 3,4,5
1 \pm \sqrt{19} ⇄ 1+\sqrt{19}, 1-\sqrt{19}
\{(1,2),(3,4)\} ⇄ (3,4),(1,2)
y=2,x=1 ⇄ x=1,y=2""",
    "words": r"""
yes ⇄ \text{Yes}
\text{Yes.} ⇄ yes
dog, cat ⇄ cat, dog
True ⇄ true
\text{(C)} ⇄ C
\mathrm{Yes} ⇄ \textbf{Yes}
Да ⇄ да
東京 ⇄ 東京
3 hours and 20 minutes ⇄ 3\text{ hours and }20\text{ minutes}
1/0 ⇄ 1/0
f'(x) ⇄ f'(x)
1,2,3,\dots ⇄ 1,2,3,\ldots""",
    "times and ratios": r"""
03:30 ⇄ 3:30
3:00 PM ⇄ 3:00\text{ p.m.}
2 : 3 ⇄ 2:3
\frac32 ⇄ 3:2
1:2:3 ⇄ 1:2:3""",
    "units": r"""
10 ⇄ 10\text{ cm}
10\text{ cm} ⇄ 10 centimeters
5\text{ cm}^2 ⇄ 5 square centimeters
\mathrm{7\,cm^2} ⇄ 7\text{cm²}
864 \text{ square inches} ⇄ 864 \mbox{ inches}^2
60\text{ mph} ⇄ 60\text{ miles per hour}
18 dollars ⇄ \$18
€18 ⇄ 18
18 ⇄ 18 apples
45° ⇄ 45\text{ degrees}
60^\circ, 120^\circ ⇄ 60,120
50\% ⇄ 0.5
50 percent ⇄ 50
x = 5\text{ cm} ⇄ 5
2516 → 2516_8
(1011)_{2} ⇄ 1011_2
90_{10} ⇄ 90""",
    "numbers": r"""
1.1 \times 10^{20} ⇄ 110000000000000000000
6.02 \times 10^{23} ⇄ 6.02e23
100 million ⇄ 100000000
\$1.5\text{ million} ⇄ 1500000
3 dozen ⇄ 36
2 2/3 ⇄ \frac83
2\frac23 ⇄ \frac83
-1 1/2 ⇄ -\frac32
12\,345 ⇄ 12345
1 234 567 ⇄ 1{,}234{,}567
10,\!080 ⇄ 10080
0.333333 ⇄ \frac13
0.\overline{3} ⇄ \frac13
0.1\overline{6} ⇄ \frac16
18+6.283185307179586 ⇄ 18+2\pi
0.30000000000000004 ⇄ 0.3""",
    "layout": r"""
\big(1,2\big) ⇄ (1,2)
\left\{1,2\right\} ⇄ \lbrace 1,2 \rbrace
8\,\% ⇄ $8 \%$
**73** ⇄ 73
__73__. ⇄ \(73\)
3.0. ⇄ 3
90\degree ⇄ 90^{\circ}
\varnothing ⇄ \emptyset
\dfrac{1}{2} ⇄ \frac12
\frac{1}{\mathrm e} ⇄ \frac1e
½ ⇄ 1/2
2½ ⇄ 2.5
x² ⇄ x^2
x₁ ⇄ x_{1}
√2 ⇄ \sqrt2
2π ⇄ 2\pi
−5 ⇄ -5
(-∞, 2] ∪ [3, ∞) ⇄ (-\infty,2]\cup[3,\infty)
١٥ ⇄ ١٥""",
}
WRONG = {
    "letters": r"""
5 ⇄ 5t
a^2+b^2+2 ⇄ a^2+b^2+2ab
-9.8 ⇄ $-9.8 t$
\pi r^2 ⇄ \pi r^2 h
13 ⇄ 13m
0 ⇄ 0 t
2x ⇄ x+X
2A ⇄ a+A
X_1 ⇄ x_1
\Delta ⇄ \delta
\Gamma ⇄ \gamma
\sin x ⇄ \sinh x""",
    "words": r"""
silent ⇄ listen
on ⇄ no
n o ⇄ on
act, dog ⇄ cat, dog
\text{Thursday} ⇄ Tuesday
\text{Bob and Al} ⇄ \text{Bob}
\text{not even} ⇄ \text{even}
A ⇄ A, B
東京 ⇄ 京都""",
    "what stands beside": r"""
1331 ⇄ 1331 \text{ and } 1728
5 \text{ feet } 3 \text{ inches} ⇄ 5 \text{ feet } 9 \text{ inches}
3 \text{ feet } 5 \text{ inches} ⇄ 5 \text{ feet } 3 \text{ inches}
7 \text{ remainder } 2 ⇄ 7
x \text{ if } x>0 ⇄ x \text{ if } x<0
5 ⇄ 5 or six
5 ⇄ 5 million
5 ⇄ 5 times
5 ⇄ 5 tenths
5 ⇄ 5th
5 ⇄ 5\text{M}
5 ⇄ \text{about } 5
6 left, 4 fewer than Tom has ⇄ 4
4 ⇄ She has 6 left, which is 4 fewer than Tom""",
    "signs that a parser skips": r"""
f(x) ⇄ f'(x)
x'=2 ⇄ x=2
1,2,3 ⇄ 1,2,3,\ldots
5 ⇄ 5...
6 ⇄ 6 \approx 5
2\$5 ⇄ 7
5 ⇄ <5
15 ⇄ 15?
\hat{x} ⇄ x
x^T ⇄ x""",
    "bases": r"""
90 ⇄ (10)_{2}
2516_9 ⇄ 2516_8
25_{16} ⇄ 25_{12}
25_8+1_8 ⇄ 25_9+1_9
101_2 → 101
5 ⇄ 101_2""",
    "units": r"""
10\text{ cm} ⇄ 10\text{ m}
5\text{ cm}^2 ⇄ 5\text{ cm}
5 oranges ⇄ 5 apples
€18 ⇄ \$18
5 pm ⇄ 5 am
0.5\% ⇄ 50\%
\sin 30 ⇄ \sin 30^\circ
15\mbox{? cm} ⇄ 15""",
    "names and brackets": r"""
y=5 ⇄ x=5
-x=5 ⇄ x=5
3y=2x+3 ⇄ y=2x+3
\alpha=5 ⇄ \beta=5
x=1,y=2 ⇄ y=1,x=2
0 → 5x-7y+11z+4=0
\{1,2\} ⇄ (1,2)
[1,2] ⇄ (1,2)
x>2 ⇄ x\geq2""",
    "times and ratios": r"""
1:10 ⇄ 3:30
1:3 ⇄ 3:9
1:2:3 ⇄ 1:3:2
12:30 ⇄ 1:2
\frac{1}{30} ⇄ 1:30
3:30\text{ a.m.} ⇄ 3:30\text{ p.m.}""",
    "numbers": r"""
0.0000001 ⇄ 0.0000002
0.0000001 ⇄ 0
10^{-7} ⇄ 2\cdot10^{-7}
0.333 ⇄ \frac13
3.14 ⇄ \pi
0.\overline{3} ⇄ 0.3
\frac{1}{2^{98}} ⇄ \frac{1}{2^{99}}
\frac{1}{2004!} ⇄ \frac{1}{2006!}
x+\frac{1}{2^{98}} ⇄ x+\frac{1}{2^{99}}
x=10^{-9} ⇄ x=2\cdot 10^{-9}
\{0.0000001,1\} ⇄ \{0.0000002,1\}
(10^{-9},1) ⇄ (2\cdot 10^{-9},1)
\begin{pmatrix}10^{-8}\\2\end{pmatrix} ⇄ \begin{pmatrix}2\cdot 10^{-8}\\2\end{pmatrix}
2^{100} ⇄ 2^{100}+1
2 2/3 ⇄ \frac43
2 2/3 ⇄ \frac{22}{3}
3 1/4 ⇄ \frac34
2 5 ⇄ 7
2 5 ⇄ 25
12 345 ⇄ 357
5 ⇄ 1/0
١٥ ⇄ 15""",
    "dates, ranges and codes": r"""
2024-05-06 ⇄ 2013
10-15 ⇄ -5
1-0 ⇄ 1
555-1234 ⇄ -679
1/2/2020 ⇄ 1/4040
AC-12 ⇄ CA-12
0x1F ⇄ 0
0b101 ⇄ 0b100
COVID-19 ⇄ COVID-20""",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_right_answers(kind):
    assert misjudged(RIGHT[kind], 1.0) == []


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answers(kind):
    assert misjudged(WRONG[kind], 0.0) == []
    assert misjudged(WRONG[kind], 0.0, "boxed") == []


BOXED = r"""
\tfrac12 ⇄ \frac{1}{2}
\frac1{72} ⇄ \frac{1}{72}
\frac\pi2 ⇄ \frac{\pi}{2}
-1/2 ⇄ -\frac{1}{2}
.5 ⇄ \frac{1}{2}
\sqrt 2 ⇄ \sqrt{2}
15\% ⇄ 15
\$15 ⇄ 15
15 \text{ cm} ⇄ 15
90^{\circ} ⇄ 90
x = 5 ⇄ 5
\left( 1, 2 \right] ⇄ (1,2]
(-\infty, 2] \cup [3, \infty) ⇄ (-\infty,2]\cup[3,\infty)
10,\!080 ⇄ 10,080"""
NOT_BOXED = r"""
0.25 ⇄ \frac{1}{4}
2/4 ⇄ \frac{1}{2}
\{2, 1\} ⇄ \{1,2\}
x+1 ⇄ 1+x
(6+7)+2 ⇄ 15
14=15 ⇄ 15
\leftarrow ⇄ \rightarrow
\sqrt[3]{2} ⇄ \sqrt{2}
{}^{_}\\&# ⇄ 15"""


def test_the_paper_compares_texts():
    assert misjudged(BOXED, 1.0, "boxed") == misjudged(BOXED, 1.0) == []
    assert misjudged(NOT_BOXED, 0.0, "boxed") == []
    assert misjudged(BOXED, 0.0, "exact") == misjudged(NOT_BOXED, 0.0, "exact") == []


@pytest.mark.parametrize("how", ["exact", "boxed", "math-verify"])
def test_what_all_checks_agree_on(how):
    for content in ("15", " 15\n"):
        assert check(content, " 15 ", how) == 1.0
    for content in ("16", "", "   ", "１５", "1⁵", "15, 16", r"\frac{", "0/0", "1" * (LONGEST + 1)):
        assert check(content, "15", how) == 0.0
    assert accuracy([r"\boxed{3}, no: \boxed{5}"], ["5"], how, level=[1]) == [1.0]


# --- What a policy finds: golds with one sign changed, dropped or added ---

GOLDS = r"""
42; -17; 3.25; \frac{5}{8}; -\frac{9}{4}; 2\sqrt{3}; 6 - 5i; \frac{\pi}{6}; 12\pi; 1\frac{3}{4}
(3,-2); (2,\infty); [-4,9); 5, 8, 11; \{2,6\}; 3 \pm \sqrt{2}; x^2 - 3x + 4; (a+5)(b+2); 5r^4; p - q
y = 2x + 3; x = 8; x \in [-2,5]; 4x - 3y = 6; \begin{pmatrix} 2 \\ -5 \end{pmatrix}; \cot x
\frac{11+9a}{20}; 2^{n+1}; \log_2 9; \$32,\!348; \$18.95; 36^\circ; 25\%; 2516_8; 13\text{ cm}
864 \mbox{ feet}^2; \text{Evelyn}; \text{(E)}; \text{even}; 3:45"""


def mutations(golds: list[str]) -> list[tuple[str, str]]:
    """Of each gold, one for each way of being off by a sign."""
    draw, found = random.Random(0), {}
    for gold in golds:
        bare = re.sub(r"\\[a-zA-Z]+(?:\{[a-z]*matrix\})?", lambda m: "~" * len(m[0]), gold)
        new = [f"-{gold}", f"{gold}'", gold + r",\ldots", gold + r" \text{ or } 7"]
        new += [gold + draw.choice("cdghlmost"), f"{gold} {draw.choice('cdghlmost')}"]
        for signs in ("123456789", "cdghlmostxyz", "+-"):
            places = [at for at, sign in enumerate(bare) if sign in signs]
            if places:
                at = draw.choice(places)
                other = draw.choice(signs.replace(gold[at], ""))
                new += [gold[:at] + other + gold[at + 1 :], gold[:at] + gold[at + 1 :]]
                new += [gold[:at] + other + gold[at:]] * (signs != "+-")  # +-5 is -5
        found |= {(text, gold): None for text in new if text.strip()}
    return list(found)


def rewritings(gold: str) -> set[str]:
    spaced = gold if re.search("[0-9],", gold) else re.sub("([-+=<>,])", r" \1 ", gold)
    wide = re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", gold))
    words = re.sub(r"\\(?:text|mbox)\{([^{}]*)\}", r"\1", gold)
    new = {gold, spaced, wide, words, f"${gold}$", f"{gold}.", f"${gold}$.", f"\\!{gold}"}
    return new | {
        re.sub(r"\\d?frac", r"\\dfrac", gold),
        re.sub(r"^([A-Za-z]+)$", r"\\text{\1}", words),
    }


def misread(golds: list[str]) -> list[tuple[str, str]]:
    every = [(text, gold) for gold in golds for text in rewritings(gold)]
    return [pair for pair in every if not check(*pair) == check(*pair, "boxed") == 1.0]


def test_golds_equal_their_rewritings_and_nothing_off_by_a_sign():
    golds = re.split("; |\n", GOLDS.strip())
    assert len(golds) == 40
    assert misread(golds) == []
    assert [pair for pair in mutations(golds) if check(*pair) or check(*pair, "boxed")] == []
    assert [pair for pair in pairwise(golds) if check(*pair)] == []


@pytest.fixture(scope="module")
def math500():
    """The 500 problems: the authors' solutions, gold answers."""
    files = sorted(MATH500.glob("*.parquet"))
    if not files:
        pytest.skip("the MATH-500 files are not beside the repository (../shared/data/math500)")
    import pandas

    table = pandas.concat(map(pandas.read_parquet, files))
    assert len(table) == 500
    return list(table["solution"]), [row["ground_truth"] for row in table["reward_model"]]


@pytest.mark.parametrize("how", ["exact", "boxed", "math-verify"])
def test_solutions_of_math500(math500, how):
    """Of its own problem a solution is right, of the next one wrong."""
    solutions, golds = math500
    assert accuracy(solutions, golds, how) == [1.0] * 500
    assert unusable(golds, how) == {}
    alike = [float(gold == following) for gold, following in pairwise(golds)]
    assert accuracy(solutions[:-1], golds[1:], how) == alike


def test_math500_off_by_a_sign(math500):
    """About 1,800 of them: at most 20 are paid, and of these most are right, as 7 or 7 for 7."""
    golds = list(dict.fromkeys(math500[1]))
    assert misread(golds) == []
    chosen = random.Random(1).sample(mutations(golds), 1800)
    assert len(paid := [pair for pair in chosen if check(*pair)]) <= 20, paid
    assert [pair for pair in chosen if check(*pair, "boxed") and pair not in paid] == []


# --- Limits ---


def test_what_takes_for_ever_is_wrong_after_the_time_limit(monkeypatch):
    monkeypatch.setattr(rewards.accuracy, "TIME_LIMIT", 1)
    for content in ("9^{9^{9^{9}}}", "10^{10^{11}}!", "99999999!", r"\gcd(10^{10^{11}},3)"):
        start = time.process_time()
        assert check(content, "15") == 0.0
        assert time.process_time() - start < 2


def test_threads_and_windows_have_no_alarm(monkeypatch):
    """Answers that no other test uses, so that none comes from a cache."""
    found = []
    pairs = [("31/62", "17/34"), ("31/63", "17/34"), ("19/38", "17/34")]
    thread = threading.Thread(target=lambda: found.extend(check(*pair) for pair in pairs))
    thread.start()
    thread.join()
    assert found == [1.0, 0.0, 1.0]
    monkeypatch.delattr("signal.SIGALRM")
    assert check("29/58", "23/46") == 1.0


# --- Boxes ---


@pytest.mark.parametrize(
    ("text", "last", "tied"),
    [
        (r"\boxed{3} and \boxed{5}", "5", "3,5"),
        (r"$\boxed{3}$, $\boxed{5}$.", "5", "3,5"),
        (r"\boxed{1}, \boxed{2}, and \boxed{ 3 }", " 3 ", "1,2,3"),
        (r"\boxed{3}\text{ or }\boxed{5}", "5", "3,5"),
        (r"First \boxed{1}. Then \boxed{3} or \boxed{5}", "5", "3,5"),
        (r"\boxed{5}, \boxed{5}", "5", "5"),
        (r"\boxed{3}. No: \boxed{5}", "5", "5"),
        (r"\boxed{3}, so \boxed{5}", "5", "5"),
        (r"\boxed{3} \boxed{5}", "5", "5"),
        (r"\boxed{1 \boxed{2}}", "2", "2"),
        (r"\boxed{3} and \boxed{1 \boxed{2}}", "2", "2"),
        (r"\boxed{3} and \boxed{5", None, None),
        (r"\boxed{3 and \boxed{5}", "5", "5"),
        (r"no box, \boxed 5 and \boxedx{5}", None, None),
        (r"\boxed{4} as \boxed asks", "4", "4"),
        (r"\fbox {\frac{1}{2}} }{", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right.", r"\left\{ 1, 2 \right."),
        (r"\boxed{a\\}", r"a\\", r"a\\"),
        (r"\boxed{1\}", None, None),
        (r"\boxed{}", "", ""),
    ],
)
def test_boxes_and_those_tied_together(text, last, tied):
    assert last_boxed(text) == answer_box(text) == last
    assert answer_boxes(text) == tied


def test_two_boxes_answer_a_list_and_hedge_no_single_number():
    texts, golds = [r"\boxed{3} and \boxed{5}"] * 3, ["3,5", r"\{5,3\}", "5"]
    assert accuracy(texts, golds, "math-verify") == [1.0, 1.0, 0.0]
    assert accuracy(texts, golds, "boxed") == [0.0, 0.0, 1.0]


THINKS = r"""
<think> so BOX
\boxed{4} <think> or BOX
<think> a </think> b <think> BOX
<thinking> so BOX
[THINK] so BOX
<|channel|>analysis<|message|>so BOX
<|channel|>analysisso <|channel|>commentary to BOX
BOX ← Q<|assistant|><think>⏎
BOX ← Q⏎<think>⏎Let me
BOX ← 2+3? <think>
BOX ← User: 2+3?⏎Assistant: <thinking> Let me
BOX ← <|im_start|>user⏎2+3?<|im_end|>⏎<|im_start|>assistant⏎<think>⏎Let me
BOX ← [INST]2+3?[/INST] [THINK]
BOX ← <|start|>assistant<|channel|>analysis<|message|>Let me
BOX ← <start_of_turn>user⏎2+3?<end_of_turn>⏎<start_of_turn>model⏎<think>Hm"""
ANSWERS = r"""
<think> \boxed{4} </think> so BOX
<thinking> hm </thinking> so BOX
[THINK] hm [/THINK] so BOX
<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>BOX
hm </think> so BOX ← Q<|assistant|><think>⏎
hm </think> so BOX ← Q⏎<think>⏎Let me
BOX ← Q: what does <think> mean?
BOX ← Reason between <think> and </think>. 2+3?
BOX ← You are a helpful assistant with <think> tags.⏎User: 2+3?⏎Assistant:
BOX ← <|im_start|>user⏎What is⏎<think>⏎in a prompt?<|im_end|>⏎<|im_start|>assistant⏎
BOX ← <|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎
BOX ← <|im_start|>assistant⏎<think>⏎I know.</think> So
BOX ← [INST]What is [THINK]?[/INST]
BOX ← <|start|>assistant<|channel|>final<|message|>"""


@pytest.mark.parametrize(("table", "paid"), [(THINKS, 0.0), (ANSWERS, 1.0)])
def test_a_thought_that_is_open_earns_nothing_whoever_opened_it(table, paid):
    for line in table.strip().splitlines():
        completion, _, prompt = line.replace("⏎", "\n").partition(" ← ")
        completion = completion.replace("BOX", r"\boxed{5}")
        for how in ("exact", "boxed", "math-verify"):
            assert accuracy([completion], ["5"], how, prompts=[prompt]) == [paid], line
        assert clarity(["1. a\n2. b\n" + completion], prompts=[prompt]) == [paid], line


def test_tokens_that_decoding_keeps():
    for tag in ("<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]"):
        assert THOUGHT_TAG.fullmatch(tag)
    assert THOUGHT_TAG.fullmatch("<|channel|>")
    assert not any(map(THOUGHT_TAG.fullmatch, ["<|im_end|>", "think", "<|message|>", "", "</s>"]))


# --- References ---


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("He sold 500 + 503 = 1003 of 4.\n#### 1,003", "1003"),
        ("#### -1,234,567.5 ", "-1234567.5"),
        ("#### (1,003)", "(1,003)"),
        ("It is 5.\n#### \\boxed{5}", "5"),
        ("#### Step 1\nAdd.\n#### Step 2\nSo \\boxed{7}.", "7"),
        (r"The answer is \boxed 5.", "5"),
        (r"The answer is $\boxed 3.5$", "3.5"),
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
        (0.00001, "0.00001"),
        (-2.5e-7, "-0.00000025"),
        *[(cell, None) for cell in ("So \\boxed{}", "\\boxed{ }", "It is 5.\n#### ", "", " ")],
        *[(cell, None) for cell in (1e25, float("inf"), ["3", "4"], '["3", "4"]', [], None)],
        (float("nan"), None),
    ],
)
def test_the_reference_in_a_cell(cell, gold):
    assert reference(cell) == gold
    assert gold is None or check(gold, gold) == check(gold, gold, "exact") == 1.0


def test_unusable_golds_are_listed():
    prose, long = "word " * 13, "1" * (LONGEST + 1)
    golds = ["5", "?!", "15)", r"\frac{1", long, "12:00", prose, "5", "1/0", "x² + 1"]
    listed = unusable(golds, "math-verify")
    assert list(listed) == ["?!", "15)", r"\frac{1", long, prose]
    assert "a worked solution must end in ####" in listed[prose]
    assert list(unusable(golds, "boxed")) == list(unusable(golds, "exact")) == [long]


def test_a_missing_package_is_no_wrong_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify.errors", None)
    with pytest.raises(ImportError, match="math_verify"):
        check("47", "48")
