"""What the adapter knows of a GRPOTrainer, giving batches that are made up: TRL is not needed."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import Tensor

from integrations.trl.trainer import _Session

TEXT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Trainer:
    """One process, groups of 4, two micro-batches and updates per generation."""

    num_generations, num_iterations, epsilon_low, epsilon_high = 4, 1, 0.2, 0.2
    model = SimpleNamespace(training=True)
    accelerator = SimpleNamespace(device="cpu", process_index=0, gather=torch.clone)
    args = SimpleNamespace(steps_per_generation=2, per_device_train_batch_size=8)

    def __init__(self, method, objectives="abc") -> None:
        self.reward_func_names, self.reward_weights = objectives, torch.ones(len(objectives))
        self._metrics = {"train": defaultdict(list)}
        self.session = _Session(self, method)

    def _calculate_rewards(self):
        return self.rewards

    def _generate_and_score_completions(self, inputs):
        self._calculate_rewards()
        return inputs

    def _compute_loss(self, model, inputs):
        self._get_per_token_logps_and_entropies()

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self.logps, None

    def step(self, rewards: Tensor, mask: Tensor, advantages=None, moved=None, rows=()) -> Tensor:
        """One generation and its updates. rewards [B,K]; mask [B,T] of the tokens; advantages [B]
        that TRL gives; moved [B,T]: log-probabilities after the updates, from 0; rows: of each
        micro-batch. Returns the advantages [B] that are trained on."""
        self.rewards, self.logps = rewards, moved
        given = rewards.nansum(1) if advantages is None else advantages
        out = dict.fromkeys(TEXT, mask)
        out |= {"advantages": given, "old_per_token_logps": torch.zeros_like(mask)}
        out = self._generate_and_score_completions(out)
        for micro in rows:
            self.logps = moved[micro]
            self._compute_loss(None, {name: value[micro] for name, value in out.items()})
            self.logps = moved
            self.session.stepped()
        return out["advantages"]
