"""Read the folder a run leaves: `args.json` (its flags) and `metrics.jsonl` (one JSON object per step)."""

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError


@dataclass(frozen=True)
class Run:
    """One run as it stands on disk: its folder, its flags, and its metric rows in ascending order of `step`."""

    path: Path
    args: dict
    rows: list[dict]

    @property
    def name(self) -> str:
        return self.path.resolve().name  # resolved, so that `.` has a name too

    @property
    def objectives(self) -> list[str]:
        return self.args["objectives"]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, both of the same length; steps where it is absent, null or not finite are dropped."""
        points = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None and math.isfinite(row[key])]
        return [step for step, _ in points], [value for _, value in points]


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or still being written.

    Raises `UserError` when there is no such run, when it has no complete line yet, or when a line is broken. Only a half
    written last line is passed over: a run in progress is writing it.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"RUN: no run folder {path}{_suggestion(path)}")
    for file in (path / "args.json", path / "metrics.jsonl"):
        if not file.is_file():
            raise UserError(f"RUN: {path} is not a run folder, it has no {file.name}{_suggestion(path)}")
    try:
        args = json.loads((path / "args.json").read_bytes())
    except ValueError as error:
        raise UserError(f"{path / 'args.json'}: not JSON ({error})") from None
    if not isinstance(args, dict) or not args.get("objectives"):
        raise UserError(f"{path / 'args.json'}: names no objectives")
    rows = read_rows(path / "metrics.jsonl")
    if not rows:
        raise UserError(f"{path / 'metrics.jsonl'}: no complete line yet; look again once the run has taken its first step")
    return Run(path, args, rows)


def load_statistics(run: Run) -> list[dict]:
    """The lines of a run's `statistics.jsonl`, one per training step in ascending order: `rewards` [B][K], `advantages`, `lengths`, `drift`
    and `age` [B], and `gram` [mini-batches][K][K] where the algorithm takes the objectives' gradients apart (common/track.py: keep),
    without those of gradients that were not finite, for which the file has null.

    Raises `UserError` when the file is not there (a run of an older version) or a line is broken.
    """
    file = run.path / "statistics.jsonl"
    if not file.is_file():
        raise UserError(f"{run.path} has no statistics.jsonl: it is of a version that kept none; train it anew to look into its steps")
    rows = read_rows(file)
    for row in rows:
        if "gram" in row:
            row["gram"] = [gram for gram in row["gram"] if not any(value is None for line in gram for value in line)]
    return rows


def read_rows(file: Path) -> list[dict]:
    """The lines of a .jsonl of a run, each with a step higher than the one before; a half written last line is passed over. Raises
    `UserError` for any other broken line."""
    rows: list[dict] = []
    lines = file.read_bytes().split(b"\n")  # bytes: a line can be cut in the middle of a character
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            if number == len(lines):  # what stands after the last line break: nothing, or a line half written
                break
            raise UserError(f"{file} line {number}: not JSON ({error}); delete the line to read the rest") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{file} line {number}: not an object with an integer step; delete the line to read the rest")
        if rows and row["step"] <= rows[-1]["step"]:
            raise UserError(f"{file} line {number}: step {row['step']} after step {rows[-1]['step']}; did two runs write into this folder?")
        rows.append(row)
    return rows


def _suggestion(path: Path) -> str:
    """`; did you mean runs/ctwa_1?`, from the run folders beside `path` and under `runs/`; empty when none is near."""
    if path.name in ("args.json", "metrics.jsonl", "curves.png"):
        return f"; did you mean {path.parent}?"
    beside = [*_run_folders(path.parent), *_run_folders(Path("runs"))]
    near = difflib.get_close_matches(path.name, [folder.name for folder in beside], n=1)
    return f"; did you mean {next(folder for folder in beside if folder.name == near[0])}?" if near else ""


def _run_folders(parent: Path) -> list[Path]:
    return sorted(file.parent for file in parent.glob("*/metrics.jsonl"))
