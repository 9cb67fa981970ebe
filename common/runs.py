"""Read the folder a run leaves: its flags, `args.json`, and its steps, `metrics.jsonl`."""

import json
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from common.errors import UserError, require, told_as


@dataclass
class Run:
    """A run as it stands on disk: its folder, its flags, and its metrics, ascending in `step`."""

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
        """Steps and values of one metric, equally many; where it is absent or null, neither."""
        found = {row["step"]: row[key] for row in self.rows if row.get(key) is not None}
        return list(found), list(found.values())


def load_run(path: str | Path) -> Run:
    """Read a run folder, finished or still being written.

    Raises `UserError` when there is no such run, when it has no complete line yet, or when a file
    is broken.
    """
    path, args = Path(path), read_args(path)
    rows = read_rows(path / "metrics.jsonl")
    require(bool(rows), f"RUN: {path} has no complete line yet; look again after its first step")
    return Run(path, args, rows)


def read_args(path: str | Path, flag: str = "RUN:") -> dict:
    """The flags of a run folder, args.json. Raises `UserError`, naming `flag`, where it is none."""
    path = Path(path)
    try:
        return json.loads((path / "args.json").read_bytes())
    except (OSError, ValueError) as error:
        near = get_close_matches(path.name, [file.name for file in path.parent.glob("*")])
        told = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise UserError(f"{flag} {path} is no run folder ({error}){told}") from None


def write_whole(file: Path, text: str) -> None:
    """Write a file, or replace one: all of it, or none."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def read_rows(file: Path) -> list[dict]:
    """The lines of a .jsonl of a run. What stands after the last line break is a line half written,
    and is passed over. Raises `UserError`, with the number of the line, for any other that is not
    JSON, and where there is no such file.
    """
    with told_as(f"{file}: cannot be read"):
        *lines, _ = file.read_bytes().split(b"\n")  # bytes: a character may be cut in two
        return json.loads(b"[%s]" % b",\n".join(lines))  # in one, so that json counts the lines
