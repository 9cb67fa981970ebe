"""A GRPOTrainer that is done in a second: the testbed's smallest model, two rewards that any completion can have, and what it did."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from integrations.trl import multi_objective
from testbed.arithmetic import base_path, problems, tokenizer

G = 4  # completions per prompt
SMALL = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "num_generations": G,
    "max_completion_length": 10,
    "temperature": 4.0,  # so that no two completions are alike
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "beta": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "disable_tqdm": True,
}


def small(completion_ids, **kwargs):
    return [sum(token < 24 for token in ids) / len(ids) for ids in completion_ids]


def even(completion_ids, **kwargs):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def third(completion_ids, **kwargs):
    """Not for every completion: None where the last token's id is odd."""
    return [None if ids[-1] % 2 else sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]


def make(folder, rewards=(small, even), eval_prompts: int = 0, **settings) -> GRPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(base_path("fragile"), dtype=torch.float32)
    texts = problems("train")["prompt"]
    return GRPOTrainer(
        model=model,
        reward_funcs=list(rewards),
        args=GRPOConfig(output_dir=str(folder), **(SMALL | settings)),
        train_dataset=Dataset.from_dict({"prompt": texts[:64]}),
        eval_dataset=Dataset.from_dict({"prompt": texts[64 : 64 + eval_prompts]}) if eval_prompts else None,
        processing_class=tokenizer(),
    )


class Seen:
    """What a trainer did, noted from outside of what multi_objective wraps. In training, for every generation: the rewards [B, K], TRL's
    advantages before the method had them, what went into training, tensors by name, and the micro-batches of its passes."""

    def __init__(self, trainer, method) -> None:
        self.rewards, self.before, self.outputs, self.trained = [], [], [], []
        calculate, generate = trainer._calculate_rewards, trainer._generate_and_score_completions
        loss = trainer._compute_loss

        def calculate_and_note(inputs, prompts, completions, completion_ids_list):
            rewards = calculate(inputs, prompts, completions, completion_ids_list)
            if trainer.model.training:
                self.rewards.append(rewards.double())
            return rewards

        def generate_and_note(inputs):
            out = generate(inputs)
            if trainer.model.training:
                self.before.append(out["advantages"].double())
            return out

        def loss_and_note(model, inputs):
            if trainer.model.training:
                self.trained[-1].append(inputs)
            return loss(model, inputs)

        trainer._calculate_rewards, trainer._generate_and_score_completions = calculate_and_note, generate_and_note
        trainer._compute_loss = loss_and_note
        multi_objective(trainer, method)
        outermost = trainer._generate_and_score_completions

        def note_output(inputs):
            out = outermost(inputs)
            if trainer.model.training:
                self.outputs.append(dict(out))
                self.trained.append([])
            return out

        trainer._generate_and_score_completions = note_output

    @property
    def advantages(self) -> list[torch.Tensor]:
        return [out["advantages"].double() for out in self.outputs]


def run(folder, method, rewards=(small, even), **settings):
    """Train; returns (trainer, what was seen)."""
    trainer = make(folder, rewards, **settings)
    seen = Seen(trainer, method)
    trainer.train()
    return trainer, seen


def logged(trainer, name: str, rewards=(small, even)) -> list[list[float]]:
    """<name>/<objective> of every step that has it, in the order of the objectives."""
    keys = [f"{name}/{reward.__name__}" for reward in rewards]
    return [[line[key] for key in keys] for line in trainer.state.log_history if keys[0] in line]


def logprobs(trainer, out) -> torch.Tensor:
    """Log-probabilities of the completions' tokens under the policy as it is, by the model itself. [B, T]."""
    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits / trainer.temperature
    start = out["prompt_ids"].size(1)
    return logits[:, start - 1 : -1].log_softmax(-1).gather(2, ids[:, start:, None]).squeeze(2)
