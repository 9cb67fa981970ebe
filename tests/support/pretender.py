"""A script that only pretends to train, for the commands that run scripts by the dozen."""

import json
from dataclasses import asdict
from pathlib import Path

from algos.linear import Args
from support.folders import NAMES

SOURCE = """
import json, sys, time
from pathlib import Path
here, (*words, how, folder) = Path(__file__).parent, sys.argv[1:]
folder = Path(folder)
with open(here / "started.txt", "a") as file:
    print(folder.name + how, file=file)
if (here / f"fail-{folder.name}").exists():
    sys.exit("error: the disk is full")
if how == "--out":
    folder.mkdir(parents=True)
    args = json.loads((here / "args.json").read_text())
    for flag, value in zip(words[::2], words[1::2]):
        key = flag[2:].replace("-", "_")
        args[key] = type(args[key])(value)
    (folder / "args.json").write_text(json.dumps(args))
args = json.loads((folder / "args.json").read_text())
first = max([-1, *(int(p.name[5:]) for p in folder.glob("checkpoints/step_??????"))]) + 1
metrics = folder / "metrics.jsonl"
lines = metrics.read_text().splitlines(keepends=True)[:first] if first else []
metrics.write_text("".join(lines))
for step in range(first, args["steps"] + 1):
    row = {"step": step, "time/update": 1.0, "loss/kl": 0.0}
    for name in (*args["objectives"], "length"):
        for key in (f"eval/{name}", f"eval/greedy/{name}"):
            row |= {key: 0.02 + 0.01 * step, f"{key}_se": 0.01}
        row |= {f"cov/{name}": 0.0, f"weight_share/{name}": 0.3}
    with open(metrics, "a") as file:
        file.write(json.dumps(row) + "\\n")
    if step % 2 == 0 and step:
        (folder / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    end = time.monotonic() + 60
    while step in (2, 3) and (here / "wait").exists() and time.monotonic() < end:
        time.sleep(0.02)
(folder / "model").mkdir()
"""


def make_pretender(folder: Path) -> Path:
    """A script in `folder` that takes linear's flags, writes a line per step and a checkpoint at
    every second one. Beside it `started.txt` says what was started, a file `wait` stops each run at
    steps 2 and 3, and `fail-NAME` lets one fail."""
    folder.mkdir()
    args = {"script": "linear", "objectives": NAMES} | asdict(Args())
    (folder / "args.json").write_text(json.dumps(args))
    (folder / "fake.py").write_text(SOURCE)
    return folder / "fake.py"
