"""Runs Python commands in forks of itself: importing torch takes longer than most of what the
tests start.

A request is a line of JSON: what `run_script` (running.py) is given, and files for the output. So
is the answer, an exit code. A fork has the libraries, and none of this project's modules. Of
several ranks each is told its place as torchrun tells it, and all are stopped when one fails. No
thread but the first is alive when a fork is made, so it is safe.
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
from importlib import import_module

LIBRARIES = ("matplotlib.figure", "torch._dynamo", "torch.distributed.fsdp", "tyro")
LIBRARIES += ("transformers.models.llama.modeling_llama", "transformers.generation", "pytest")
PATIENCE = 300  # seconds for a command


def become(request: dict) -> None:
    """In a fork: take the request's place in the system and run its command."""
    output = os.O_WRONLY | os.O_APPEND
    opened = [os.open(os.devnull, os.O_RDONLY), *(os.open(f, output) for f in request["output"])]
    for number, file in enumerate(opened):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["env"])
    letters = os.environ.get("PYTHONIOENCODING")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "rw"[number > 0], encoding=letters)  # noqa: SIM115
        for number in (0, 1, 2)
    )
    os.chdir(request["cwd"])
    first, *rest = request["command"]
    sys.path[1:1] = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif ":" in first:  # file:function
        file, _, function = first.rpartition(":")
        sys.path[0] = os.path.dirname(file)
        runpy.run_path(file)[function](*rest)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(first)), [first, *rest]
        runpy.run_path(first, run_name="__main__")


def leave(request: dict) -> None:
    """Run the command and end as a process does, but for the taking apart of all that was
    imported, which takes seconds."""
    code = 1
    try:
        become(request)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
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
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(ranks))
    return [meeting | sizes | dict.fromkeys(("RANK", "LOCAL_RANK"), f"{r}") for r in range(ranks)]


def wait(pids: list[int], kill_at: str | None) -> int:
    """The first exit code that is not 0. Once there is one, the others have a second for what they
    have to say; all have PATIENCE, and until there is a file kill_at."""
    alive, code, deadline = set(pids), 0, time.monotonic() + PATIENCE
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in alive:
            alive.remove(pid)
            if not code and (code := os.waitstatus_to_exitcode(status)):
                deadline = time.monotonic() + 1
        elif time.monotonic() > deadline or (kill_at and os.path.exists(kill_at)):
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            deadline, kill_at = float("inf"), None
        else:
            time.sleep(0.002)
    return code


if __name__ == "__main__":
    for library in LIBRARIES:
        import_module(library)
    gc.freeze()  # or the first collection in every fork would copy all that it shares
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for place in places(request["ranks"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                request["env"] |= place
                leave(request)
        print(wait(pids, request["kill_at"]), flush=True)
    os._exit(0)
