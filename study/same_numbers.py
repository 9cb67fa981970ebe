"""Do two checkouts train the same numbers? Every script, both estimators, one and two ranks,
stopped and resumed, compared byte by byte.

    git worktree add --detach /tmp/before COMMIT
    python study/same_numbers.py /tmp/before . [SCRIPT ...]

Compared are metrics.jsonl but for `time/*`, statistics.jsonl, completions.jsonl, the values of the
flags that both have in args.json, and every file of model/. Scripts and flags that only one has are
named; the end of what a run printed is told where it fails.
What fails in both, as one update a step in `ratchet` does, is counted apart.
"""

import json
import os
import runpy
import shutil
import sys
import tempfile
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from random import randrange

import tyro
from tyro.conf import Positional

SMALL = "--steps 4 --checkpoint-every 2 --eval-every 2 --eval-prompts 8 --prompts 4 --completions 4"
MORE = "--kl-coef 0 --epochs 2 --lr-schedule linear --micro-batch-tokens 512 --tis-cap 2"
RUNS = {  # flags by the names of the runs
    "reinforce": "--estimator reinforce",
    "reinforce-2-ranks": "--estimator reinforce",
    "grpo": "--estimator grpo",
    "grpo-2-ranks": "--estimator grpo",
    "variants": f"--estimator grpo --dual-clip 3 {MORE}",
    "one-update": "--estimator grpo --mini-batches 1 --temperature 0.7 --seed 3",
}
FILES = ["metrics.jsonl", "statistics.jsonl", "completions.jsonl", "args.json"]


# --- training, in a process that has one checkout on its path ---


def train(checkout: Path, out: Path, again: bool, scripts: list[str]) -> None:
    """All runs into `out`, and with `again` those of one rank once more from their checkpoint
    before the last, into NAME-resumed. Forked, because importing takes longer than such a run."""
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    for script in scripts:
        file = import_module(f"algos.{script}").__file__
        for name, flags in RUNS.items():
            folder, ranks = out / f"{script}-{name}", 1 + name.endswith("2-ranks")
            start(file, f"{SMALL} {flags} --out {folder}", folder, ranks)
            if again and ranks == 1 and (folder / "model").exists():
                copy = out / f"{script}-{name}-resumed"
                shutil.copytree(folder, copy)
                shutil.rmtree(copy / "model")
                shutil.rmtree(max((copy / "checkpoints").glob("step_*")))
                start(file, f"--resume {copy}", copy, 1)


def start(file: str, flags: str, folder: Path, ranks: int) -> None:
    """Run a script on its ranks and wait."""
    log, processes = f"{folder}.log", []
    world = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": randrange(20000, 60000)}
    for rank in range(ranks):
        own = world | {"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
        arguments = (file, flags, own, os.devnull if rank else log)
        processes.append(get_context("fork").Process(target=child, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        print(f"{folder.name} failed:\n{Path(log).read_text()[-2000:]}", flush=True)


def child(file: str, flags: str, environment: dict[str, object], log: str) -> None:
    with open(log, "w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.environ |= {name: str(value) for name, value in environment.items()}
    sys.argv = [file, *flags.split()]
    runpy.run_path(file, run_name="__main__")


# --- comparing ---


def content(file: Path) -> object:
    """What a file of a run says, without clock readings; of a missing one, its name."""
    if not file.exists():
        return {str(file): "is not there"}
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return json.loads(file.read_text()) if file.name == "args.json" else file.read_bytes()


def differences(left: Path, right: Path) -> list[str]:
    """The files of two run folders that differ, and of the flags that both have those that do."""
    models = {f"model/{file.name}" for run in (left, right) for file in (run / "model").glob("*")}
    both = {name: (content(left / name), content(right / name)) for name in [*FILES, *models]}
    one, other = both.pop("args.json")
    found = [name for name, (a, b) in both.items() if a != b]
    flags = (one.keys() & other.keys()) - {"out"}
    return found + [f"--{flag}" for flag in flags if one[flag] != other[flag]]


def compare(left: Path, right: Path) -> bool:
    """Print what differs between the runs of two folders; whether anything does."""
    names = sorted(log.stem for log in right.glob("*.log"))
    pairs = {name: (left / name.removesuffix("-resumed"), right / name) for name in names}
    ran = {name: pair for name, pair in pairs.items() if any(map(Path.exists, pair))}
    alone, faults = set(), 0
    for name, pair in ran.items():
        one, other = (content(run / "args.json").keys() for run in pair)
        alone |= one ^ other
        if found := differences(*pair):
            faults += 1
            print(f"{name}: {', '.join(found)} differ")
    print(f"flags that one checkout alone has: {', '.join(sorted(alone)) or 'none'}")
    failed = len(pairs) - len(ran)
    print(f"{len(ran)} pairs of runs compared, {faults} differ; {failed} failed in both")
    return faults > 0 or not ran


def main(left: Positional[Path], right: Positional[Path], scripts: Positional[list[str]]) -> bool:
    """Train both checkouts in a temporary folder, and compare; whether anything differs. No
    scripts: all that both have."""
    files = ((checkout / "algos").glob("[a-z]*.py") for checkout in (left, right))
    one, other = ({file.stem for file in each} for each in files)
    print(f"in one checkout alone: {', '.join(sorted(one ^ other)) or 'none'}", flush=True)
    scripts = sorted((one & other).intersection(scripts or one))
    if not scripts:
        sys.exit("no script of that name is in both")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        for checkout, name in ((left, "left"), (right, "right")):
            out = Path(temporary) / name
            out.mkdir()
            arguments = (checkout.resolve(), out, checkout is right, scripts)
            training = get_context("spawn").Process(target=train, args=arguments)
            training.start()
            training.join()
            if training.exitcode:
                return True  # it has said why
        return compare(Path(temporary) / "left", Path(temporary) / "right")


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
