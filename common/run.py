"""A run: its folder, its steps, its log, its evaluations and its checkpoints. What is learned, and how, is the script's."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common import ranks
from common.batch import Batch
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import UserError
from common.evaluate import evaluate
from common.flags import RunFlags
from common.model import compute_dtype, export
from common.setup import Data
from common.track import Tracker, run_folder

MAX_FAILURES = 5  # updates in a row that were skipped because their gradient was not finite, before the run stops


class Run:
    """`last_step` is the step that the weights are of: 0 for a new run, that of the checkpoint for a resumed one."""

    def __init__(
        self,
        args: RunFlags,
        script: str,
        data: Data,
        objectives: dict[str, Callable],
        engine,
        policy: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict,
    ) -> None:
        """Make the folder; or, with --resume, fill policy, optimizer and `state`, what the algorithm remembers, from its last checkpoint.

        Raises UserError naming --out or --resume.
        """
        self.args, self.data, self.objectives, self.engine = args, data, objectives, engine
        self.policy, self.optimizer, self.state = policy, optimizer, state
        self.last_step, self.samples = 0, []
        self.seen = [0.0, 0]  # tokens and number of all training completions so far
        self.yardstick = None  # tokens: mean length of the untrained model's completions, which evaluation compares with
        if args.resume:
            self.last_step, saved = load_checkpoint(Path(args.resume), policy, optimizer)
            state.update(saved["algorithm"])
            self.seen, self.yardstick = saved["seen"], saved["yardstick"]
        self.folder = run_folder(args.out, args.resume, script, args.seed)
        config = {"script": script, "objectives": list(objectives), **asdict(args), "out": str(self.folder), "resume": ""}
        self.tracker = Tracker(self.folder, config, self.last_step if args.resume else None, args.tensorboard, args.wandb)
        self.say = self.tracker.say

    def steps(self) -> tqdm:
        """The steps still to take, with a progress bar. A new run is evaluated before the first."""
        if not self.args.resume:
            self.log(0, self.evaluate(0), {})
        first, last = self.last_step, self.args.steps
        self.bar = tqdm(range(first + 1, last + 1), initial=first, total=last, desc=self.folder.name, unit="step", disable=ranks.rank() > 0)
        return self.bar

    def mean_length(self, batch: Batch) -> float:
        """Tokens: mean length of all training completions before this batch, which is then counted; the first has its own mean."""
        before = self.seen[0] / self.seen[1] if self.seen[1] else batch.lengths.mean().item()
        self.seen = [self.seen[0] + batch.lengths.sum().item(), self.seen[1] + len(batch.mask)]
        return before

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out prompts, every --eval-every steps and after the last; nothing at other steps. Collective."""
        if not self._due(step, self.args.eval_every):
            return {}
        metrics, self.samples = evaluate(
            self.engine,
            self.data,
            self.objectives,
            mean_length=self.yardstick,
            batch_size=self.args.prompts * self.args.completions,
            max_new_tokens=self.args.max_new_tokens,
            temperature=self.args.temperature,
        )
        self.yardstick = self.yardstick or metrics["eval/length"]
        return metrics

    def log(self, step: int, row: dict[str, float], kept: dict[str, torch.Tensor]) -> None:
        """A line to metrics.jsonl, what it was computed from to statistics.jsonl, and to completions.jsonl those of an evaluation."""
        if kept:
            self.tracker.keep(step, kept)
        self.tracker.log(step, row, self.samples)
        self.samples = []
        if step > 0:
            shown = {name: f"{row[f'reward/{name}']:.2f}" for name in self.objectives}
            self.bar.set_postfix(shown | {"length": f"{row['length/mean']:.0f}"})

    def save(self, step: int, failures: int = 0) -> None:
        """A checkpoint, every --checkpoint-every steps and after the last. failures: updates in a row that were skipped.

        Raises UserError, after a checkpoint, where these are too many to go on.
        """
        stop = failures >= MAX_FAILURES
        if stop or self._due(step, self.args.checkpoint_every):
            state = {"algorithm": self.state, "seen": self.seen, "yardstick": self.yardstick}
            save_checkpoint(self.folder, step, self.policy, self.optimizer, state)
        if stop:
            raise UserError(
                f"step {step}: {failures} updates in a row had a loss or gradient that is not finite and were skipped; lower --lr "
                f"(now {self.args.lr}). The last good state is in {self.folder / 'checkpoints'}"
            )

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.args.steps

    def close(self) -> None:
        """Write the trained model to model/, in the dtype of its activations, and finish the trackers. Collective."""
        dtype = compute_dtype(self.args.compute_dtype, self.policy.device)
        export(self.policy, self.data.tokenizer, self.folder / "model", dtype)
        self.tracker.close()
