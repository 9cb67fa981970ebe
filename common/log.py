"""What a run leaves in its folder: args.json, the LOGS, and optionally a tracker."""

import json
import os
from importlib import import_module
from pathlib import Path

from torch import Tensor

from common import ranks
from common.errors import require, told_as
from common.runs import read_rows, write_whole

LOGS = ("metrics.jsonl", "completions.jsonl", "training_completions.jsonl", "statistics.jsonl")


def new_folder(out: str, name: str) -> Path:
    """Make --out, or runs/<name>, numbered when taken. Raises UserError if --out exists."""
    folder, number = Path(out or f"runs/{name}"), 1
    while folder.exists() and not out:
        number += 1
        folder = Path(f"runs/{name}-{number}")
    told = f"--out {out} exists already; give another folder, or continue with --resume {out}"
    require(not folder.exists(), told)
    folder.mkdir(parents=True)
    return folder


class Log:
    """Writes on rank 0; the other ranks only listen. Raises UserError, on every rank, if a file
    cannot be written or the tracker cannot start."""

    def __init__(self, folder: Path, config: dict, last_step: int | None) -> None:
        """config: goes into args.json. last_step: of a resumed run, whose later lines go."""
        self.folder, self.track, self.close = folder, None, lambda: None
        ranks.on_first(lambda: self._open(config, last_step))

    def _open(self, config: dict, last_step: int | None) -> None:
        write_whole(self.folder / "args.json", json.dumps(config, indent=2) + "\n")
        if last_step is not None:
            self.cut(last_step)
        name = config["track"]
        then = f": pip install {name}, log in, or leave it out"
        with told_as(f"--track {name} could not start", then):
            if name == "tensorboard":
                made = import_module("torch.utils.tensorboard").SummaryWriter
                board = made(str(self.folder), purge_step=(last_step or -1) + 1)
                self.track = lambda row, step: [board.add_scalar(k, row[k], step) for k in row]
                self.close = board.close
            elif name:  # the two have the same calls
                os.environ.setdefault("WANDB_DIR", str(self.folder))
                tracker = import_module(name)
                of = {"project": "cleanmoa", "name": self.folder.name, "config": config}
                of |= {} if last_step is None else {"resume": "allow"}  # trackio: that of this name
                if past := sorted(self.folder.glob("wandb/*run-*")):
                    of["id"] = past[-1].name.rpartition("-")[2]
                tracker.init(**of)
                self.track, self.close = tracker.log, tracker.finish

    def cut(self, last_step: int) -> None:
        """Drop the lines of later steps, and one that is half written."""
        for name in LOGS:
            path = self.folder / name
            rows = read_rows(path) if path.exists() else []
            kept = [row for row in rows if row["step"] <= last_step]
            told = f"--resume {self.folder}: {name} was cut short, and lacks steps that were taken"
            require(name != LOGS[0] or len(kept) >= last_step, told)  # one may be pending
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, name: str, rows: list[dict]) -> None:
        """Add lines to one of LOGS, null for what JSON cannot hold."""
        # once there and back: parse_constant is asked what NaN and infinity are
        plain = json.loads(json.dumps(rows), parse_constant=lambda name: None)
        text = "".join(json.dumps(row) + "\n" for row in plain)

        def write() -> None:
            then = f": make room, then --resume {self.folder}"
            told = told_as(f"{self.folder / name} cannot be written", then)
            with told, open(self.folder / name, "a") as file:
                file.write(text)

        ranks.on_first(write)

    def metrics(self, step: int, row: dict[str, float]) -> None:
        """The step's line of metrics.jsonl, and the tracker."""
        self.append("metrics.jsonl", [{"step": step} | row])
        if self.track:
            self.track(row, step=step)

    def statistics(self, step: int, tensors: dict[str, Tensor]) -> None:
        """What the metrics were computed from, in six digits."""
        exact = json.dumps({name: tensor.tolist() for name, tensor in tensors.items()})
        short = json.loads(exact, parse_float=lambda number: float(f"{float(number):.6g}"))
        self.append("statistics.jsonl", [{"step": step} | short])
