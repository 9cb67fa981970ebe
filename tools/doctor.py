"""`python run.py doctor`: what the start of a run does not check by itself, with the flags it will
have. Are the packages those it was tested with, do the ranks reach one another, do the rewards tell
completions apart, does the sampler follow when the weights change?

It starts as the run would, so what a start refuses is refused here, in the same words. It takes as
long as sampling two steps, and leaves no file.
"""

import os
import re
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import torch
from packaging.specifiers import SpecifierSet

from common import launch, ranks
from common.checkpoint import load_checkpoint
from common.errors import require
from common.evaluate import score
from common.log import new_folder
from common.model import token_logprobs_no_grad
from common.rollout import roll_out
from common.run import Run
from tools.scripts import ROOT, algorithms, nearest

USAGE = "[ALGORITHM] [FLAGS]"


def main(argv: list[str]) -> None:
    """before a long run, with its flags: do ranks, sampler and rewards do their part?"""
    name = argv.pop(0) if argv and argv[0][0] != "-" else "linear"
    require(name in algorithms(), f"doctor: no algorithm {name}{nearest(name, algorithms())}")
    examine(name, launch.parse(import_module(f"algos.{name}").Args, name, argv))
    ranks.stop()


def examine(name: str, args) -> None:
    """Look at all that a run of the script `name` with these flags needs, and print a line for
    each. Collective. Raises UserError at the first thing that would spoil it."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    say(f"device    {card}, {os.cpu_count()} CPU cores")
    say(f"versions  {versions(args.engine)}")
    run = Run(args, name)
    import_module(f"algos.{name}").controller(args, run.objectives, run.device)
    count = ranks.count()
    total = ranks.all_sum(torch.tensor(ranks.rank() + 1, device=run.device)).item()
    told = f"{count}, and the numbers from 1 to {count} add up to {total}"
    require(total == sum(range(count + 1)), f"ranks: {told}; NCCL_DEBUG=INFO says more")
    say(f"ranks     {told}")
    policy, _ = run.load_models()
    if args.resume:
        load_checkpoint(Path(args.resume), policy)
    else:
        ranks.on_first(lambda: new_folder(args.out, name).rmdir())
    prompts = run.held_out.batch(1, args.prompts, args.seed)
    limit, run.canary.limit = run.canary.limit, inf  # it is held against the gaps here

    def gap() -> float:  # of the sampler and the policy, nats per token
        logp = token_logprobs_no_grad(policy, batch, args.temperature, args.micro_batch_tokens)
        return run.canary.check(step, batch, logp)["sampler/gap"]

    for step in (1, 2):  # of the same prompts: a cache may still hold them
        run.engine.sync(policy, step - 1)
        batch = roll_out(run.engine, run.tokenizer, prompts, args)
        found = gap()
        told = f"{found:.1e} nats from the trainer after sync {step}, --max-logp-gap {limit:g}"
        require(found <= limit, f"--engine {args.engine} has old weights, or differs: {told}")
        say(f"sampler   {told}")
        if step == 1:
            say(f"rewards   {differences(run, batch)}")
            for _ in range(20):  # until the canary would see old weights by far
                for parameter in policy.parameters():
                    parameter.data.mul_(1.05)
                if (moved := gap()) > 5 * limit:
                    break
            say(f"          all weights are changed: the old ones are {moved:.1g} nats away")
    say(f"python run.py {name} can start with these flags")


def say(line: str) -> None:
    """Print a line, once for all ranks, also before there is a group of them."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def versions(engine: str) -> str:
    """Of what the requirements name. Raises UserError where one is not as they ask; a package that
    is missing, a start tells."""
    files = ["requirements.txt", *["requirements-vllm.txt"] * (engine == "vllm")]
    text = "\n".join((ROOT / file).read_text() for file in files)
    found = []
    for package, pin in sorted(re.findall(r"^([\w-]+)([=<>]\S+)", text, re.M)):
        with suppress(PackageNotFoundError):
            has = version(package)
            fits = SpecifierSet(pin).contains(has, prereleases=True)
            require(fits, f"{package} is {has}: pip install '{package}{pin}'")
            found.append(f"{package} {has}")
    return ", ".join(found)


def differences(run: Run, batch) -> str:
    """In how many prompts each reward tells the untrained model's completions apart. Raises
    UserError where none does in any."""
    of, length = batch.sampled, batch.lengths.mean().item()
    scores = score(run.functions, of.texts, of.ids, of.columns, length, run.answer_check)
    scores = scores.view(-1, run.args.completions, len(run.objectives))
    best = scores.nan_to_num(-inf).amax(1, keepdim=True)  # what does not apply differs from nothing
    counts = (scores < best).any(1).sum(0).tolist()
    each = [f"{name} in {count}" for name, count in zip(run.objectives, counts, strict=True)]
    told = f"of {len(scores)} prompts, completions differ by {', '.join(each)}"
    require(any(counts), f"--rewards: nothing can be learned: {told}; look with run.py score")
    return told
