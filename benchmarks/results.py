"""The tables of docs/results.md, from finished runs or from docs/results/table.json.

python -m benchmarks.results --runs results/study     # reads the runs, writes docs/results/table.json, curves.csv and the page's tables
python -m benchmarks.results                          # the page's tables alone, from table.json

`table.json` has the ends of every run, for other statistics, and `curves.csv` all its evaluations. The page leaves out the column of
times: runs of the study shared their cores with each other and with other work (benchmarks/step_time.py compares times on equal work).
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from analysis import leaderboard as bench
from analysis.runs import Run
from benchmarks.differing_lines import insert
from common.errors import plain_errors
from common.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA, CURVES = (ROOT / "docs" / name for name in ("results.md", "results/table.json", "results/curves.csv"))
MARKS = ("<!-- tables: begin -->", "<!-- tables: end -->")
ORDER = ("testbed", "testbed:wavering", "testbed:robust")  # others follow


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """results folders of bench, or run folders; none: the values in docs/results/table.json"""


def in_order(section: dict) -> tuple[int, str, str]:
    """Models from the most fragile on, REINFORCE before GRPO."""
    model, estimator = section["args"]["model"], section["args"]["estimator"]
    return ORDER.index(model) if model in ORDER else len(ORDER), model, "" if estimator == "reinforce" else estimator


def tables(board: dict) -> str:
    """Every section of a board (analysis.leaderboard.leaderboard) as Markdown."""
    parts = []
    for section in board["sections"]:
        heads, rows = bench.heads(section), [bench.cells(section, row) for row in section["rows"]]
        parts += [f"### {section['title']}", bench.table(heads[:-1], [cells[:-1] for cells in rows])]
    return "\n\n".join(parts)


def curves(runs: Sequence[Run]) -> str:
    """Every evaluation of every run as CSV: the run's flags that tell it apart, the step, each objective's mean on the held-out problems
    (empty where a run has no such objective), and the mean length in tokens."""
    names = list(dict.fromkeys(name for run in runs for name in run.objectives))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "dataset", "estimator", "script", "seed", "step", *names, "length"])
    for run in sorted(runs, key=lambda run: (*in_order({"args": run.args}), run.args["script"], run.args["seed"])):
        flags = [run.args[key] for key in ("model", "dataset", "estimator", "script", "seed")]
        values = {name: dict(zip(*run.series(f"eval/{name}"), strict=True)) for name in (*names, "length")}
        for step in values["length"]:
            cells = (own.get(step) for own in values.values())
            writer.writerow([*flags, step, *("" if cell is None else f"{cell:.5g}" for cell in cells)])
    return text.getvalue()


def main(args: Args) -> None:
    if args.runs:
        runs, left_out = bench.load_finished(args.runs)
        board = bench.leaderboard(runs)
        board["sections"].sort(key=in_order)
        board["provenance"] = bench.provenance(runs, "python -m benchmarks.results --runs " + " ".join(args.runs))
        print("\n".join([*board["provenance"], *(f"left out: {line}" for line in left_out)]))
        DATA.parent.mkdir(exist_ok=True)
        write_whole(DATA, json.dumps(board | {"definitions": bench.DEFINITIONS}, indent=1) + "\n")
        write_whole(CURVES, curves(runs))
    insert(PAGE, tables(json.loads(DATA.read_text())), MARKS)
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
