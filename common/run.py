"""A run: its folder, its steps, its log, its evaluations and its checkpoints. What is learned, and how, is the script's."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from common import ranks
from common.batch import Batch
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import Interrupted, UserError, require
from common.evaluate import evaluate, fell, score_batch
from common.flags import RunFlags
from common.interrupt import Signals
from common.model import compute_dtype
from common.setup import Data
from common.track import Hold, Tracker, run_folder
from integrations.export import export

PATIENCE = 5  # steps without a difference between completions, before it is told
LITTLE = 0.05  # standard deviation of a reward that hardly varies; covariances that a controller wants are larger
MAX_FAILURES = 5  # updates in a row that were skipped because their gradient was not finite, before the run stops


class Run:
    """`last_step` is the step that the weights are of: 0 for a new run, that of the checkpoint for a resumed one."""

    def __init__(
        self, args: RunFlags, script: str, data: Data, objectives: dict, engine, policy: nn.Module, optimizer: Optimizer, state: dict
    ) -> None:
        """Make the folder; or, with --resume, fill policy, optimizer and `state`, what the algorithm remembers, from its last checkpoint.

        Raises UserError naming --out or --resume.
        """
        self.args, self.data, self.objectives, self.engine = args, data, objectives, engine
        self.policy, self.optimizer, self.state = policy, optimizer, state
        self.last_step, self.samples, self.first = 0, [], {}  # first: metrics of the first evaluation
        self.failed = None  # what a reward raised in the last evaluation
        self.safe = 0  # the last step evaluated with no objective below its start beyond noise
        self.seen = [0.0, 0]  # tokens and number of all training completions so far
        self.yardstick = None  # tokens: mean length of the untrained model's completions, which evaluation compares with
        if args.resume:
            ranks.on_first(lambda: self._hold(Path(args.resume)))
            self.last_step, saved = load_checkpoint(Path(args.resume), policy, optimizer)
            told = f"--steps {args.steps} is below the {self.last_step} steps that --resume {args.resume} has taken"
            require(args.steps >= self.last_step, f"{told}: give more, or leave it out")
            state.update(saved["algorithm"])
            self.seen, self.yardstick, self.first = saved["seen"], saved["yardstick"], saved.get("first", {})
            self.safe = saved.get("safe", 0)
        self.folder = run_folder(args.out, args.resume, args.name or f"{script}-s{args.seed}")
        self.saved = self.last_step  # the step of the newest checkpoint
        if not args.resume:
            ranks.on_first(lambda: self._hold(self.folder))
        config = {"script": script, "objectives": list(objectives), **asdict(args), "out": str(self.folder), "resume": ""}
        self.tracker = Tracker(self.folder, config, self.last_step if args.resume else None, args.tensorboard, args.wandb)
        self.say = self.tracker.say
        self.flat, self.spread, self.lost = 0, {}, set()  # see _alarm and log
        self.screen = ranks.rank() == 0 and sys.stderr.isatty()  # a log file gets a line per evaluation, and no bar

    def _hold(self, folder: Path) -> None:
        self.hold = Hold(folder)

    def steps(self) -> Iterator[int]:
        """The steps still to take, with a progress bar. A new run is evaluated before the first. From here on a signal waits for a
        step's end, or that of its sampling."""
        self.signals = Signals()
        try:
            if not self.args.resume:
                self.log(0, self.evaluate(0), {})
            elif self._due(self.last_step, self.args.eval_every) and (row := self.tracker.take_back(self.last_step)):
                self.log(self.last_step, row | self.evaluate(self.last_step), {})
            if self.failed:
                raise self._ended(self.failed)
            first, last = self.last_step, self.args.steps
            steps, name = range(first + 1, last + 1), self.folder.name
            self.bar = tqdm(steps, initial=first, total=last, desc=name, unit="step", disable=not self.screen)
            yield from self.bar
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Of the signals and of the folder."""
        self.signals.release()
        self.hold = None

    def score(self, batch: Batch) -> tuple[torch.Tensor, float]:
        """(rewards [B, K], mean length in tokens of all training completions before this batch; the first batch has its own mean).

        Raises UserError where a reward does, and Interrupted, both after a checkpoint of the step before: sampling has changed nothing yet.
        """
        self._stop_if_asked()
        self.sampled = batch.sampled
        before = self.seen[0] / self.seen[1] if self.seen[1] else batch.lengths.mean().item()
        try:
            rewards = score_batch(self.objectives, batch, before, self.data.answer_check)
        except UserError as error:
            if self.saved < self.last_step:
                self._save()
            raise self._ended(error) from error
        self.seen = [self.seen[0] + batch.lengths.sum().item(), self.seen[1] + len(batch.mask)]
        return rewards, before

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out prompts, every --eval-every steps and after the last; nothing at other steps, nor where a reward raises:
        then `save` ends the run, and the resumed one evaluates that step. Collective."""
        if not self._due(step, self.args.eval_every):
            return {}
        how = {"mean_length": self.yardstick, "max_new_tokens": self.args.max_new_tokens, "temperature": self.args.temperature}
        size = self.args.prompts * self.args.completions
        try:
            metrics, self.samples = evaluate(self.engine, self.data, self.objectives, batch_size=size, **how)
        except UserError as error:
            self.failed = error
            return {}
        self.yardstick = self.yardstick or metrics["eval/length"]
        return metrics

    def log(self, step: int, row: dict[str, float], kept: dict[str, torch.Tensor]) -> None:
        """A line to metrics.jsonl, what it was computed from to statistics.jsonl, and completions to the files that have their texts."""
        if kept:
            self.tracker.keep(step, kept)
        self.tracker.log(step, row, self.samples, self._trained(step, kept["rewards"]) if kept else ())
        self.samples = []
        if not self.screen and "eval/length" in row:
            means = " ".join(f"{name} {row[f'eval/{name}']:.3f}" for name in self.objectives)
            self.say(f"step {step} of {self.args.steps}: held-out {means} length {row['eval/length']:.1f}")
        if "eval/length" in row:
            self.first = self.first or {key: value for key, value in row.items() if key.startswith("eval/")}
            fallen = {name for name in self.objectives if fell(self.first, row, name)}
            self.safe = self.safe if fallen else step
            for name in sorted(fallen - self.lost):
                told = f"held-out {name} fell from {self.first[f'eval/{name}']:.3f} to {row[f'eval/{name}']:.3f}, beyond noise"
                self.say(f"step {step}: {told}; python run.py explain {self.folder} says why")
            self.lost |= fallen
        if kept:
            self._alarm(step, row)
            shown = {name: f"{row[f'reward/{name}']:.2f}" for name in self.objectives}
            self.bar.set_postfix(shown | {"length": f"{row['length/mean']:.0f}"})

    def _trained(self, step: int, rewards: torch.Tensor) -> list[dict]:
        """The completions of the first prompts of a training batch, each with its row there, as --log-completions says."""
        group, due = self.args.completions, step == 1 or self._due(step, self.args.eval_every)
        rows = range(-(-self.args.log_completions // group) * group if due else 0)
        shown = zip(rows, self.sampled.columns["prompt"], self.sampled.texts, rewards.tolist(), strict=False)
        return [{"row": i, "prompt": p, "completion": t, **dict(zip(self.objectives, r, strict=True))} for i, p, t, r in shown]

    def _alarm(self, step: int, row: dict[str, float]) -> None:
        """Tell, once each, of an objective that has hardly varied, and of a policy whose completions no longer differ in any reward."""
        self.flat = self.flat + 1 if not any(row[f"signal/{name}"] for name in self.objectives) else 0
        self.spread = {name: max(self.spread.get(name, 0.0), row[f"reward_std/{name}"]) for name in self.objectives}
        for name, spread in self.spread.items() if step == PATIENCE else ():
            told = f"{name} was {row[f'reward/{name}']:g} for every completion so far: nothing can be learned from it"
            if spread > 0:  # no covariance with advantages of unit variance is larger
                told = f"{name} had a standard deviation of at most {spread:.2g}: a larger covariance, as controllers want, is out of reach"
            if spread < LITTLE:
                self.say(f"step {step}: {told}; look at it with python run.py score")
        if self.flat == PATIENCE:
            told = f"for {PATIENCE} steps no prompt's completions differed in any reward, so nothing is learned any more"
            self.say(f"step {step}: {told}; KL {row['loss/kl']:.2g} nats per token. If it has collapsed, begin again with a lower --lr")

    def save(self, step: int, failures: int = 0) -> None:
        """A checkpoint, every --checkpoint-every steps, after the last and, with --keep-safe, at every step that is safe. failures: updates
        in a row that were skipped.

        Raises UserError, after a checkpoint, where these are too many to go on, or the step's evaluation failed.
        """
        stop, self.last_step = failures >= MAX_FAILURES, step
        if stop or self.failed or self._due(step, self.args.checkpoint_every) or (self.args.keep_safe and self.safe == step):
            self._save()
        if self.failed:
            raise self._ended(self.failed)
        if step < self.args.steps:
            self._stop_if_asked()
        if stop:
            self._let_go()
            raise UserError(
                f"step {step}: {failures} updates in a row had a loss or gradient that is not finite and were skipped; lower --lr "
                f"(now {self.args.lr}). The last good state is in {self.folder / 'checkpoints'}"
            )

    def _save(self) -> None:
        state = {"algorithm": self.state, "seen": self.seen, "yardstick": self.yardstick, "first": self.first}
        state |= {"safe": self.safe}
        kept = self.safe if self.args.keep_safe else None
        save_checkpoint(self.folder, self.last_step, self.policy, self.optimizer, state, kept)
        self.saved = self.last_step

    def _stop_if_asked(self) -> None:
        if number := self.signals.asked():
            if self.saved < self.last_step:
                self._save()
            self.tracker.close()
            self._let_go()
            told = f"stopped by {signal.Signals(number).name} after step {self.last_step} of {self.args.steps}"
            then = f"--resume {self.folder} goes on" if self.last_step else "the same command starts anew"
            raise Interrupted(number, f"{told}; {then}")

    def _ended(self, error: UserError) -> UserError:
        """The error that ends the run, with where it can go on once that is mended."""
        self.tracker.close()
        self._let_go()
        return UserError(f"{error}; mend that, and --resume {self.folder} goes on after step {self.saved}" if self.saved else str(error))

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.args.steps

    def close(self) -> UserError | None:
        """Write the trained model to model/, in the dtype of its activations, and finish the trackers. Collective.

        What kept the model from being written is returned, not raised: the verdict is told first.
        """
        failed, dtype = None, compute_dtype(self.args.compute_dtype, self.policy.device)
        try:
            export(self.policy, self.data.tokenizer, self.folder / "model", dtype)
        except UserError as error:
            later = f"`python run.py export {self.folder}` writes it from the last checkpoint"
            failed = UserError(f"{error}; nothing else is lost: make room or mend that, then {later}")
        self.tracker.close()
        return failed
