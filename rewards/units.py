r"""Units: does the completion say of what it gives a number?"""

import re

from rewards.answers import outside_boxes


def units(completions: list[str], unit: list[str], **kwargs) -> list[float]:
    r"""Reward completions that name what is counted: `9 apples`, right or wrong, not the bare `9`.

    Args:
        completions: `B` texts.
        unit: `B` nouns, such as "apples", a column of the dataset.
        **kwargs: whatever else the caller passes by keyword; of it `prompts` says whether the
        completion begins inside a thought.

    Returns:
        `B` floats, 1.0 where the noun stands outside of every box as a word of its own, 0.0
        elsewhere. A plural in s and its singular are the same, and so are capitals and small
        letters: `Apple` names apples, `pencil` does not name pens. A box holds the answer, which
        would be wrong with a noun in it for --answer-check exact; so it neither helps nor hurts
        here. A completion that still thinks at its end names nothing.

    Source: ours, for docs/realmodel.md. Known hack: a completion that repeats the question names it
    as well.
    """
    singulars = [noun.strip().lower().removesuffix("s") for noun in unit]
    texts = map(outside_boxes, completions, kwargs.get("prompts") or [""] * len(completions))
    return [
        float(bool(re.search(rf"\b{re.escape(noun)}s?\b", text.lower())))
        for noun, text in zip(singulars, texts, strict=True)
    ]
