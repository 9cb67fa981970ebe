"""Interference and its cure inside TRL: GRPOTrainer on the testbed's `fragile` base with one method after another.

python -m study.trl_interference --methods Linear CTWA PAMA --seeds 1 2

in the environment of requirements-trl.txt. Prints, for every run, the held-out means (test split, one completion of each problem at
temperature 1) before, on the way and after, and the lowest accuracy on the way. Linear is TRL's own sum with equal weights.
"""

import argparse
import os
import tempfile

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


def rewards() -> list:
    """The three rewards of the scripts. Conciseness compares with the mean length of all completions before, which it keeps itself."""
    seen = [0.0, 0]

    def concise(completion_ids: list[list[int]], **kwargs) -> list[float]:
        lengths = [len(ids) for ids in completion_ids]
        mean = seen[0] / seen[1] if seen[1] else sum(lengths) / len(lengths)
        seen[:] = seen[0] + sum(lengths), seen[1] + len(lengths)
        return conciseness(completion_ids=completion_ids, mean_length=mean)

    concise.__name__ = "conciseness"
    return [accuracy, concise, clarity]


class Watch(TrainerCallback):
    """Held-out means before training and every so many updates."""

    def __init__(self, encoder, every: int) -> None:
        self.encoder, self.every, self.rows, self.yardstick = encoder, every, [], None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.look(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % self.every == 0:
            self.look(model, state.global_step)

    @torch.no_grad()
    def look(self, model, step: int) -> None:
        held_out, kept = problems("test"), torch.get_rng_state()
        inputs = self.encoder(held_out["prompt"], return_tensors="pt", padding=True, return_token_type_ids=False)
        torch.manual_seed(0)
        ids = model.eval().generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=LONGEST, pad_token_id=self.encoder.pad_token_id
        )
        torch.set_rng_state(kept)
        model.train()
        rows = [row[row != self.encoder.pad_token_id].tolist() for row in ids[:, inputs["input_ids"].size(1) :]]
        texts = self.encoder.batch_decode(rows, skip_special_tokens=True)
        length = sum(map(len, rows)) / len(rows)
        self.yardstick = self.yardstick or length
        scored = accuracy(completions=texts, answer=held_out["answer"]), conciseness(completion_ids=rows, mean_length=self.yardstick)
        self.rows.append((step, *(sum(values) / len(values) for values in (*scored, clarity(completions=texts))), length))


def run(method: str, seed: int, generations: int, beta: float, warmup_steps: int) -> Watch:
    """Train the base anew and return what was seen of it."""
    encoder = tokenizer()
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
            lr_scheduler_type="constant_with_warmup" if warmup_steps else "constant",
            warmup_steps=warmup_steps,
            weight_decay=0.01,
            beta=beta,
            loss_type="bnpo",  # a mean over tokens, as in the scripts
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(base_path("fragile"), dtype=torch.float32)
        data = Dataset.from_dict(problems("train"))
        trainer = GRPOTrainer(model=model, reward_funcs=rewards(), args=args, train_dataset=data, processing_class=encoder)
        watch = Watch(encoder, every=max(1, generations // 6) * 2)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        integrations.trl.multi_objective(trainer, getattr(integrations.trl, method)())
        trainer.train()
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.trl_interference", description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["Linear", "CTWA", "PAMA"], help="classes of integrations.trl, with their defaults")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="seeds of GRPOConfig")
    parser.add_argument("--generations", type=int, default=60, help="batches of completions; two updates each")
    parser.add_argument("--beta", type=float, default=1e-3, help="weight of the KL divergence, as --kl-coef")
    parser.add_argument("--warmup-steps", type=int, default=0, help="updates over which the learning rate rises; Ratchet's script has 16")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| method | seed | accuracy | lowest | conciseness | clarity | tokens |\n|---|---|---|---|---|---|---|", flush=True)
    for method in given.methods:
        for seed in given.seeds:
            rows = run(method, seed, given.generations, given.beta, given.warmup_steps).rows
            shown = " → ".join(f"{row[1]:.2f}" for row in rows)
            others = " | ".join(f"{rows[0][k]:.2f} → {rows[-1][k]:.2f}" for k in (2, 3))
            lowest = min(row[1] for row in rows)
            print(f"| {method} | {seed} | {shown} | {lowest:.2f} | {others} | {rows[0][4]:.0f} → {rows[-1][4]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
