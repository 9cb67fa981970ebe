r"""Sentence: does the completion answer in words?"""

import re

from rewards.answers import outside_boxes

WORDS = 4  # `Kim has 9 cups.` has three beside its number, `Kim has 9 cups now.` four

_WORD = re.compile(r"[^\W\d_]{2,}")


def sentence(completions: list[str], **kwargs) -> list[float]:
    r"""Reward completions with at least four different words outside of boxes, right or wrong,
    whole sentence or not.

    Args:
        completions: `B` texts.
        **kwargs: whatever else the caller passes by keyword; of it `prompts` says whether the
        completion begins inside a thought.

    Returns:
        `B` floats, 1.0 or 0.0. A word has two letters or more of any script; capitals are small
        letters, so `So, so so so` is one word. Neither what stands in a box nor the name of the
        command counts, and nothing in a completion that still thinks at its end.

    Source: ours, for docs/realmodel.md. Known hack: a completion that repeats the question is one.
    """
    texts = map(outside_boxes, completions, kwargs.get("prompts") or [""] * len(completions))
    return [float(len(set(_WORD.findall(text.lower()))) >= WORDS) for text in texts]
