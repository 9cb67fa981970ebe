r"""Accuracy: is the answer in the last \boxed{} right?"""

import functools
import re
import signal
import threading

from common.errors import UserError

MAX_ANSWER_LENGTH = 300  # characters; the longest answer of MATH-500 has 53, and parsing time grows fast with length
TIME_LIMIT = 3  # seconds for one parse or one comparison; true answers take milliseconds, 9^{9^9} would take for ever

_BOX = re.compile(r"\\(?:boxed|fbox)\s*+\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, as in \left\{, is ink and opens nothing

# One macro argument without its braces, as in \frac12 or \sqrt\pi.
_BARE = r"(\\[a-zA-Z]+|[0-9a-zA-Z])"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\n|\\!|\\\$|\\?%|\^\{?\\circ\}?|\\(?:left|right)(?![a-zA-Z])", ""),  # how it looks, not what it is
        (r"\\\\", r"\\"),
        (r"\\[dt]frac", r"\\frac"),
        (r"(?<=\S)\s*+\\text\{ .*", ""),  # a unit behind the value
        (r"(^|[ {])\.", r"\g<1>0."),
        (r"^[^=]{0,2}=([^=]*)$", r"\1"),  # x=5
        (rf"\\(frac|sqrt)\s*+{_BARE}", r"\\\1{\2}"),
        (rf"(\\frac\{{[^{{}}]*+\}})\s*+{_BARE}", r"\1{\2}"),
        (r"\s", ""),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(-?)([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
    )
]


def accuracy(completions: list[str], answer: list[str], answer_check: str = "exact", **kwargs) -> list[float]:
    r"""Reward completions whose last box holds the right answer.

    Args:
        completions: `B` texts.
        answer: `B` gold answers, as they would stand inside the box.
        answer_check: how the two are compared.
            `exact`: the same characters, but for white space at the ends. For the arithmetic testbed.
            `boxed`: the same characters after `normalize_answer`. What the paper does.
            `math-verify`: `boxed`, or the same mathematical object by the library of that name. One parse or comparison
            may take `TIME_LIMIT` seconds; in any thread but the main one, and on Windows, it has no limit.
        **kwargs: whatever else the caller passes by keyword; not used.

    Returns:
        `B` floats, 1.0 or 0.0. No complete box, a blank one, one longer than `MAX_ANSWER_LENGTH` characters and one that cannot be
        parsed are wrong.

    Raises:
        UserError: an unknown `answer_check`; math-verify is not installed; a gold answer that is not a string, is blank or too long,
            or that math-verify cannot parse or does not find equal to itself, since it would make every completion wrong.

    Source: arXiv 2602.06869, section 5.1, and the authors' `multiobjective_math/accuracy.py` (`boxed`).
    """
    if answer_check not in _CHECKS:
        raise UserError(f"--answer-check {answer_check!r} does not exist: choose one of {', '.join(_CHECKS)}")
    for gold in answer:
        if not isinstance(gold, str) or not 0 < len(gold.strip()) <= MAX_ANSWER_LENGTH:
            raise UserError(
                f"the gold answer {gold!r:.80} in the dataset column 'answer' must be a string of 1 to {MAX_ANSWER_LENGTH} characters"
            )
    check = _CHECKS[answer_check]
    rewards = []
    for text, gold in zip(completions, answer, strict=True):
        content = (last_boxed(text) or "").strip()
        rewards.append(float(check(content, gold.strip())))
    return rewards


def last_boxed(text: str) -> str | None:
    r"""Return what stands inside the box that opens last, in time linear in the text.

    A box is `\boxed{...}` or `\fbox{...}`. Nested braces belong to it, escaped ones (`\{`) are not counted, and of nested boxes the
    inner one opens last. `None` if there is no box or the last one never closes: a completion cut off in its answer has not
    answered, whatever it boxed before. `\boxed 5`, without braces, is no box.
    """
    start = None
    for opening in _BOX.finditer(text):
        start = opening.end()
    if start is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def normalize_answer(answer: str) -> str:
    r"""Write an answer in one of the ways it can be written: `\dfrac12`, `1/2`, `0.5` and `x = .5` all become `\frac{1}{2}`.

    Drops white space, `\left` and `\right`, degree, dollar and percent signs and a unit in `\text{ ...}` behind the value. After
    the rules of Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset" (2021), which the paper uses.
    """
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer


def _exact(content: str, gold: str) -> bool:
    return content == gold


def _boxed(content: str, gold: str) -> bool:
    return 0 < len(content) <= MAX_ANSWER_LENGTH and normalize_answer(content) == normalize_answer(gold)


@functools.lru_cache(maxsize=16384)  # the completions of one prompt mostly agree on a few answers
def _math_verify(content: str, gold: str) -> bool:
    expression = _gold_expression(gold)
    if not 0 < len(content) <= MAX_ANSWER_LENGTH:
        return False
    if _boxed(content, gold):  # also what the parser does not know, such as \frac\pi2
        return True
    from math_verify import parse, verify

    limit = _time_limit()
    # Inside these two calls an error or a timeout counts as "not equal", which is right for a completion and for nothing else.
    return verify(expression, parse(f"\\boxed{{{content}}}", parsing_timeout=limit), timeout_seconds=limit)


@functools.lru_cache(maxsize=16384)
def _gold_expression(gold: str) -> list:
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise UserError(f"--answer-check math-verify cannot import the library ({error}): pip install math-verify") from error

    limit = _time_limit()
    try:
        expression = parse(f"\\boxed{{{gold}}}", parsing_timeout=limit, raise_on_error=True)
        # A list of nothing but the string itself means that parsing failed: only a letter-for-letter copy would ever be right.
        parsed = any(not isinstance(part, str) for part in expression)
        usable = parsed and verify(expression, expression, timeout_seconds=limit, raise_on_error=True)
        reason = "it does not equal itself" if parsed else "it is not mathematics to the parser"
    except (Exception, TimeoutException) as error:  # a TimeoutException is no Exception
        usable, reason = False, type(error).__name__
    if not usable:
        raise UserError(
            f"--answer-check math-verify cannot use the gold answer {gold!r} ({reason}): "
            "correct it in the dataset or choose --answer-check boxed"
        )
    return expression


def _time_limit() -> int | None:
    # The library's time limit is a SIGALRM, which only the main thread can set and which Windows does not have.
    in_main_thread = threading.current_thread() is threading.main_thread()
    return TIME_LIMIT if in_main_thread and hasattr(signal, "SIGALRM") else None


_CHECKS = {"exact": _exact, "boxed": _boxed, "math-verify": _math_verify}
