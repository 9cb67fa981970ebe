"""Runs Python commands in forks of itself: importing torch takes longer than most of what the tests start.

A request is a line, {"command": ["run.py", ...] or ["-m", module, ...], "ranks": W, "cwd": ..., "env": {...}, "stdout": file, "stderr":
file}, and so is the answer, an exit code. A fork has the libraries, and none of this project's modules. Of several ranks each is told its
place as torchrun tells it, and all are stopped when one fails. No thread but the first is alive when a fork is made, so it is safe.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback

PATIENCE = 600  # seconds for a command


def warm() -> None:
    """Import the libraries that a run takes."""
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.run
    import tyro  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    torch.set_num_threads(1)


def become(request: dict) -> None:
    """In a fork: take the request's place in the system and run its command."""
    appending = os.O_WRONLY | os.O_APPEND
    for number, flags, name in ((0, os.O_RDONLY, os.devnull), (1, appending, request["stdout"]), (2, appending, request["stderr"])):
        os.dup2(os.open(name, flags), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    first, *rest = request["command"]
    sys.path[1:1] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(first)), [first, *rest]
        runpy.run_path(first, run_name="__main__")


def leave(request: dict) -> None:
    """Run the command and end as a process does, but for the taking apart of all that was imported, which takes seconds."""
    code = 1
    try:
        become(request)
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 1
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each rank; nothing where there is one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [meeting | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def wait(pids: list[int]) -> int:
    """The first exit code that is not 0. Once there is one, the others have a second for what they have to say; all have PATIENCE."""
    alive, code, deadline = set(pids), 0, time.monotonic() + PATIENCE
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in alive:
            alive.remove(pid)
            if not code and (code := os.waitstatus_to_exitcode(status)):
                deadline = time.monotonic() + 1
        elif time.monotonic() > deadline:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.002)
    return code


if __name__ == "__main__":
    warm()
    gc.freeze()  # or the first collection in every fork would copy all that it shares with this process
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for place in places(request["ranks"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                request["env"] |= place
                leave(request)
        print(wait(pids), flush=True)
