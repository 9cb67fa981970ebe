"""Clarity: does the completion walk through steps to a boxed answer?"""

import re

from rewards.accuracy import last_boxed

# Line starts are anchored and every repetition is possessive, so a failed match never retries: the scan is linear in the text.
_ENUMERATOR = re.compile(
    r"""
      ^[ \t>#*_•-]*+ (?:step[ \t]++)? \(? (?: [0-9]++ | [ivx]{1,5}+ | [a-z] )  # 1, Step 2, (b or iv, maybe bold, behind a bullet ...
      [).:-] (?=[\s*_]|\Z)                                                      # ... closed: so neither 3.14 nor 9-3 nor f(x)
    | ^[ \t]*+ [-*•] (?=[ \t])
    | \bstep [ \t]++ (?: [0-9]++ | [ivx]{1,5}+ | [a-z] ) [).:-]
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_ORDINAL = re.compile(r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b", re.IGNORECASE)


def clarity(completions: list[str], **kwargs) -> list[float]:
    """Reward completions that show their steps and box an answer, right or wrong.

    A completion is clear if its last box is not blank (see `rewards.accuracy.last_boxed`) and it has at least two enumerators or
    at least two ordinal words. Upper and lower case are the same.

    An enumerator is, at the start of a line, a bullet (`-`, `*`, `•`) or a number, a letter or a Roman numeral closed by one
    of `) . : -` and followed by white space (`1. `, `(b) `, `**iv)** `); or, anywhere, `Step 1:` and its like. So `3.14`, `9-3=6`,
    `6 - 2`, `f(x)` and a sentence that ends in `x.` are none. An ordinal word is one of first ... tenth, next, then.

    Args:
        completions: `B` texts.
        **kwargs: whatever else the caller passes by keyword; not used.

    Returns:
        `B` floats, 1.0 or 0.0.

    Source: arXiv 2602.06869, section 5.1, and the authors' `multiobjective_math/clarity.py`. Their enumerators may stand anywhere
    and need no space behind them, so that any two of the examples above pass for steps; docs/rewards.md has the list.
    """
    return [float(_has_answer(text) and (_has_two(_ENUMERATOR, text) or _has_two(_ORDINAL, text))) for text in completions]


def _has_answer(text: str) -> bool:
    return bool((last_boxed(text) or "").strip())


def _has_two(pattern: re.Pattern[str], text: str) -> bool:
    return len(pattern.findall(text)) >= 2
