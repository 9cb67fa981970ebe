"""One of one or two processes that train as one: torchrun two_processes.py OUT METHOD ...

Completions are made up from the prompt and the place in its group, so that one process has the same
as two. Writes what each process knows at the end. PYTHONPATH has the root and this folder.
"""

import json
import os
import random
import sys
from pathlib import Path

import torch
from tiny import G, Seen, even, make, third

import integrations.trl


def made_up(ids: torch.Tensor, place: int) -> list[int]:
    draw = random.Random(repr((ids.tolist(), place)))
    return [draw.randrange(3, 72) for _ in range(8)]


def generate(*args, **kwargs):
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    made = [made_up(row[row != 0], i % G) for i, row in enumerate(ids)]
    return torch.cat([ids, torch.tensor(made)], 1)


def train(out: Path, method: str, world: int) -> dict:
    """What this process knows at the end."""
    settings = {"per_device_train_batch_size": 16 // world, "loss_type": "grpo"}
    if method == "Ratchet":
        size = {"per_device_train_batch_size": 8 // world}
        settings |= size | {"steps_per_generation": 2, "max_steps": 6}
    kind = getattr(integrations.trl, method.removesuffix("+"))
    trainer = make(out / f"{world}-{method}", (even, third), **settings)
    trainer.model.generate = generate
    seen = Seen(trainer, kind(after_update=True) if method.endswith("+") else kind())
    trainer.train()
    state, weights = trainer._multi_objective.save()["state"], trainer.reward_weights.tolist()
    advantages = [out["advantages"].tolist() for out in seen.outputs]
    return {"state": state, "advantages": advantages, "weights": weights}


folder, world, rank = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
known = {method: train(folder, method, world) for method in sys.argv[2:]}
(folder / f"{world}-{rank}.json").write_text(json.dumps(known))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
os._exit(0)  # at the interpreter's own end a thread of gloo's that is left may abort the process
