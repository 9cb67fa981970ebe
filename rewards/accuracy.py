r"""Accuracy: is the answer in the last \boxed{} right?"""

import functools
import re
import signal
import string
import threading
from collections.abc import Iterable

from common.errors import UserError
from rewards import gym
from rewards.answers import (
    MAX_ANSWER_LENGTH,
    answer_box,
    answer_boxes,
    is_prose,
    is_readable,
    normalize_answer,
    plain,
    tidy,
    words,
)

TIME_LIMIT = 3  # seconds for one parse or one comparison; true answers take milliseconds, 9^{9^9} would take for ever
ROUNDED = 5e-6  # relative difference of two numbers one of which is a decimal: 0.333333 is 1/3, and 0.0000001 is not 0.0000002

_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|-?\\[dt]?frac\{[0-9]+\}\{[1-9][0-9]*\}")  # of which no parser need be asked
_CLOCK = re.compile(r"[0-9]:[0-9]{2}(?![0-9])")
_LABEL = re.compile(r"[0-9]+(?:-[0-9]+){1,2}|[0-9]+/[0-9]+/[0-9]+|0[xXbB][0-9a-fA-F]+|[A-Z]{2,}-[0-9]+")  # a date, range, score, code
_MERIDIEM = re.compile(r"(?<=[0-9])([ap])\.?m\.?$")
_NAMED = re.compile(r"^\s*([a-z]|\\[a-z]+)\s*=(?=[^=]*$)")  # one equation, not a system
_BASE = re.compile(r"[0-9]_\{?([0-9]+)")
_CURLY, _ROUND = re.compile(r"\\\{[^{}()\[\]]*,[^{}()\[\]]*\\\}"), re.compile(r"\([^{}()\[\]]*,[^{}()\[\]]*\)")


def accuracy(completions: list[str], answer: list[str], answer_check: str = "exact", **kwargs) -> list[float]:
    r"""Reward completions whose last box holds the right answer.

    Args:
        completions: `B` texts.
        answer: `B` gold answers, as they would stand inside the box.
        answer_check: how the two are compared.
            `exact`: the same characters, but for white space at the ends. For the arithmetic testbed.
            `boxed`: the same characters after `tidy` and `normalize_answer`. What the paper does.
            `math-verify`: `boxed`, or the same mathematical object by the library of that name, or the same bare text where a word, a
            time of day or what the library cannot parse is compared. One parse or comparison may take `TIME_LIMIT` seconds; in any
            thread but the main one, and on Windows, it has no limit.
            `reasoning-gym`: by the task's own scorer (`rewards.gym`), which gets the dataset column `entry`; in the same time.
        **kwargs: whatever else the caller passes by keyword; of it `prompts` says whether the completion begins inside `<think>`, and
            `entry` has the `B` problems of reasoning-gym.

    Returns:
        `B` floats, 1.0 or 0.0, and with `reasoning-gym` what the scorer gives. No complete box, a blank one, one in a `<think>` that
        never ends, one longer than `MAX_ANSWER_LENGTH` characters (but with `reasoning-gym`) and one that cannot be parsed are wrong.

    Raises:
        UserError: an unknown `answer_check`; math-verify or reasoning-gym is not installed; no column `entry`; a gold answer that
            `unusable` would list.

    Source: arXiv 2602.06869, section 5.1, and the authors' `multiobjective_math/accuracy.py` (`boxed`).
    """
    if answer_check not in _CHECKS:
        raise UserError(f"--answer-check {answer_check!r} does not exist: choose one of {', '.join(_CHECKS)}")
    by_entry = answer_check == gym.NAME
    if by_entry and "entry" not in kwargs:
        raise UserError(f"--answer-check {answer_check} wants the dataset column 'entry', as --dataset {gym.NAME}:TASK has it")
    for gold in () if by_entry else answer:
        if reason := _malformed(gold):
            raise UserError(f"the gold answer {gold!r:.80} in the dataset column 'answer' {reason}")
    check, box = _CHECKS[answer_check], answer_boxes if answer_check == "math-verify" else answer_box
    prompts = kwargs.get("prompts") or [""] * len(completions)
    rewards = []
    for text, gold, prompt in zip(completions, kwargs["entry"] if by_entry else answer, prompts, strict=True):
        content = (box(text, prompt) or "").strip()
        rewards.append(float(check(content, gold.strip())))
    return rewards


def unusable(golds: Iterable[str], answer_check: str) -> dict[str, str]:
    """Those of the gold answers that no completion could match under this check, each with the reason. A gold answer is looked at once.
    With `reasoning-gym` they are entries: of those that have an answer, the ones whose own scorer does not give it 1.0 in a box."""
    distinct = dict.fromkeys(golds)
    if answer_check == gym.NAME:
        own = {entry: answer for entry in distinct if (answer := gym.oracle(entry)) is not None}
        judged = accuracy([f"\\boxed{{{answer}}}" for answer in own.values()], [""] * len(own), answer_check, entry=list(own))
        return {entry: f"its own scorer gives it {score:g}" for entry, score in zip(own, judged, strict=True) if score != 1}
    found = {gold: reason for gold in distinct if (reason := _malformed(gold))}
    if answer_check != "math-verify":
        return found
    from tqdm import tqdm

    to_parse = [gold for gold in distinct if gold not in found and not _PLAIN_NUMBER.fullmatch(gold.strip())]
    for gold in tqdm(to_parse, "reading reference answers", disable=None, leave=False, delay=2):  # a bar only on a terminal
        try:
            _gold_expression(gold.strip())
        except _Unusable as error:
            found[gold] = str(error)
    return found


def _reasoning_gym(content: str, entry: str) -> float:
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    score, limit = gym.scorer(entry), _time_limit()
    try:
        return (timeout(limit)(score) if limit else score)(content)
    except TimeoutException:  # some scorers compute what they are told, such as 9**9**9
        return 0.0


class _Unusable(Exception):
    """Why no completion could match a gold answer."""


def _malformed(gold: object) -> str:
    usable = isinstance(gold, str) and 0 < len(gold.strip()) <= MAX_ANSWER_LENGTH
    return "" if usable else f"must be a string of 1 to {MAX_ANSWER_LENGTH} characters"


def _exact(content: str, gold: str) -> bool:
    return content == gold


def _boxed(content: str, gold: str) -> bool:
    if not 0 < len(content) <= MAX_ANSWER_LENGTH:
        return False
    content, gold = tidy(content), tidy(gold)
    return normalize_answer(content) == normalize_answer(gold) and not _contradicts(content, gold)


@functools.lru_cache(maxsize=16384)  # the completions of one prompt mostly agree on a few answers
def _math_verify(content: str, gold: str) -> bool:
    try:
        expression = _gold_expression(gold)
    except _Unusable as reason:
        raise UserError(
            f"--answer-check math-verify cannot use the gold answer {gold!r} ({reason}): "
            "correct it in the dataset, choose --answer-check boxed, or drop such rows"
        ) from reason
    if not 0 < len(content) <= MAX_ANSWER_LENGTH:
        return False
    if _CLOCK.search(gold) or _CLOCK.search(content):
        return _same_time(content, gold)
    if expression is None:
        return plain(content) == plain(gold) or _boxed(content, gold)
    if _boxed(content, gold):  # also what the parser does not know, such as \frac\pi2
        return True
    content, gold = tidy(content), tidy(gold)
    if _contradicts(content, gold) or _is_text(content):
        return False
    if (named := words(gold)) and (said := words(content)):  # else letters would be factors, and `silent` a product equal to `listen`
        return named == said
    if ":" in gold and ":" in content and "{" not in gold:  # a ratio part by part; the library would divide
        parts, said = gold.split(":"), content.split(":")
        return len(parts) == len(said) and all(map(_boxed, said, parts))
    if _has_both_cases(content) or _has_both_cases(gold):  # the parser knows no capitals
        content, gold = _without_capitals(content, gold)
        expression = _parse(gold)
    from math_verify import verify
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    limit = _time_limit()
    near = timeout(limit)(_near) if limit else _near
    said = _parse(content)
    # Inside this call an error or a timeout counts as "not equal", which is right for a completion and for nothing else.
    if not verify(expression, said, timeout_seconds=limit):
        return False
    if "%" in gold + content:  # 9 is accepted for 9%
        return True
    try:
        return near(expression[0], said[0])
    except TimeoutException:
        return False
    except Exception:  # numbers that cannot be put in order, infinities for instance: what the library says stands
        return True


@functools.lru_cache(maxsize=16384)
def _gold_expression(gold: str) -> list | None:
    """What the library makes of a gold answer; None where it is compared as text. Raises _Unusable."""
    try:
        from math_verify import verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise UserError(f"--answer-check math-verify cannot import the library ({error}): pip install math-verify") from error

    text = tidy(gold)
    if not (_is_text(text) or _CLOCK.search(text) or _LABEL.fullmatch(text)):
        try:
            expression = _parse(text, raise_on_error=True)
        except (Exception, TimeoutException) as error:  # a TimeoutException is no Exception
            raise _Unusable(type(error).__name__) from error
        # A list of nothing but the string itself means that parsing failed.
        if any(not isinstance(part, str) for part in expression):
            try:
                if verify(expression, expression, timeout_seconds=_time_limit(), raise_on_error=True):
                    return expression
            except Exception:  # 1/0, which does not equal itself: a text
                pass
            except TimeoutException as error:
                raise _Unusable(type(error).__name__) from error
    if not is_readable(gold):
        raise _Unusable("neither mathematics to the parser nor a short text; a worked solution must end in #### or a box")
    return None


def _parse(text: str, raise_on_error: bool = False) -> list:
    from math_verify import LatexExtractionConfig, parse

    # The whole box or nothing: the library's other way takes the last number out of any sentence.
    config = [LatexExtractionConfig()]
    return parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=_time_limit(), raise_on_error=raise_on_error)


def _time_limit() -> int | None:
    # The library's time limit is a SIGALRM, which only the main thread can set and which Windows does not have.
    in_main_thread = threading.current_thread() is threading.main_thread()
    return TIME_LIMIT if in_main_thread and hasattr(signal, "SIGALRM") else None


def _is_text(answer: str) -> bool:
    return is_prose(answer) or bool(re.search(r"[0-9]\s+[0-9]", answer))  # the parser adds the numbers in `2 5`


def _same_time(content: str, gold: str) -> bool:
    """Times of day, and ratios that look like one: digit by digit, but for leading zeros and an `a.m.` or `p.m.` that only one has."""
    said, meant = (plain(text) for text in (content, gold))
    if _other(_MERIDIEM, said, meant):
        return False
    return _MERIDIEM.sub("", said).lstrip("0") == _MERIDIEM.sub("", meant).lstrip("0")


def _contradicts(content: str, gold: str) -> bool:
    """Do both say what the comparison overlooks, and something else: the name in `x=5`, the base in `25_8`, a.m., the kind of brackets?"""
    if _other(_NAMED, content, gold) or _other(_BASE, content, gold) or _other(_MERIDIEM, plain(content), plain(gold)):
        return True
    bare = (re.sub(r"\\(?:left|right)(?![a-z])", "", text) for text in (content, gold))
    (said_curly, said_round), (is_curly, is_round) = ((bool(_CURLY.search(text)), bool(_ROUND.search(text))) for text in bare)
    return (said_curly and is_round and not is_curly) or (said_round and is_curly and not said_curly)


def _other(pattern: re.Pattern[str], content: str, gold: str) -> bool:
    said, meant = pattern.findall(content.lower()), pattern.findall(gold.lower())
    return bool(said and meant and said != meant)


def _has_both_cases(answer: str) -> bool:
    letters = set(re.sub(r"\\[a-zA-Z]+", "", answer))
    return any(letter.upper() in letters for letter in letters if letter.islower())


def _without_capitals(*answers: str) -> list[str]:
    """The answers with another letter for each capital, the same in all."""
    used = set("".join(answers).lower()) | set("eidlo")  # some of which have a meaning
    free = iter(sorted(set(string.ascii_lowercase) - used))
    names = {capital: next(free, capital) for capital in sorted({c for c in "".join(answers) if c in string.ascii_uppercase})}
    return [re.sub(r"\\[a-zA-Z]+|[A-Z]", lambda found: names.get(found[0], found[0]), answer) for answer in answers]


def _near(gold: object, said: object) -> bool:
    """Are the numbers in two expressions that the library calls equal nearly so in proportion too? It rounds to six decimals and takes
    what is below 1e-15 for 0. Numbers in other places, as in x + 1/2^99, must be equal exactly."""
    import sympy

    ours, theirs = (_numbers(expression) for expression in (gold, said))
    if ours and len(ours) == len(theirs):
        for pair in zip(ours, theirs, strict=True):
            if pair[0] == pair[1]:  # infinities too, which have no difference
                continue
            a, b = (sympy.N(number, 30) for number in pair)
            decimal = any(number.has(sympy.Float) for number in pair)
            if abs(a - b) > (ROUNDED if decimal else 1e-12) * max(abs(a), abs(b)) and sympy.simplify(pair[0] - pair[1]) != 0:
                return False
        return True
    small = [e for part in (gold, said) for e in sympy.preorder_traversal(part) if e.is_Number or (e.is_Pow and e.is_number)]
    if isinstance(gold, sympy.Expr) and isinstance(said, sympy.Expr) and any(0 < abs(sympy.N(number)) < 1e-9 for number in small):
        return sympy.simplify(gold - said) == 0
    return True


def _numbers(expression: object) -> list:
    """The numbers that an expression is, or that are the members of its sets, tuples, intervals and equations, in order of size."""
    import sympy
    from sympy.logic.boolalg import Boolean

    if isinstance(expression, sympy.Expr):
        found = [expression] if expression.is_number else []
    elif isinstance(expression, sympy.MatrixBase):
        found = [number for entry in expression for number in _numbers(entry)]
    elif isinstance(expression, sympy.Set | sympy.Tuple | Boolean):
        found = [number for part in expression.args for number in _numbers(part)]
    else:
        found = []
    return sorted(found, key=lambda number: tuple(float(part) for part in sympy.N(number).as_real_imag()))


_CHECKS = {"exact": _exact, "boxed": _boxed, "math-verify": _math_verify, gym.NAME: _reasoning_gym}
