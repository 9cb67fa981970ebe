"""Conciseness: is the completion shorter than completions have been so far?"""


def conciseness(completion_ids: list[list[int]], mean_length: float, **kwargs) -> list[float]:
    """Reward completions that are strictly shorter than the running mean length.

    Args:
        completion_ids: `B` token lists. The end-of-sequence token counts, padding does not belong in them.
        mean_length: mean length in tokens of all training completions *before* this batch. The first batch has no past and uses
            its own mean; evaluation uses one fixed yardstick, so that two evaluations can be compared.
        **kwargs: whatever else the caller passes by keyword; not used.

    Returns:
        `B` floats, 1.0 if `len(ids) < mean_length` else 0.0. At `mean_length` itself the reward is 0.0.

    Source: arXiv 2602.06869, section 5, and the authors' `multiobjective_math/conciseness.py`. Their mean already contains the
    batch being scored, against the comment beside it; ours does not, so a completion cannot move its own threshold.
    """
    return [float(len(ids) < mean_length) for ids in completion_ids]
