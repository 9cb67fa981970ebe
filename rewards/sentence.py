r"""Sentence: does the completion answer in words?"""

import re

WORDS = 4  # `Kim has 9 cups.` has three beside its number, `Kim has 9 cups now.` four

_BOX = re.compile(r"\\boxed\s*\{[^{}]*(?:\}|\Z)")  # the last may be cut off
_WORD = re.compile(r"[^\W\d_]{2,}")


def sentence(completions: list[str], **kwargs) -> list[float]:
    r"""Reward completions with at least four different words outside of boxes, right or wrong,
    whole sentence or not.

    Args:
        completions: `B` texts.
        **kwargs: whatever else the caller passes by keyword.

    Returns:
        `B` floats, 1.0 or 0.0. A word has two letters or more of any script; capitals are small
        letters, so `So, so so so` is one word. Neither what stands in a box nor the name of the
        command counts.

    Source: ours, for docs/realmodel.md. Known hack: a completion that repeats the question is one.
    """
    return [
        float(len(set(_WORD.findall(outside_boxes(text).lower()))) >= WORDS) for text in completions
    ]


def outside_boxes(text: str) -> str:
    r"""The text without its \boxed{...}, of which one may be cut off at the end."""
    return _BOX.sub(" ", text)
