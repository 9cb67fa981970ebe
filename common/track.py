"""What a run leaves in its folder: args.json, the LOGS, and optionally TensorBoard and W&B."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from common import ranks
from common.errors import UserError
from common.files import write_whole

LOGS = ("metrics.jsonl", "completions.jsonl", "training_completions.jsonl", "statistics.jsonl")  # a line per step, or per completion


def run_folder(out: str, resume: str, name: str) -> Path:
    """The folder of this run, made once for all ranks. Without --out: runs/<name>, numbered when taken.

    Raises UserError if --out exists or cannot be made.
    """
    return Path(resume) if resume else ranks.on_first(lambda: _new_folder(out, name))


def _new_folder(out: str, name: str) -> Path:
    number = 1
    folder = Path(out or f"runs/{name}")
    try:
        while True:
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if _abandoned(folder):
                    print(f"{folder} held a run that never took a step: started anew")
                    shutil.rmtree(folder)
                    continue
                if out:
                    raise UserError(f"--out {out} exists already; give another folder, or continue that run with --resume {out}") from None
                number += 1
                folder = Path("runs") / f"{name}-{number}"
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from error


def _abandoned(folder: Path) -> bool:
    """Whether a folder holds what a run leaves that ended before its first step, and nothing else.

    A run that has only begun looks the same, but holds its folder: where no lock can tell, nothing is taken for abandoned.
    """
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "args.json" not in left or not left <= {"args.json", *LOGS} or (folder / "args.json").is_symlink():
        return False
    metrics = folder / "metrics.jsonl"
    if metrics.exists() and metrics.read_bytes().count(b"\n") > 1:
        return False
    try:
        return Hold(folder).locked
    except UserError:
        return False


class Hold:
    """Keeps other processes from training in a run's folder while this object lives. Nothing where the system has no such lock.

    Raises UserError naming --resume if another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.handle, self.locked = None, False
        try:
            import fcntl

            self.handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked = True
        except BlockingIOError:
            raise UserError(f"--resume {folder}: another process is training in it; wait for its end, or stop it") from None
        except (ImportError, OSError):  # Windows; a disk that machines share without locks
            return

    def __del__(self) -> None:
        if self.handle is not None:
            os.close(self.handle)


class Tracker:
    """Appends one JSON line per step to metrics.jsonl and mirrors it to TensorBoard and W&B where asked. Rank 0 writes; others only listen.

    config: written to args.json. last_step: a resumed run's lines after this step are dropped, so that each step stands there once.
    Raises UserError, on every rank, if an optional tracker is not installed or a file cannot be written.
    """

    def __init__(self, folder: Path, config: dict, last_step: int | None, tensorboard: bool, wandb: bool) -> None:
        self.folder, self.board, self.wandb = folder, None, None
        ranks.on_first(lambda: self._open(config, last_step, tensorboard, wandb))

    def _open(self, config: dict, last_step: int | None, tensorboard: bool, wandb: bool) -> None:
        board = self._package("torch.utils.tensorboard", "tensorboard", last_step) if tensorboard else None
        cloud = self._package("wandb", "wandb", last_step) if wandb else None
        with _writing(self.folder / "args.json") as path:
            write_whole(path, json.dumps(config, indent=2) + "\n")
        if last_step is not None:
            for name in LOGS:
                with _writing(self.folder / name) as path:
                    self._cut(path, last_step)
        if board:
            self.board = board.SummaryWriter(str(self.folder), purge_step=None if last_step is None else last_step + 1)
        if cloud:
            try:
                self.wandb = cloud.init(project="cleanmoa", name=self.folder.name, config=config, dir=str(self.folder))
            except Exception as error:  # not logged in, no network: its own classes, which change
                if last_step is None:
                    shutil.rmtree(self.folder)
                told = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(f"--wandb could not start: {told}; `wandb login` first, or set WANDB_MODE=offline") from error

    def _package(self, module: str, name: str, last_step: int | None):
        try:
            return import_module(module)
        except ImportError:
            if last_step is None:
                self.folder.rmdir()  # made a moment ago and empty: in the way when the same command is given again
            raise UserError(f"--{name} needs the package: pip install {name}") from None

    @staticmethod
    def _cut(path: Path, last_step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        # a run killed while it wrote leaves half a line at the end
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        write_whole(path, "".join(kept))

    def take_back(self, step: int) -> dict[str, float]:
        """The metrics of a step that was logged last and without its evaluation, taken out of the log to be logged anew; else nothing."""

        def work() -> dict[str, float]:
            rows = [json.loads(line) for line in (self.folder / LOGS[0]).read_text(encoding="utf-8").splitlines()]
            if not rows or rows[-1].pop("step") != step or "eval/length" in rows[-1]:
                return {}
            self._cut(self.folder / LOGS[0], step - 1)
            return {key: math.nan if value is None else value for key, value in rows[-1].items()}

        return ranks.on_first(work)

    def log(self, step: int, row: dict[str, float], samples: Sequence[dict] = (), trained: Sequence[dict] = ()) -> None:
        """Append the metrics of a step, and completions with their rewards: `samples` of an evaluation to completions.jsonl, those
        `trained` on to training_completions.jsonl. A non-finite metric becomes null, which JSON can hold."""
        ranks.on_first(lambda: self._log(step, row, samples, trained))

    def _log(self, step: int, row: dict[str, float], samples: Sequence[dict], trained: Sequence[dict]) -> None:
        for name, rows in (("completions.jsonl", samples), ("training_completions.jsonl", trained)):
            for sample in rows:
                self._append(name, {"step": step} | sample)
        self._append("metrics.jsonl", {"step": step} | {k: v if math.isfinite(v) else None for k, v in row.items()})
        if self.board:
            for key, value in row.items():
                self.board.add_scalar(key, value, step)
        if self.wandb:
            self.wandb.log(row, step=step)

    def _append(self, name: str, row: dict) -> None:
        with _writing(self.folder / name) as path, open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Append what a step's metrics were computed from to statistics.jsonl, in six digits: nested lists, for analysis after the run."""
        ranks.on_first(lambda: self._append("statistics.jsonl", {"step": step} | {k: _rounded(v.tolist()) for k, v in tensors.items()}))

    def say(self, text: str) -> None:
        """Print a line, once for all ranks, above the progress bar."""
        if ranks.rank() == 0:
            tqdm.write(text)

    def close(self) -> None:
        """Finish the optional trackers."""
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def _rounded(values):
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    number = float(f"{values:.6g}")
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Turn a full disk or a folder that went away into one line."""
    try:
        yield path
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); what was written before is whole: make room there, "
            f"then continue with --resume {path.parent}"
        ) from error
