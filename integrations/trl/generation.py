"""What a method sees: the completions of one generation, of all processes. Some may lack a reward: NaN, TRL's sign of a reward function
that returned None. An objective is then judged by the completions that have it, with the script's own functions on these."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Generation:
    """B completions of which a prompt's `group_size` stand in adjacent rows, K objectives. On the CPU, in float64."""

    rewards: Tensor  # [B, K], NaN where a reward does not apply
    lengths: Tensor  # [B] tokens that the loss counts, 0 for a completion that it leaves out
    group_size: int

    @property
    def missing(self) -> Tensor:
        """Where a reward does not apply, bool [B, K]."""
        return self.rewards.isnan()

    def estimate(self, script: ModuleType, scores: Tensor, estimator: str) -> Tensor:
        """The script's `estimate_advantages` over the completions that have a score. scores [B] -> [B], NaN where the score is NaN.

        A prompt with a single score has nothing to compare it with: its advantage is 0.
        """
        have = ~scores.isnan()
        if have.all():
            return script.estimate_advantages(scores, self.lengths, self.group_size, estimator)
        advantages = torch.full_like(scores, torch.nan)
        if estimator == "reinforce":
            advantages[have] = script.estimate_advantages(scores[have], self.lengths[have], self.group_size, estimator)
            return advantages
        for rows in have.nonzero().flatten().split(have.view(-1, self.group_size).sum(1).tolist()):
            several = len(rows) > 1
            advantages[rows] = script.estimate_advantages(scores[rows], self.lengths[rows], len(rows), estimator) if several else 0.0
        return advantages

    def estimate_each(self, script: ModuleType) -> Tensor:
        """The advantages of every objective by itself, normalised within prompts. -> [B, K], NaN where the reward does not apply."""
        return torch.stack([self.estimate(script, column, "grpo") for column in self.rewards.T], 1)

    def over_prompts(self, statistic: Callable[[Tensor, Tensor, int], Tensor], of: Tensor) -> Tensor:
        """statistic(of [n], rewards [n, K], group_size) -> [K], a mean over prompts, from the completions that have the reward. of [B].

        NaN for an objective that no prompt has twice.
        """
        if not self.missing.any():
            return statistic(of, self.rewards, self.group_size)
        found = torch.full_like(self.rewards[0], torch.nan)
        groups = of.view(-1, self.group_size)
        for k, column in enumerate(self.rewards.T):
            have = [~reward.isnan() for reward in column.view(-1, self.group_size)]
            pairs = zip(groups, column.view(-1, self.group_size), have, strict=True)
            each = [statistic(own[rows], reward[rows, None], int(rows.sum())) for own, reward, rows in pairs if rows.sum() > 1]
            if each:
                found[k] = torch.cat(each).mean()
        return found

    def mean_rewards(self) -> Tensor:
        """[K], NaN for an objective that no completion has."""
        return self.rewards.nanmean(0) if self.missing.any() else self.rewards.mean(0)
