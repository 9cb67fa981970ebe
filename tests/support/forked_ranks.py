"""Runs scripts on several ranks, some of them killed and resumed: `python tests/support/forked_ranks.py JOBS.json`.

Importing torch takes longer than a short run; so one process imports everything, loads data and model, and then forks the ranks of every
run from itself. No other thread is alive in it by then, which makes the fork safe. JOBS.json is a list of
    {"script": name, "ranks": W, "folder": out, "kill_after": step or 0, "argv": flags}
Every rank saves what it saw of each step's advantages to <folder>/../<name of folder>.rank<r>.pt.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

for name in [name for name in os.environ if name.startswith("PYTEST")]:
    del os.environ[name]  # a run by hand has none
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.distributed.checkpoint  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402, F401

import common.curves  # noqa: E402
import common.setup  # noqa: E402
from tools.command_line import parse  # noqa: E402
from common.errors import plain_errors  # noqa: E402
from common.model import load_whole  # noqa: E402
from prompts import load_prompts  # noqa: E402
from testbed.arithmetic import tokenizer  # noqa: E402

SEEN: list[torch.Tensor] = []  # what this rank took for the advantages
PATIENCE = 240  # seconds for one run


def child(job: dict, rank: int, port: int) -> None:
    """One rank of a run: the script's main, as torchrun would start it."""
    torch.set_num_threads(1)
    log = open(f"{job['folder']}.rank{rank}.log", "w")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if job["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"]), "LOCAL_WORLD_SIZE": str(job["ranks"])}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = import_module(f"algos.{job['script']}")
    with plain_errors():
        script.main(parse(script.Args, job["script"], job["argv"]))
    torch.save(SEEN, f"{job['folder']}.rank{rank}.pt")


def start(job: dict) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(job, rank, port)
                code = 0
            except SystemExit as exit:
                code = int(exit.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def wait(pids: list[int]) -> list[int]:
    """Exit codes; all are killed once one has failed, as torchrun does, or when they take too long."""
    codes, deadline = {}, time.time() + PATIENCE
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) or time.time() > deadline:
            time.sleep(0.5)  # for the others to say what they have to say
            kill(set(pids) - codes.keys())
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def kill(pids) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main(path: str) -> None:
    jobs = json.loads(Path(path).read_text())
    # what every rank would compute again at its start
    data = load_prompts("arithmetic", tokenizer(), "", "", "", 1024)
    load_whole("testbed", torch.device("cpu"))
    common.setup.load_splits = lambda *_: data
    for module in map(import_module, {f"algos.{job['script']}" for job in jobs}):
        covariance = module.within_prompt_covariance
        module.within_prompt_covariance = lambda weight, *rest, real=covariance: (SEEN.append(weight.clone()), real(weight, *rest))[1]
    common.curves.draw = lambda *_: None  # a third of such a short run's time; other tests look at the picture
    gc.freeze()  # or the first collection in every rank would copy all that it shares with this process
    for job in jobs:
        pids = start(job)
        if job["kill_after"]:
            checkpoint = Path(job["folder"]) / "checkpoints" / f"step_{job['kill_after']:06d}"
            while not checkpoint.exists():  # the kill comes in the step after this checkpoint, or later
                if os.waitpid(pids[0], os.WNOHANG)[0]:
                    raise SystemExit(f"{job['folder']} ended before it could be killed: see its log")
                time.sleep(0.005)
            kill(pids)
            wait(pids)
            with open(Path(job["folder"]) / "metrics.jsonl", "a") as file:
                file.write('{"step": 5, "rewa')  # killed while it wrote
            job = job | {"argv": ["--resume", job["folder"]]}
            pids = start(job)
        codes = wait(pids)
        if any(codes):
            raise SystemExit(f"{job['folder']}: exit codes {codes}\n" + Path(f"{job['folder']}.rank0.log").read_text()[-3000:])


if __name__ == "__main__":
    main(sys.argv[1])
