"""A run: what it stands on, its steps, log, evaluations and checkpoints. What is learned, and how,
is the script's."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor, nn
from tqdm import tqdm

import rewards
from common import data, flags, ranks
from common.batch import Batch
from common.checkpoint import load_checkpoint, save_checkpoint
from common.curves import draw
from common.errors import Stopped, UserError, require
from common.evaluate import as_row, evaluate, score
from common.log import Log, new_folder
from common.meter import Meter, describe, next_scale
from common.model import (
    WithoutAdapters,
    compute_dtype,
    export,
    load_config,
    load_model,
    load_tokenizer,
    reads_prompts_once,
)
from common.pretrained import model_path
from common.rollout import Canary, make_engine, roll_out
from common.runs import load_run
from common.seeds import reseed
from common.verdict import fell, verdict

SMALL = 10_000_000  # parameters
PATIENCE = 5  # steps without a difference between completions, before it is told
LITTLE = 0.05  # standard deviation of a reward; covariances that a controller wants are larger
MAX_FAILURES = 5  # updates in a row whose gradient was not finite, before the run stops


class Run:
    """Made from the flags; then `load_models`, `restore`, and in every step of `steps` the calls
    in the order in which they stand here. Each measures the time since the call before it."""

    def __init__(self, args, script: str) -> None:
        """Start the ranks and find the rewards. args: the script's, `flags.RunFlags` and its own.
        script: its file. Raises UserError naming the flag."""
        self.args, self.script = args, Path(script).stem
        alone = args.engine == "vllm" or args.compute_dtype == "bfloat16"
        self.device = ranks.start(single=alone)
        flags.check(args, ranks.count())
        self.functions = rewards.load(args.rewards)
        self.objectives = list(self.functions)
        self.compute = compute_dtype(args.compute_dtype, self.device)
        updates = args.epochs * args.mini_batches
        self.canary = Canary(args.max_logp_gap, self.compute, args.desired_kl, updates)

    def load_models(self) -> tuple[nn.Module, nn.Module | None]:
        """Prompts, sampler, and (policy, reference model; None at --kl-coef 0)."""
        args, model = self.args, model_path(self.args.model)
        self.tokenizer = load_tokenizer(model, args.trust_remote_code)
        self.answer_check = data.answer_check(args.answer_check, args.dataset)
        splits = data.load(args, self.tokenizer, self.functions, self.answer_check)
        self.train, held_out = splits["train"], splits[args.eval_split]
        require(len(held_out) >= 2, f"--eval-split {args.eval_split} needs two prompts or more")
        self.held_out = held_out.select(range(min(args.eval_prompts, len(held_out))))
        ids = self.train.ids + self.held_out.ids
        config = load_config(model, args.trust_remote_code).get_text_config()
        longest = max(map(len, ids)) + args.max_new_tokens
        room = getattr(config, "max_position_embeddings", None) or longest
        told = f"--max-new-tokens {args.max_new_tokens}: {longest} with the longest prompt, and"
        require(longest <= room, f"{told} --model {args.model} has {room} positions")
        highest = max(map(max, ids))
        told = f"--model {args.model}: a prompt has the token {highest}, and its embedding has"
        require(highest < config.vocab_size, f"{told} {config.vocab_size} rows")
        self.engine = make_engine(args, model, self.tokenizer, self.device, self.compute, longest)
        how = (model, self.device, args.trust_remote_code, self.compute)
        self.policy = load_model(
            *how,
            activation_checkpointing=args.activation_checkpointing,
            lora_rank=args.lora_rank,
        )
        self.engine.prompts_once = reads_prompts_once(model, self.policy)
        self.reference = None
        if args.kl_coef > 0:
            self.reference = (
                WithoutAdapters(self.policy) if args.lora_rank else load_model(*how, frozen=True)
            )
        # several threads do not make a small model faster: they spin, and starve other processes
        small = sum(parameter.numel() for parameter in self.policy.parameters()) < SMALL
        if small and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        return self.policy, self.reference

    def restore(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Make the folder; or, with --resume, fill policy, optimizer and `state`, what the
        algorithm remembers, from its last checkpoint. state is saved with every checkpoint."""
        args, self.optimizer, self.state = self.args, optimizer, state
        # seen: tokens and number of all training completions; yardstick: mean length of the
        # untrained model's, in tokens; first: metrics of the first evaluation; safe: the last step
        # evaluated with no objective below its start; pending: metrics of a step whose evaluation
        # a reward broke off; computed: the dtype it began in, which another machine may not choose
        prompts, computed = crc32(repr(self.train.ids).encode()), str(self.compute).split(".")[1]
        self.memory: dict = {
            "seen": [0.0, 0],
            "yardstick": None,
            "first": {},
            "safe": 0,
            "pending": None,
            "prompts": prompts,
            "computed": computed,
            # the first step's length is not known, and one that is too long cannot be taken back
            "scale": 0.1 if args.desired_kl else 1.0,
        }
        self.last_step, self.failures = 0, 0
        self.flat, self.fallen = 0, set()  # see _alarm, _evaluate
        if args.resume:
            self.folder = Path(args.resume)
            own = next((v.device for v in state.values() if isinstance(v, Tensor)), self.device)
            how = (self.policy, optimizer, None, own)  # where the algorithm computes
            self.last_step, saved = load_checkpoint(self.folder, *how)
            told = f"--steps {args.steps} is below the {self.last_step} steps that --resume has"
            require(args.steps >= self.last_step, f"{told} taken: give more, or leave it out")
            state.update(saved.pop("algorithm"))
            self.memory |= saved
        else:
            name = f"{self.script}-s{args.seed}"
            self.folder = ranks.on_first(lambda: new_folder(args.out, name))
        self.saved = self.last_step
        told = f"--dataset {args.dataset} has other prompts than when --resume {args.resume} began"
        require(self.memory["prompts"] == prompts, f"{told}: give it those, or start anew")
        before = self.memory["computed"]
        told = f"--resume {args.resume} began in {before} and would go on in {computed}"
        require(before == computed, f"{told}: add --compute-dtype {before}")
        config = {"script": self.script, "objectives": self.objectives, **asdict(args)}
        config |= {"out": str(self.folder), "resume": ""}
        self.log = Log(self.folder, config, self.last_step if args.resume else None)
        self.engine.sync(self.policy, self.last_step)
        threads = f"OMP_NUM_THREADS={torch.get_num_threads()}"
        ranks.say(f"{self.folder}: {args.model} on {ranks.count()} x {self.device}, {threads}")
        count = len(self.held_out)
        ranks.say(
            f"{args.dataset}: {len(self.train)} prompts, and {count} of {args.eval_split} held "
            f"out, which can show a change of {1.4 / count**0.5:.2g} in a reward of 0 or 1"
        )
        told = f"rewards: {', '.join(self.objectives)}; answers compared by {self.answer_check}"
        ranks.say(told if self.last_step < args.steps else f"all {args.steps} steps are taken")

    @property
    def scale(self) -> float:
        """What the learning rate is multiplied with: see --desired-kl."""
        return self.memory["scale"]

    def steps(self) -> Iterator[int]:
        """The steps still to take. A new run is evaluated before the first; a resumed one makes up
        for an evaluation that a reward broke off."""
        self.signals = Signals()
        first, last = self.last_step, self.args.steps
        if not self.args.resume:
            self._log_evaluated(0, {})
        elif (pending := self.memory["pending"]) is not None:
            self._log_evaluated(first, pending)
            self._save()  # without what was pending
        # a log file gets a line per evaluation, and no bar
        hidden = None if ranks.rank() == 0 else True  # None: where there is no terminal
        for step in tqdm(range(first + 1, last + 1), initial=first, total=last, disable=hidden):
            self.clock, self.laps = time.perf_counter(), {}
            yield step
        self.signals.release()

    def sample(self, step: int) -> Batch:
        """Fresh completions of the step's prompts, the same B = P * G rows on every rank."""
        args = self.args
        # for rewards that draw lots; prompts, completions and mini-batches have their own seeds
        reseed(args.seed, step, args.prompts + args.epochs + ranks.rank())
        chosen = self.train.batch(step, args.prompts, args.seed)
        self.batch = roll_out(self.engine, self.tokenizer, chosen, args)
        self._lap("rollout")
        return self.batch

    def score(self, batch: Batch) -> Tensor:
        """Rewards [B, K]. Where one fails, a checkpoint of the step before is written first."""
        self._stop_if_asked()  # sampling has changed nothing yet
        sampled, (tokens, count) = batch.sampled, self.memory["seen"]
        self.threshold = tokens / count if count else batch.lengths.mean().item()
        try:
            found = score(
                self.functions,
                sampled.texts,
                sampled.ids,
                sampled.columns,
                self.threshold,
                self.answer_check,
            )
        except UserError as error:
            raise self._saved_before(error) from error
        self.memory["seen"] = [tokens + batch.lengths.sum().item(), count + len(batch.mask)]
        self._lap("reward")
        return found.to(self.device)

    def check_sampler(self, step: int, batch: Batch, old_logp: Tensor) -> None:
        """That sampler and trainer agree: see `Canary`. old_logp [B, T] under the policy."""
        self.gaps = self.canary.check(step, batch, old_logp)
        self._lap("logprobs")

    def sync(self, step: int, meter: Meter) -> None:
        """Give the sampler the policy's new weights, and every rank what the meters have seen."""
        meter.gather()
        self.engine.sync(self.policy, step)
        self._lap("update")

    def finish(
        self,
        step: int,
        meter: Meter,
        rewards: Tensor,
        advantages: Tensor,
        weights: Tensor,
        logged: dict,
    ) -> None:
        """Log the step, evaluate and save when due, and stop where a signal asked for it.

        rewards [B, K], advantages [B], weights [K]; logged: what the algorithm logs beside. Raises
        UserError, after a checkpoint, where too many updates in a row had no finite gradient, and
        Stopped.
        """
        self._lap("weights")
        args, batch, objectives = self.args, self.batch, self.objectives
        row = describe(meter, objectives, rewards, advantages, args.completions, weights, logged)
        skipped = [not norm < inf for norm in meter.norms]  # infinite or NaN
        for failed in skipped:
            self.failures = self.failures + 1 if failed else 0
        row |= {
            "length/mean": batch.lengths.mean().item(),
            "length/threshold": self.threshold,
            "length/truncated": batch.sampled.truncated,
            **meter.means(),
            **self.gaps,
        }
        if self.device.type == "cuda":
            row["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row |= {"grad/skipped": sum(skipped), "lr": self.optimizer.param_groups[0]["lr"]}
        if self.reference is None:
            row["loss/kl"] = nan
        row |= self.laps
        if args.desired_kl:
            self.memory["scale"] = next_scale(self.scale, row["law/nats"], args.desired_kl)
        kept = {"rewards": rewards, "advantages": advantages, "lengths": batch.lengths.int()}
        self.log.statistics(step, kept | meter.kept())
        if step == 1 or self._due(step, args.eval_every):
            count = -(-args.log_completions // args.completions) * args.completions
            texts = (batch.sampled.columns["prompt"], batch.sampled.texts, rewards.tolist())
            shown = zip(range(count), *texts, strict=False)
            rows = [{"step": step, "row": i} | as_row(objectives, *one) for i, *one in shown]
            self.log.append("training_completions.jsonl", rows)
        self._alarm(step, row)
        self.last_step = step
        self._log_evaluated(step, row)
        self._save_and_stop(step)

    def close(self) -> None:
        """Print what became of each objective and write the trained model to model/."""
        self.log.close()
        ranks.on_first(lambda: ranks.say(f"\n{verdict(load_run(self.folder))}\n"))
        export(self.policy, self.tokenizer, self.folder / "model", self.compute)
        ranks.say(f"curves: {self.folder / 'curves.png'}   model: {self.folder / 'model'}")
        if self.args.keep_safe and (safe := self.memory["safe"]):
            told = f"step {safe} was the last with no objective below its start"
            ranks.say(f"{told}: run.py export {self.folder} --step {safe} writes its model")

    # --- inside ---

    def _lap(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # what was asked for is done only then
        now = time.perf_counter()
        self.laps[f"time/{part}"], self.clock = now - self.clock, now

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.args.steps

    def _evaluate(self, step: int) -> dict[str, float]:
        """Metrics on the held-out prompts, every --eval-every steps; {} at others. Collective."""
        if not self._due(step, self.args.eval_every):
            return {}
        args, memory = self.args, self.memory
        found, samples = evaluate(
            self.engine,
            self.tokenizer,
            self.held_out,
            self.functions,
            memory["yardstick"],
            self.answer_check,
            args,
        )
        self.log.append("completions.jsonl", [{"step": step} | sample for sample in samples])
        memory["yardstick"] = memory["yardstick"] or found["eval/length"]
        first = memory["first"] = memory["first"] or found
        fallen = {name for name in self.objectives if fell(first, found, name)}
        memory["safe"] = memory["safe"] if fallen else step
        names = (*self.objectives, "length")
        means = " ".join(f"{name} {found[f'eval/{name}']:.3g}" for name in names)
        ranks.say(f"step {step} of {args.steps}: held-out {means}")
        if new := ", ".join(sorted(fallen - self.fallen)):
            told = f"{new} fell beyond noise; python run.py explain {self.folder} says why"
            ranks.say(f"step {step}: held-out {told}")
        self.fallen |= fallen
        return found

    def _log_evaluated(self, step: int, row: dict[str, float]) -> None:
        """The step's metrics with those of its evaluation, and the picture so far."""
        self.memory["pending"] = row
        try:
            row = row | self._evaluate(step)
        except UserError as error:
            raise self._saved_before(error) from error
        self.memory["pending"] = None
        self.log.metrics(step, row)
        if "eval/length" in row and ranks.rank() == 0:
            try:
                draw(load_run(self.folder), self.folder / "curves.png")
            except UserError as error:
                ranks.say(str(error))

    def _alarm(self, step: int, row: dict[str, float]) -> None:
        """Tell, once each, of an objective that hardly varies, and of a policy whose completions no
        longer differ in any reward."""
        self.flat = 0 if any(row[f"signal/{name}"] for name in self.objectives) else self.flat + 1
        still = [name for name in self.objectives if row[f"reward_std/{name}"] < LITTLE]
        if step == PATIENCE and still:
            told = f"{', '.join(still)} hardly varied, and little can be learned from that"
            ranks.say(f"step {step}: {told}; look at it with python run.py score")
        if self.flat == PATIENCE:
            told = f"for {PATIENCE} steps no prompt's completions differed in any reward"
            ranks.say(f"step {step}: {told}: nothing is learned; if it collapsed, lower --lr")

    def _save(self) -> None:
        kept = self.memory["safe"] if self.args.keep_safe else None
        state = {"algorithm": self.state, **self.memory}
        save_checkpoint(self.folder, self.last_step, self.policy, self.optimizer, state, kept)
        self.saved = self.last_step

    def _save_and_stop(self, step: int) -> None:
        args, safe = self.args, self.args.keep_safe and self.memory["safe"] == step
        lost = self.failures >= MAX_FAILURES
        if lost or safe or self._due(step, args.checkpoint_every):
            self._save()
        if step < args.steps:
            self._stop_if_asked()
        told = f"step {step}: {self.failures} updates in a row had a gradient that is not finite"
        require(not lost, f"{told} and were skipped; lower --lr (now {args.lr})")

    def _stop_if_asked(self) -> None:
        if not (number := self.signals.asked()):
            return
        if self.saved < self.last_step:
            self._save()
        self.log.close()
        told = f"stopped by {signal.Signals(number).name} after step {self.last_step}"
        then = f"--resume {self.folder} goes on" if self.last_step else "it has no checkpoint yet"
        raise Stopped(number, f"{told} of {self.args.steps}; {then}")

    def _saved_before(self, error: UserError) -> UserError:
        """The error of a reward, after a checkpoint of the last step."""
        if self.last_step == 0:
            return error
        if self.saved < self.last_step:
            self._save()
        return UserError(f"{error}; mend that, and --resume {self.folder} goes on")


class Signals:
    """Ctrl-C and SIGTERM: noted when they come, acted on at the end of a step, or once it has
    sampled. A second Ctrl-C ends the process at once; torchrun sends on what the terminal sent, so
    not within a second."""

    def __init__(self) -> None:
        self.number, self.since = 0, 0.0
        both = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._note) for number in both}

    def _note(self, number: int, frame: object) -> None:
        if self.number and number == signal.SIGINT and time.monotonic() - self.since > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self.since = number, time.monotonic()
            if ranks.rank() == 0:
                os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")

    def asked(self) -> int:
        """The signal that any rank has noted, on every rank; 0 for none. Collective."""
        return max(ranks.together(lambda: self.number))

    def release(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
