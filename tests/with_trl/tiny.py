"""A GRPOTrainer that is done in a second: the testbed's smallest model, rewards that any completion
can have, and what it did."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
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
    shares = [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]
    pairs = zip(shares, completion_ids, strict=True)
    return [None if ids[-1] % 2 else share for share, ids in pairs]


def make(folder, rewards=(small, even), eval_prompts: int = 0, **settings) -> GRPOTrainer:
    texts, held_out = problems("train")["prompt"], None
    if eval_prompts:
        held_out = Dataset.from_dict({"prompt": texts[64 : 64 + eval_prompts]})
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base_path("fragile"), dtype=torch.float32),
        reward_funcs=list(rewards),
        args=GRPOConfig(output_dir=str(folder), **(SMALL | settings)),
        train_dataset=Dataset.from_dict({"prompt": texts[:64]}),
        eval_dataset=held_out,
        processing_class=tokenizer(),
    )


class Seen(TrainerCallback):
    """What a trainer did, noted from outside of what multi_objective wraps. For every generation of
    training: the rewards [B, K]; TRL's advantages before the method had them; the tensors that went
    into training; the micro-batches of its passes; and the log-probabilities [B, T] of its
    completions, by the model itself, when they were sampled and after every update."""

    def __init__(self, trainer, method) -> None:
        self.trainer = trainer
        self.rewards, self.before, self.outputs, self.trained, self.policies = [], [], [], [], []
        self.note("_calculate_rewards", lambda rewards, *_: self.rewards.append(rewards))
        keep = lambda out, *_: self.before.append(out["advantages"])  # noqa: E731
        self.note("_generate_and_score_completions", keep)
        self.note("_compute_loss", lambda loss, model, inputs: self.trained[-1].append(inputs))
        multi_objective(trainer, method)
        self.note("_generate_and_score_completions", self.generated)
        trainer.add_callback(self)

    def note(self, name: str, then) -> None:
        own = getattr(self.trainer, name)

        def wrapped(*inputs):
            result = own(*inputs)
            if self.trainer.model.training:
                then(result, *inputs)
            return result

        setattr(self.trainer, name, wrapped)

    def generated(self, out, *inputs) -> None:
        self.outputs.append(dict(out))
        self.trained.append([])
        self.policies.append([self.logprobs()])

    def on_step_end(self, *args, **kwargs) -> None:
        self.policies[-1].append(self.logprobs())

    @torch.no_grad()
    def logprobs(self) -> torch.Tensor:
        out, trainer = self.outputs[-1], self.trainer
        ids, start = tokens(out), out["prompt_ids"].size(1)
        attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
        logits = trainer.model(input_ids=ids, attention_mask=attention).logits
        logps = (logits / trainer.temperature)[:, start - 1 : -1].log_softmax(-1)
        return logps.gather(2, ids[:, start:, None]).squeeze(2)

    def later_half(self, number: int) -> torch.Tensor:
        """Which rows of a generation the later half of its first passes trained on. bool [B]."""
        passes = self.trained[number][: self.trainer.args.steps_per_generation]
        later = [row for inputs in passes[len(passes) // 2 :] for row in tokens(inputs).tolist()]
        return torch.tensor([row in later for row in tokens(self.outputs[number]).tolist()])


def tokens(tensors: dict) -> torch.Tensor:
    return torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], 1)


def run(folder, method, rewards=(small, even), **settings):
    """Train; returns (trainer, what was seen)."""
    trainer = make(folder, rewards, **settings)
    seen = Seen(trainer, method)
    trainer.train()
    return trainer, seen


def logged(trainer, name: str, objectives=("small", "even")) -> list[list[float]]:
    """<name>/<objective> of every step that has it, in the order of the objectives."""
    keys, rows = [f"{name}/{each}" for each in objectives], trainer.state.log_history
    return [[row[key] for key in keys] for row in rows if keys[0] in row]
