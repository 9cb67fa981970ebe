"""`python run.py doctor`: checks before a long run, with the flags it will have. Is what it needs there, and do its parts agree?

A check is a function that returns what it found in a few words and raises `Failed`, `Skipped` or any error. Checks run in order and one
that needs another's result is skipped where that did not pass. Every rank runs every check; one rank that fails, fails it.
"""

import argparse
import gc
import importlib
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

import rewards
from tools import memory
from tools.command_line import parse
from tools.scripts import ROOT, algorithms, nearest
from common import ranks
from common.batch import pad, right_pad
from common.errors import UserError
from common.seeds import derive

USAGE = "[FLAGS]"
NEW_TOKENS, COMPLETIONS = 32, 4  # of the canary: longest completion, in tokens, and completions per prompt
PROMPTS = 8  # whose completions, as long as in the run, are scored
DECODER = "give --model a whole checkpoint of a decoder-only transformer, such as a Llama or a Qwen"
MARK = re.compile(r"^([A-Za-z0-9_.-]+)\s*([^;#]*?)\s*(?:;.*)?(?:#.*)?$")  # a line of requirements.txt: name, version, condition, comment

# completion, reference answer, is it right? In each of --answer-check's ways; an answer that cannot be read is wrong.
ANSWERS = {
    "exact": [
        (r"\boxed{12}", "12", True),
        (r"\boxed{13}, no: \boxed{12}", "12", True),
        (r"\boxed{12.0}", "12", False),
        (r"\boxed{12", "12", False),
        ("12", "12", False),
    ],
    "boxed": [
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"\boxed{x = 5}", "5", True),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", False),
        (r"\boxed{ }", "1", False),
    ],
    "math-verify": [
        (r"\boxed{0.25}", r"\frac{1}{4}", True),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (r"\boxed{\frac23}", r"\frac34", False),
        (r"\boxed{?!}", "4", False),
    ],
}


def main(argv: list[str]) -> None:
    """before a long run, with its flags and --algorithm: is what it needs there, and do its parts agree?"""
    known = algorithms()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--algorithm", nargs="?", default="linear", const="linear")
    name = first.parse_known_args(argv)[0].algorithm
    if name not in known:
        raise UserError(f"doctor: --algorithm {name} does not exist{nearest(name, known)}")
    script = importlib.import_module(f"algos.{name}")

    @dataclass
    class Args(script.Args):
        algorithm: str = name
        """the algorithm that will be trained; its own flags, and those of all scripts, follow here as they will there"""

    failed = examine(parse(Args, name, argv), name)
    ranks.stop()
    if failed:
        sys.exit(1)


class Failed(Exception):
    """What is wrong, and in `fix` what to do about it if that depends on what was found."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.fix = fix


class Skipped(Exception):
    """Why there was nothing to check."""


@dataclass
class Visit:
    """What the checks share: the flags of the run, and what earlier checks have made."""

    args: object  # flags as in a script's Args
    algorithm: str
    made: dict = field(default_factory=dict)
    passed: set = field(default_factory=set)

    def need(self, *checks: str) -> None:
        for check in checks:
            if check not in self.passed:
                raise Skipped(f"needs {check} to pass")


# --- The machine ---


def versions(visit: Visit) -> str:
    from packaging.specifiers import SpecifierSet

    names = ["requirements.txt"]
    if visit.args.engine == "vllm":
        names.append("requirements-vllm.txt" if torch.cuda.is_available() else "requirements-vllm-cpu.txt")
    found, wrong = [f"python {platform.python_version()}"], []
    for file in names:
        for name, pin in requirements(ROOT / file):
            try:
                has = version(name)
            except PackageNotFoundError:
                wrong.append(f"{name} is not installed")
                continue
            if name in ("torch", "transformers", "vllm", "vllm-cpu"):
                found.append(f"{name} {has}")
            if not SpecifierSet(pin).contains(has, prereleases=True):
                wrong.append(f"{name} {has}, not {pin}")
    if wrong:
        raise Failed("; ".join(wrong), f"pip install -r {names[-1]}")
    return ", ".join(found)


def requirements(path: Path) -> list[tuple[str, str]]:
    """Names and version bounds of a requirements file; files that it includes and lines for another system aside."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith(("#", "-"))]
    return [MARK.match(line).groups() for line in lines]


def devices(visit: Visit) -> str:
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        told = f"no GPU; {os.cpu_count()} CPU cores, {threads} thread{'s' * (threads > 1)} per rank, {platform.machine()}"
        slow = visit.args.compute_dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return told + slow * "; it has no instructions for bfloat16, in which it is several times slower than in float32"
    if visit.args.compute_dtype != "float32" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Failed(f"{torch.cuda.get_device_name()} does not compute in bfloat16", "add --compute-dtype float32, or take a newer GPU")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    kinds = {(card.name, card.total_memory): sum(c.name == card.name for c in cards) for card in cards}
    return ", ".join(f"{number} x {name} of {memory.readable(size)}" for (name, size), number in kinds.items())


def processes(visit: Visit) -> str:
    """Starts the group that a run would start, and sums ones over it, on the device and on the CPU."""
    args = visit.args
    visit.made["device"] = device = ranks.start(single=args.engine == "vllm" or args.compute_dtype == "bfloat16")
    count = ranks.count()
    for where in dict.fromkeys((device, torch.device("cpu"))):  # not a set: all ranks must go in one order
        total = ranks.all_sum(torch.ones(3, device=where))
        if not torch.equal(total.cpu(), torch.full((3,), float(count))):
            raise Failed(f"the sum of ones over {count} ranks, on {where.type}, is {total[0]:g}")
    backend = torch.distributed.get_backend_config() if torch.distributed.is_initialized() else "no process group"
    return f"{count} rank{'s' * (count > 1)}, {backend}, a sum of ones is {count}"


# --- Model, data and rewards ---


def model(visit: Visit) -> str:
    from common.model import compute_dtype, load_config, load_tokenizer

    visit.need("ranks")
    args, made = visit.args, visit.made
    made["compute"] = compute_dtype(args.compute_dtype, made["device"])
    made["tokenizer"] = load_tokenizer(args.model, args.trust_remote_code)
    made["config"] = load_config(args.model, args.trust_remote_code)
    try:
        made["shape"] = shape = memory.shape_of(made["config"], args.trust_remote_code)
    except Exception as error:  # a config without attention heads, or a model without layers that could be told apart
        raise Failed(f"--model {args.model}: {made['config'].model_type} is not supported ({_line(error)})", DECODER) from error
    return f"{args.model}: {_count(shape.parameters)} parameters, {shape.layers} layers, vocabulary of {shape.vocab:,}"


def dataset(visit: Visit) -> str:
    from integrations.model_checks import check_tokens, longest_sequence
    from prompts import doubts, load_splits

    visit.need("model")
    args = visit.args
    splits = load_splits(args, visit.made["tokenizer"], visit.made.get("objectives", {}))
    visit.made["prompts"] = splits["train"]
    if args.prompts > len(splits["train"]):
        raise Failed(f"--prompts {args.prompts} is more than the {len(splits['train'])} training prompts", "lower --prompts")
    if args.prompts % (parts := args.mini_batches * ranks.count()):
        told = f"--prompts {args.prompts} cannot be divided among --mini-batches {args.mini_batches} and {ranks.count()} ranks"
        raise Failed(told, f"take a multiple of {parts} for --prompts")
    used = splits["train"].ids + splits[args.eval_split].ids
    try:
        longest_sequence(args.model, visit.made["config"], used, args.max_new_tokens)
    except UserError as error:
        raise Failed(str(error), "lower --max-new-tokens") from error
    visit.made["longest"] = max(map(len, used))
    try:
        check_tokens(args.model, visit.made["config"], visit.made["tokenizer"], used)
    except UserError as error:
        raise Failed(str(error), "mend the tokenizer, or give --model another") from error
    if doubt := doubts(splits["train"], visit.made["tokenizer"], args.model):
        raise Failed(doubt, "give the --dataset that --model was trained to read, or another --model")
    return f"{args.dataset}: " + ", ".join(f"{len(part):,} {name}" for name, part in splits.items())


def reward_functions(visit: Visit) -> str:
    visit.made["objectives"] = rewards.load(visit.args.rewards)
    return ", ".join(visit.made["objectives"])


def answers(visit: Visit) -> str:
    from rewards import accuracy as checker

    wrong = []
    for check, cases in ANSWERS.items():
        texts, golds, right = zip(*cases, strict=True)
        judged = checker.accuracy(completions=list(texts), answer=list(golds), answer_check=check)
        wrong += [
            f"{check} says that {text} is {'right' if said else 'wrong'} for {gold}"
            for text, gold, said, is_right in zip(texts, golds, judged, right, strict=True)
            if said != is_right
        ]
    try:
        checker.accuracy(completions=[r"\boxed{1}"], answer=["?!"], answer_check="math-verify")
        wrong.append("math-verify takes a reference answer that it cannot read")
    except UserError:
        pass
    if wrong:
        raise Failed("; ".join(wrong))
    return f"{sum(map(len, ANSWERS.values())) + 1} known answers judged rightly by {', '.join(ANSWERS)}"


# --- Room ---


def folder(visit: Visit) -> str:
    """A file written to disk, renamed, seen by every rank, and deleted, in the folder that the run's would be made in."""
    target = Path(visit.args.out or "runs")
    made = [path for path in (target, *target.parents) if not path.exists()]  # to be removed again
    old, new = target / "doctor.tmp", target / "doctor"

    def write() -> None:
        try:
            target.mkdir(parents=True, exist_ok=True)
            with open(old, "w") as file:
                file.write("doctor")
                file.flush()
                os.fsync(file.fileno())
            os.replace(old, new)
        except OSError as error:
            raise UserError(f"{target}: {error.strerror}") from error

    def clean() -> None:
        for path in (old, new):
            if not path.is_dir():  # which it is not, and raises on, where `target` is a file
                path.unlink(missing_ok=True)
        for path in made:
            path.rmdir()

    try:
        ranks.on_first(write)
        if not all(ranks.together(new.exists)):
            raise Failed(f"{target} is not one folder for all ranks", "give --out on a disk that all nodes share")
        ranks.on_first(clean)
    except UserError as error:
        raise Failed(str(error)) from error
    return f"{target}: written, flushed, renamed, deleted"


def disk(visit: Visit) -> str:
    visit.need("model")
    target = Path(visit.args.out or "runs").absolute()
    there = next(path for path in (target, *target.parents) if path.is_dir())
    free, needed = shutil.disk_usage(there).free, memory.peak(_terms(visit), disk=1)
    kept = "three" if visit.args.keep_safe else "two"
    what = f"{kept} checkpoints, one more being written, and the model"
    if free < needed:
        raise Failed(f"{target} needs {memory.readable(needed)} for {what}; {memory.readable(free)} are free")
    return f"needs {memory.readable(needed)} of {memory.readable(free)} free: {what}"


def room(visit: Visit) -> str:
    """The formula of tools/memory.py against what is free now, on each GPU and in the memory of the node."""
    visit.need("model", "rewards")
    found, local = _terms(visit), _local_ranks()
    host_free = available_memory()
    if visit.made["device"].type == "cuda":
        places = {"GPU": (memory.peak(found, device=1), torch.cuda.mem_get_info()[0]), "host": (memory.peak(found, host=1), host_free)}
    else:
        places = {"host": (memory.peak(found, device=local, host=1), host_free)}
    told = [f"{name} needs {memory.readable(needed)} of {memory.readable(free)} free" for name, (needed, free) in places.items()]
    largest = sorted((term for term in found if term.where != "disk"), key=lambda term: -term.bytes)[:3]
    told.append("largest: " + ", ".join(f"{term.name} {memory.readable(term.bytes)}" for term in largest))
    if any(needed > free for needed, free in places.values()):
        raise Failed("; ".join(told), _advice(visit, largest[0].name))
    return "; ".join(told)


def _advice(visit: Visit, largest: str) -> str:
    args = visit.args
    advice = ["more ranks"]
    if largest == "activations":
        advice.insert(0, f"a --micro-batch-tokens below {args.micro_batch_tokens}")
        if not args.activation_checkpointing:
            advice.insert(0, "--activation-checkpointing")
    elif largest in ("key-value cache", "probabilities"):
        advice = ["a smaller --prompts, --completions or --max-new-tokens", *advice]
    elif largest == "vLLM":
        advice = [*([] if args.vllm_sleep else ["--vllm-sleep"]), f"a --vllm-memory below {args.vllm_memory:g}", *advice]
    return f"try {', '.join(advice)}, or a smaller --model"


def _terms(visit: Visit) -> list[memory.Term]:
    args, made = visit.args, visit.made
    names = memory.Setup.__dataclass_fields__.keys() & vars(args).keys()
    setup = {name: getattr(args, name) for name in names} | {
        "ranks": ranks.count(),
        "local_ranks": _local_ranks(),
        "sharded": torch.distributed.is_initialized(),
        "compute_bytes": made["compute"].itemsize,
        "max_prompt_length": _longest_prompt(visit),
        "device_bytes": torch.cuda.mem_get_info()[1] if made["device"].type == "cuda" else 0,
        "gradients": len(args.rewards) if args.GRADIENT_PER_OBJECTIVE else 1,
        "kl": args.kl_coef > 0,
    }
    return memory.terms(made["shape"], memory.Setup(**setup))


def _longest_prompt(visit: Visit) -> int:
    """Tokens: of the data, or what the flag allows where the data could not be read."""
    return visit.made.get("longest", visit.args.max_prompt_length)


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def available_memory() -> int:
    """Bytes of host memory that a new process could take: of the machine, or of the container if its limit is nearer. What the kernel
    keeps there of files it gives back. Raises Skipped where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: all there is
        if not hasattr(os, "sysconf"):
            raise Skipped("this system does not tell its memory") from None
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit, used, parts = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current", "stat"))
        files = int(dict(line.split() for line in parts.splitlines())["inactive_file"])
        return free if limit.strip() == "max" else min(free, int(limit) - int(used) + files)
    except (OSError, ValueError, KeyError):
        return free


# --- The parts together ---


def rounding(visit: Visit) -> str:
    """Of the weights as they are stored; those of the policy, which is built below, are spread evenly."""
    visit.need("model", "memory")
    if visit.made["compute"] != torch.bfloat16:
        raise Skipped("computes in float32, in which every step of the optimizer counts")
    middle, on, all_of_them = ranks.on_first(lambda: _stored(visit.args))
    told = f"{middle / all_of_them:.1%} of the weights lie midway between two bfloat16 numbers, {on / all_of_them:.1%} on one"
    return f"{told}: a run spreads them evenly before its first step, so that --lr sets its size"


def _stored(args: object) -> tuple[int, int, int]:
    """How many weights of a checkpoint lie midway between two bfloat16 numbers, how many on one, and how many there are."""
    from common.model import load_whole
    from integrations.rounding import badly_spread

    weights = list(load_whole(args.model, torch.device("cpu"), args.trust_remote_code, "auto").parameters())
    middle, on = map(sum, zip(*map(badly_spread, weights), strict=True))
    return middle, on, sum(map(torch.numel, weights))


def tied(visit: Visit) -> str:
    """Builds the engine and the policy, as a run does, for the checks below too."""
    from common.model import load_model
    from common.rollout import Canary, make_engine
    from integrations.model_checks import check_export
    from integrations.probe import check_architecture

    visit.need("model", "memory")
    args, made = visit.args, visit.made
    length, vllm = _longest_prompt(visit) + args.max_new_tokens, (args.vllm_tp, args.vllm_memory, args.vllm_sleep)
    source = args.model, made["tokenizer"], made["device"], made["compute"]
    made["canary"] = Canary(args.max_logp_gap, made["compute"])
    try:
        made["engine"] = make_engine(args.engine, *source, length, args.seed, args.trust_remote_code, *vllm)
        made["policy"] = policy = load_model(args.model, made["device"], args.trust_remote_code, made["compute"])
        check_architecture(args.model, policy, None if args.engine == "vllm" else made["engine"].model or policy, made["compute"])
        ranks.on_first(lambda: check_export(args.model, policy, made["tokenizer"]))
    except UserError as error:
        raise Failed(str(error), DECODER) from error
    is_tied = policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
    if is_tied != bool(made["config"].get_text_config().tie_word_embeddings):
        raise Failed(f"the config says {'un' * is_tied}tied, and the loaded policy is {'' if is_tied else 'un'}tied")
    return f"{'tied' if is_tied else 'not tied'}, as the config says, loaded{' and sharded' * torch.distributed.is_initialized()}"


def canary(visit: Visit) -> str:
    visit.need("tied embeddings", "dataset")
    return _gap(visit, 0, _prompts(visit, 0))


def rewards_vary(visit: Visit) -> str:
    """The run's rewards on completions of its untrained model: a reward that is the same for all of a prompt teaches nothing there."""
    from common.evaluate import score_batch
    from common.rollout import roll_out
    from prompts import answer_check

    visit.need("rewards", "answer checker", "sampler canary")
    args, made, size = visit.args, visit.made, ranks.count() * -(-PROMPTS // ranks.count())
    prompts = made["prompts"].batch(1, size, args.seed)
    batch = roll_out(made["engine"], made["tokenizer"], prompts, COMPLETIONS, args.max_new_tokens, args.temperature)
    check = answer_check(args.answer_check, args.dataset)
    scores = score_batch(made["objectives"], batch, batch.lengths.mean().item(), check).view(size, COMPLETIONS, -1)
    told = [f"{name} {_spread(own)}" for name, own in zip(made["objectives"], scores.unbind(2), strict=True)]
    found = f"of {size * COMPLETIONS} completions: {'; '.join(told)}"
    if not (scores != scores[:, :1]).any():
        raise Failed(f"{found}: nothing can be learned from them")
    return found


def _spread(scores: Tensor) -> str:
    """In words, how one reward's scores [P, G] differ."""
    if (scores == scores[0, 0]).all():
        return f"{scores[0, 0]:g} for all"
    varied = int((scores != scores[:, :1]).any(1).sum())
    return f"{scores.mean():.2f} on average, differs in {varied} of {len(scores)} prompts" if varied else "the same within every prompt"


def weights_arrive(visit: Visit) -> str:
    """The canary again after all weights have changed: a sampler that kept the old ones, which are the file's, would now be found."""
    visit.need("sampler canary")
    moved = _change_weights(visit, 1.05)
    return f"{_gap(visit, 1, _prompts(visit, 100))}; old weights would be {moved:.1g} away"


def prefix_cache(visit: Visit) -> str:
    """The canary once more, on prompts whose keys and values the cache may still hold from before the weights changed."""
    if visit.args.engine != "vllm":
        raise Skipped(f"the {visit.args.engine} engine has none")
    visit.need("weights arrive")
    _change_weights(visit, 0.9)
    return f"{_gap(visit, 2, _prompts(visit, 100))}; prompts sampled before the weights changed"


def _change_weights(visit: Visit, factor: float) -> float:
    """Scale the policy until the log-probabilities of the last completions have moved well beyond the limit; how far, in nats."""
    before, mask, limit = _trainer_logprobs(visit), visit.made["batch"].mask, visit.made["canary"].limit
    for _ in range(20):
        with torch.no_grad():
            for parameter in visit.made["policy"].parameters():
                parameter.mul_(factor)
        moved = _mean(_trainer_logprobs(visit) - before, mask)
        if moved > 5 * limit:
            return moved
    raise Failed(f"other weights move the policy's log-probabilities by {moved:.1g} nats only: the canary would see nothing")


def _prompts(visit: Visit, start: int) -> list[list[int]]:
    """Training prompts from row `start` on, two per rank; the last is a long one, of which a prefix cache keeps whole blocks."""
    ids, args = visit.made["prompts"].ids, visit.args
    positions = getattr(visit.made["config"].get_text_config(), "max_position_embeddings", None) or 256 + NEW_TOKENS
    longest = min(256, args.max_prompt_length, positions - NEW_TOKENS)
    rows = [ids[(start + i) % len(ids)] for i in range(longest)]
    return [*rows[: 2 * ranks.count() - 1], [token for row in rows for token in row][:longest]]


def _gap(visit: Visit, step: int, prompts: list[list[int]]) -> str:
    """Sync, sample, and compare the log-probabilities of engine and policy."""
    from common.rollout import sample

    args, made, new = visit.args, visit.made, min(NEW_TOKENS, visit.args.max_new_tokens)
    made["engine"].sync(made["policy"], step)
    rollout = sample(made["engine"], prompts, COMPLETIONS, new, args.temperature, [derive(args.seed, i) for i in range(len(prompts))])
    repeated = [prompt for prompt in prompts for _ in range(COMPLETIONS)]
    made["batch"] = batch = pad(repeated, rollout.ids, made["tokenizer"].pad_token_id, made["device"])
    trainer = _trainer_logprobs(visit)
    difference = trainer - right_pad(rollout.logprobs, trainer)
    mean, limit = _mean(difference, batch.mask), made["canary"].limit
    told = f"mean gap {mean:.1e} nats over {int(batch.mask.sum())} tokens, largest {difference.abs().max().item():.1e}; limit {limit:g}"
    if rollout.version != step:
        raise Failed(f"the sampler has the weights of step {rollout.version}, not of {step}")
    if not mean <= limit:  # a NaN is no pass
        raise Failed(told)
    return told


def _trainer_logprobs(visit: Visit) -> Tensor:
    from common.model import token_logprobs_no_grad

    return token_logprobs_no_grad(visit.made["policy"], visit.made["batch"], visit.args.temperature, visit.args.micro_batch_tokens)


def _mean(difference: Tensor, mask: Tensor) -> float:
    return ((difference.abs() * mask).sum() / mask.sum()).item()


# --- The page ---

CHECKS: list[tuple[str, Callable[[Visit], str], str]] = [  # name, check, the fix if the check names no better one
    # first, so that what follows is checked on every rank
    ("ranks", processes, "start one rank per GPU with torchrun --nproc_per_node N; NCCL_DEBUG=INFO says where a group fails"),
    ("versions", versions, "pip install -r requirements.txt"),
    ("devices", devices, "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"),
    ("model", model, "give --model a hub name you have access to (hf auth login), a folder with config.json and *.safetensors, or testbed"),
    ("rewards", reward_functions, "correct --rewards; each is module:function or file.py:function"),
    ("dataset", dataset, "correct --dataset, --prompt-column or --answer-column; a hub name needs a network"),
    ("answer checker", answers, "pip install -r requirements.txt, and undo changes to rewards/accuracy.py: every reward would be wrong"),
    ("out folder", folder, "give another --out, on a disk that this user can write to"),
    ("disk", disk, "free some, or give --out on a larger disk"),
    ("memory", room, "use more ranks or a smaller --model"),
    ("rounding", rounding, DECODER),
    ("tied embeddings", tied, "check tie_word_embeddings in the model's config.json; --engine transformers rules the sampler out"),
    ("sampler canary", canary, "compare with --engine transformers and --compute-dtype float32; a gap there is a bug to report"),
    (
        "rewards vary",
        rewards_vary,
        "look at the rewards with run.py score; raise --max-new-tokens if completions are cut off, or take easier prompts",
    ),
    (
        "weights arrive",
        weights_arrive,
        "sync does not reach the sampler: install requirements-vllm.txt, or take --engine transformers",
    ),
    ("prefix cache", prefix_cache, "the cache outlives a sync: install requirements-vllm.txt, or take --engine transformers"),
]


def examine(args: object, algorithm: str) -> int:
    """Run every check with the flags of the run and print a line for each (rank 0 does). Collective. Returns how many failed."""
    visit = Visit(args, algorithm)
    counts = dict.fromkeys(("pass", "FAIL", "skip"), 0)
    _say(f"{algorithm}: {args.model} on {args.dataset}, engine {args.engine}\n")
    for name, check, default_fix in CHECKS:
        state, found, fix = _worst(ranks.together(lambda check=check, fix=default_fix: _attempt(check, visit, fix)))
        if state == "pass":
            visit.passed.add(name)
        counts[state] += 1
        _say(_entry(f"{state}  {name}", found))
        if state == "FAIL":
            _say(_entry("", f"fix: {fix}"))
    visit.made.clear()
    gc.collect()  # vLLM takes leave of the process group when its engine is collected, which must be before the group is gone
    _say(f"\n{counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return counts["FAIL"]


def _attempt(check: Callable[[Visit], str], visit: Visit, fix: str) -> tuple[str, str, str]:
    """(pass, FAIL or skip; what was found; the fix). Any error is a failure: a doctor that falls ill helps nobody."""
    try:
        return "pass", check(visit), ""
    except Skipped as reason:
        return "skip", str(reason), ""
    except Failed as failure:
        return "FAIL", str(failure), failure.fix or fix
    except UserError as error:
        return "FAIL", str(error), fix
    except Exception as error:
        return "FAIL", f"{type(error).__name__}: {_line(error)}", fix


def _worst(outcomes: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    """One outcome for all ranks: the first failure, else the first skip, else what rank 0 found."""
    rank = min(range(len(outcomes)), key=lambda i: ("FAIL", "skip", "pass").index(outcomes[i][0]))
    state, found, fix = outcomes[rank]
    alone = len({outcome[0] for outcome in outcomes}) > 1
    return state, f"rank {rank}: {found}" if alone else found, fix


def _entry(head: str, text: str) -> str:
    width = min(max(shutil.get_terminal_size().columns, 80), 140)
    indents = {"initial_indent": head.ljust(23), "subsequent_indent": " " * 23}
    return textwrap.fill(text, width, **indents, break_on_hyphens=False, break_long_words=False)  # a path stays one word


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # also before there is a group
        print(text, flush=True)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0]


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"
