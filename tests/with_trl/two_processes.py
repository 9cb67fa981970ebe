"""One of one or two processes that train as one: torchrun --nproc_per_node N two_processes.py OUT METHOD ...

Completions are made up from the prompt and the place in its group, so that one process has the same as two. Writes what each process knows
at the end. PYTHONPATH has the root and this folder.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch
from tiny import G, even, make, third

import integrations.trl


def made_up(ids: torch.Tensor, place: int) -> list[int]:
    draw = random.Random(repr((ids.tolist(), place)))
    return [draw.randrange(3, 72) for _ in range(8)]


def generate(*args, **kwargs):
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    return torch.cat([ids, torch.tensor([made_up(row[row != 0], i % G) for i, row in enumerate(ids)])], 1)


def train(out: Path, method: str, world: int) -> dict:
    """What this process knows at the end."""
    settings = {"per_device_train_batch_size": 16 // world, "loss_type": "grpo"}
    if method == "Ratchet":
        settings |= {"per_device_train_batch_size": 8 // world, "steps_per_generation": 2, "max_steps": 6}
    kind = getattr(integrations.trl, method.removesuffix("+"))
    trainer, advantages = make(out / f"{world}-{method}", (even, third), **settings), []
    trainer.model.generate = generate
    integrations.trl.multi_objective(trainer, kind(after_update=True) if method.endswith("+") else kind())
    wrapped = trainer._generate_and_score_completions

    def note(inputs):
        tensors = wrapped(inputs)
        advantages.append(tensors["advantages"].tolist())
        return tensors

    trainer._generate_and_score_completions = note
    trainer.train()
    state, weights = trainer._multi_objective.save()["state"], trainer.reward_weights.tolist()
    return {"state": state, "advantages": advantages, "weights": weights}


folder, world, rank = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
known = {method: train(folder, method, world) for method in sys.argv[2:]}
(folder / f"{world}-{rank}.json").write_text(json.dumps(known))
