"""GDPO's normalisation by loops over prompts and tokens, and the batches that a run keeps in its
statistics.jsonl."""

import json
from pathlib import Path

import numpy as np


def normalised(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Each objective's rewards [B, K], centred and scaled within their prompt."""
    out = np.zeros_like(rewards)
    for start in range(0, len(rewards), group_size):
        for k in range(rewards.shape[1]):
            own = rewards[start : start + group_size, k]
            out[start : start + group_size, k] = (own - own.mean()) / (own.std(ddof=1) + 1e-6)
    return out


def whitened(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[B], every token counted once."""
    tokens = np.repeat(scores, lengths)
    return (scores - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)


def batches(run: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rewards [B, K], lengths [B], advantages [B]) of each step."""
    lines = [json.loads(line) for line in (run / "statistics.jsonl").read_text().splitlines()]
    return [
        (
            np.array(line["rewards"], dtype=float),
            np.array(line["lengths"]),
            np.array(line["advantages"]),
        )
        for line in lines
    ]
