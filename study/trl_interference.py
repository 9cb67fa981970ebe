"""Interference and its cure inside TRL: GRPOTrainer on the testbed's `fragile` base with one method
after another, the table of docs/integrations.md.

    python -m study.trl_interference --methods Linear CTWA PAMA --seeds 1 2

in the environment of requirements-trl.txt. Prints, for every run, the held-out means (test split,
one completion of each problem at temperature 1) before, on the way and after. Linear is TRL's own
sum with equal weights.
"""

import argparse
import os
import tempfile
from statistics import fmean

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is here
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

import integrations.trl
from rewards.accuracy import accuracy
from rewards.clarity import clarity
from rewards.conciseness import conciseness
from testbed.arithmetic import base_path, problems, tokenizer

PROMPTS, COMPLETIONS, LONGEST = 16, 16, 56  # of a generation, as in the scripts
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def concise():
    """The reward of the scripts, which compares with the mean length of all completions before;
    this one keeps it itself."""
    before: list[int] = []

    def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
        mean = fmean(before or map(len, completion_ids))
        before.extend(map(len, completion_ids))
        return conciseness(completion_ids=completion_ids, mean_length=mean)

    reward.__name__ = "conciseness"
    return reward


class Watch(TrainerCallback):
    """Held-out means and length before training and every so many updates."""

    def __init__(self, every: int) -> None:
        self.every, self.rows = every, []

    @torch.no_grad()
    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % self.every:
            return
        encoder, held_out, drawn = tokenizer(), problems("test"), torch.get_rng_state()
        inputs = encoder(held_out["prompt"], return_tensors="pt", return_token_type_ids=False)
        torch.manual_seed(0)
        pad = encoder.pad_token_id
        ids = model.eval().generate(**inputs, **SAMPLING, max_new_tokens=LONGEST, pad_token_id=pad)
        torch.set_rng_state(drawn)
        model.train()
        rows = [row[row != pad].tolist() for row in ids[:, inputs["input_ids"].size(1) :]]
        texts, length = encoder.batch_decode(rows, skip_special_tokens=True), fmean(map(len, rows))
        start = self.rows[0][3] if self.rows else length
        scores = [
            accuracy(completions=texts, answer=held_out["answer"]),
            conciseness(completion_ids=rows, mean_length=start),
            clarity(completions=texts),
        ]
        self.rows.append([*map(fmean, scores), length])

    on_step_end = on_train_begin


def train(method: str, seed: int, generations: int, warmup_steps: int) -> list[list[float]]:
    """Train the base anew; what was seen of it."""
    watch = Watch(every=max(1, generations // 6) * 2)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            seed=seed,
            max_steps=2 * generations,  # two updates of each, as --mini-batches 2
            per_device_train_batch_size=PROMPTS * COMPLETIONS // 2,
            steps_per_generation=2,
            num_generations=COMPLETIONS,
            max_completion_length=LONGEST,
            top_k=0,
            learning_rate=1e-4,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=warmup_steps,
            weight_decay=0.01,
            beta=1e-3,
            loss_type="bnpo",  # a mean over tokens, as in the scripts
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base_path("fragile"), dtype=torch.float32),
            reward_funcs=[accuracy, concise(), clarity],
            args=args,
            train_dataset=Dataset.from_dict(problems("train")),
            processing_class=tokenizer(),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        integrations.trl.multi_objective(trainer, getattr(integrations.trl, method)())
        trainer.train()
    return watch.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["Linear", "CTWA", "PAMA"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--generations", type=int, default=60, help="of two updates each")
    parser.add_argument(
        "--warmup-steps", type=int, default=0, help="16 are the script's of Ratchet"
    )
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.set_verbosity_error()
    print(
        "| method | seed | accuracy | conciseness | clarity | tokens |\n|---|---|---|---|---|---|"
    )
    for method in given.methods:
        for seed in given.seeds:
            columns = zip(*train(method, seed, given.generations, given.warmup_steps), strict=True)
            cells = (" → ".join(f"{value:.2f}" for value in column) for column in columns)
            print(f"| {method} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
