"""Do two checkouts train the same numbers? Every script, both estimators, one and two ranks, stopped and resumed, compared byte by byte.

    git worktree add --detach /tmp/before COMMIT
    python study/same_numbers.py /tmp/before . [SCRIPT ...]

Compared are metrics.jsonl but for `time/*`, statistics.jsonl, completions.jsonl, args.json but for its folder, every file of model/, and
what was printed. A run of the first checkout is also resumed by the second, from its checkpoint. Scripts that only one has are named.
"""

import filecmp
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

SMALL = ["--steps", "4", "--checkpoint-every", "2", "--eval-every", "2", "--eval-prompts", "16", "--prompts", "4", "--completions", "4"]
MORE = {  # settings that take other paths through the loop
    "variants": "--kl-coef 0 --epochs 2 --lr-schedule linear --micro-batch-tokens 512 --tis-cap 2 --dual-clip 3",
    "one-update": "--mini-batches 1 --temperature 0.7 --seed 3",
}
PATIENCE = 300  # seconds for one run


def jobs(scripts: list[str]) -> list[dict]:
    """name, script, ranks and flags of every run."""
    found = []
    for script in scripts:
        for estimator in ("reinforce", "grpo"):
            flags = [*SMALL, "--estimator", estimator]
            found += [{"name": f"{script}-{estimator}-{n}", "script": script, "ranks": n, "argv": flags} for n in (1, 2)]
        for name, more in MORE.items():
            flags = [*SMALL, "--estimator", "grpo", *more.split()]
            found.append({"name": f"{script}-{name}-1", "script": script, "ranks": 1, "argv": flags})
    return found


# --- training, in a process that has one checkout on its path ---


def train(checkout: Path, out: Path, resumed: Path | None, scripts: list[str]) -> None:
    """All runs of a checkout into `out`, then each again from its first checkpoint, into <name>-resumed; with `resumed`, the runs of that
    folder from theirs, into <name>-taken-over. Forked, because importing takes longer than such a run."""
    sys.path.insert(0, str(checkout))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch._dynamo
    import torch.distributed.checkpoint  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    scripts = [script for script in scripts_of(checkout) if script in (scripts or [script])]
    for script in scripts:
        import_module(f"algos.{script}")
    for job in jobs(scripts):
        folder = out / job["name"]
        start(job, [*job["argv"], "--out", str(folder)], folder)
        for source, ending in ((out, "resumed"), (resumed, "taken-over")):
            if source and job["ranks"] == 1 and (source / job["name"]).exists():
                copy = out / f"{job['name']}-{ending}"
                shutil.copytree(source / job["name"], copy)
                shutil.rmtree(copy / "checkpoints" / "step_000004")
                shutil.rmtree(copy / "model")
                start(job, ["--resume", str(copy)], copy)


def scripts_of(checkout: Path) -> list[str]:
    return sorted(path.stem for path in (checkout / "algos").glob("[a-z]*.py"))


def start(job: dict, argv: list[str], folder: Path) -> None:
    """Run a script on its ranks and wait. What rank 0 prints goes to <folder>.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(job["ranks"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            child(job, argv, folder, rank, port)
    signal.alarm(PATIENCE)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    signal.alarm(0)
    if any(codes):
        sys.exit(f"{folder}: exit codes {codes}; see {folder}.log")


def child(job: dict, argv: list[str], folder: Path, rank: int, port: int) -> None:
    code = 1
    try:
        import torch

        torch.set_num_threads(1)
        log = open(f"{folder}.log" if rank == 0 else os.devnull, "w")  # noqa: SIM115
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if job["ranks"] > 1:
            world = str(job["ranks"])
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = [f"{job['script']}.py", *argv]
        runpy.run_path(str(Path(import_module(f"algos.{job['script']}").__file__)), run_name="__main__")
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- comparing ---


def differences(left: Path, right: Path) -> list[str]:
    """The files of two run folders that differ."""
    found = []
    for name in ("metrics.jsonl", "statistics.jsonl", "completions.jsonl", "args.json"):
        if content(left / name) != content(right / name):
            found.append(f"{name} ({flags_apart(left / name, right / name)})" if name == "args.json" else name)
    if printed(left) != printed(right):
        found.append("output")
    names = sorted({path.name for folder in (left, right) for path in (folder / "model").iterdir()})
    _, unequal, alone = filecmp.cmpfiles(left / "model", right / "model", names, shallow=False)
    return found + [f"model/{name}" for name in (*unequal, *alone)]


def content(path: Path) -> str:
    """The text of a file of a run folder, without clock readings and folder."""
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return "\n".join(json.dumps({k: v for k, v in row.items() if not k.startswith("time/")}) for row in rows)
    if path.name == "args.json":  # in whatever order
        return json.dumps(json.loads(path.read_text()) | {"out": ""}, sort_keys=True)
    return path.read_text()


def flags_apart(left: Path, right: Path) -> str:
    """The flags that only one of two runs has, or that differ."""
    one, other = (json.loads(path.read_text()) | {"out": ""} for path in (left, right))
    return ", ".join(sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)))


def printed(folder: Path) -> str:
    """The verdict of a run as it was printed, without progress bars and folder."""
    text = Path(f"{folder}.log").read_text().replace(str(folder), "RUN")
    return "\n".join(line for line in re.split(r"[\r\n]+", text) if not re.search(r"\d+%\||\d+step", line))


def main(left: Path, right: Path, scripts: list[str]) -> None:
    """Train both checkouts in a temporary folder and print what differs; exit code 1 if anything does. No scripts: all."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / "left", Path(temporary) / "right"]
        for checkout, out, resumed in ((left, folders[0], "-"), (right, folders[1], str(folders[0]))):
            out.mkdir()
            command = [sys.executable, str(Path(__file__).resolve()), "--train", str(checkout.resolve()), str(out), resumed, *scripts]
            subprocess.run(command, check=True, cwd=checkout)
        for name in sorted({*scripts_of(left)} ^ {*scripts_of(right)}):
            print(f"{name}: in one checkout alone, not compared")
        both = {*scripts_of(left)} & {*scripts_of(right)}
        sys.exit(compare(*folders, [name for name in sorted(both) if name in (scripts or both)]))


def compare(left: Path, right: Path, scripts: list[str]) -> bool:
    """Print what differs between the runs of two folders; whether anything does."""
    faults = compared = 0
    for job in jobs(scripts):
        pairs = [(left / job["name"], right / job["name"])]
        if job["ranks"] == 1:
            pairs += [(left / job["name"], right / f"{job['name']}-{ending}") for ending in ("resumed", "taken-over")]
        for one, other in pairs:
            # a resumed run prints no line about the evaluation before its first step
            found = [name for name in differences(one, other) if name != "output" or one.name == other.name]
            compared += 1
            if found:
                faults += 1
                print(f"{other.name}: {', '.join(found)} differ")
    print(f"{compared} pairs of runs compared, {faults} differ")
    return bool(faults)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        checkout, out, resumed, *scripts = sys.argv[2:]
        train(Path(checkout), Path(out), None if resumed == "-" else Path(resumed), scripts)
    elif len(sys.argv) >= 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(__doc__)
