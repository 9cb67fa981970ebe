"""The tables of docs/results.md and docs/results/tables.md, from finished runs or from docs/results/table.json.

python -m study.results --runs results/study     # reads the runs, writes table.json, curves.csv and the pages' tables
python -m study.results                          # the pages' tables alone, from table.json

`table.json` has the ends of every run, for other statistics, and `curves.csv` all its evaluations. docs/results.md has one table of
verdicts, docs/results/tables.md a table per setting. They leave out the column of times: runs of the study shared their cores with each
other and with other work (study/step_time.py compares times on equal work).
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import tyro

from tools import leaderboard as bench
from tools.runs import Run
from tools.verdict import NOISE
from study.differing_lines import insert
from common.errors import plain_errors
from common.files import write_whole
from rewards import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
VERDICTS, PAGE, DATA, CURVES = (
    ROOT / "docs" / name for name in ("results.md", "results/tables.md", "results/table.json", "results/curves.csv")
)
VERDICT_MARKS = ("<!-- verdicts: begin -->", "<!-- verdicts: end -->")
MARKS = ("<!-- tables: begin -->", "<!-- tables: end -->")
RUN = ("model", "dataset", "estimator", "script", "seed")  # columns of curves.csv that tell a run apart
ORDER = ("testbed", "testbed:wavering", "testbed:robust")  # others follow
SIGNS = {"improved": "↑", "kept": "=", "lost": "↓"}


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """results folders of bench, or run folders; none: the values in docs/results/table.json"""


def in_order(section: dict) -> tuple[int, str, str]:
    """Models from the most fragile on, REINFORCE before GRPO."""
    model, estimator = section["args"]["model"], section["args"]["estimator"]
    return ORDER.index(model) if model in ORDER else len(ORDER), model, "" if estimator == "reinforce" else estimator


def tables(board: dict) -> str:
    """Every section of a board (tools.leaderboard.leaderboard) as Markdown."""
    parts = []
    for section in board["sections"]:
        heads, rows = bench.heads(section), [bench.cells(section, row) for row in section["rows"]]
        parts += [f"### {section['title']}", bench.table(heads[:-1], [cells[:-1] for cells in rows])]
    return "\n\n".join(parts)


def statuses(section: dict, row: dict, objective: str) -> list[str]:
    """Per run, whether an objective of 0/1 rewards was "improved", "kept" or "lost" from start to end, beyond two standard errors of the
    change or not. The errors are those of shares of `eval_prompts` problems, taken as independent, as in tools/verdict.py."""
    start, prompts = row["objectives"][objective]["start"], section["args"]["eval_prompts"]
    found = []
    for end in row["objectives"][objective]["per_seed"]:
        noise = NOISE * math.sqrt((start * (1 - start) + end * (1 - end)) / (prompts - 1))
        found.append("improved" if end - start > noise else "lost" if start - end > noise else "kept")
    return found


def verdicts(board: dict, objective: str = "accuracy") -> str:
    """One table of all sections: what became of an objective in how many runs, and the lowest worst change. Fewest losses first."""
    sections = board["sections"]
    names = list(dict.fromkeys(row["algorithm"] for section in sections for row in section["rows"]))
    lines = []
    for name in names:
        cells, every, lowest = [], [], []
        for section in sections:
            (row,) = [row for row in section["rows"] if row["algorithm"] == name] or (None,)
            if row is None:
                cells.append("–")
                continue
            own = statuses(section, row, objective)
            counts = [f"{own.count(status)}{sign}" for status, sign in SIGNS.items() if status in own]
            every, lowest = every + own, [*lowest, min(row["worst_change"]["per_seed"])]
            cells.append(f"{' '.join(counts)} ({lowest[-1]:+.2f})")
        lost = every.count("lost")
        lines.append((lost / len(every), -fmean(lowest), [f"`{name}`", f"**{lost}** of {len(every)}", *cells]))
    heads = ["algorithm", f"{objective} lost"]
    for section in sections:
        base = section["args"]["model"].removeprefix("testbed:").replace("testbed", "fragile")
        heads.append(f"`{base}` {section['args']['estimator'].upper()}")
    return bench.table(heads, [cells for *_, cells in sorted(lines, key=lambda line: line[:2])])


def curves(runs: Sequence[Run]) -> str:
    """Every evaluation of every run as CSV: the run's flags that tell it apart, the step, each objective's mean on the held-out problems
    (empty where a run has no such objective), and the mean length in tokens."""
    names = list(dict.fromkeys(name for run in runs for name in run.objectives))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*RUN, "step", *names, "length"])
    for run in sorted(runs, key=lambda run: (*in_order({"args": run.args}), run.args["script"], run.args["seed"])):
        flags = [run.args[key] for key in RUN]
        values = {name: dict(zip(*run.series(f"eval/{name}"), strict=True)) for name in (*names, "length")}
        for step in values["length"]:
            cells = (own.get(step) for own in values.values())
            writer.writerow([*flags, step, *("" if cell is None else f"{cell:.5g}" for cell in cells)])
    return text.getvalue()


def evaluations(texts: Sequence[str]) -> dict[tuple[str, ...], dict[str, list[float]]]:
    """Files that `curves` wrote -> by the columns `RUN`, every run's steps and held-out means of `OBJECTIVES`, in ascending order."""
    runs: dict = defaultdict(lambda: defaultdict(list))
    for row in (row for text in texts for row in csv.DictReader(text.splitlines())):
        own = runs[tuple(row[key] for key in RUN)]
        for name in ("step", *OBJECTIVES):
            own[name].append(float(row[name]))
    return dict(sorted(runs.items()))


def unpack(folder: Path, names: Sequence[str] = ("curves.csv",)) -> None:
    """Write the kept evaluations as run folders into `folder`, for what reads runs: the flags of their section in table.json, and of
    metrics the held-out means alone. Runs of a setting that the table does not have are passed over."""
    sections = {tuple(section["args"][key] for key in RUN[:3]): section["args"] for section in json.loads(DATA.read_text())["sections"]}
    for key, own in evaluations([(DATA.parent / name).read_text(encoding="utf-8") for name in names]).items():
        if key[:3] not in sections:
            continue
        script, seed = key[3:]
        run = folder / "-".join(key).replace(":", "-")
        run.mkdir(parents=True)
        flags = (
            sections[key[:3]] | {"script": script, "seed": int(seed), "out": str(run)} | ({"cov_targets": []} if script == "ctwa" else {})
        )
        write_whole(run / "args.json", json.dumps(flags))
        rows = zip(own["step"], *(own[name] for name in OBJECTIVES), strict=True)
        lines = ({"step": int(step)} | {f"eval/{name}": v for name, v in zip(OBJECTIVES, values, strict=True)} for step, *values in rows)
        write_whole(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def main(args: Args) -> None:
    if args.runs:
        runs, left_out = bench.load_finished(args.runs)
        board = bench.leaderboard(runs)
        board["sections"].sort(key=in_order)
        board["provenance"] = bench.provenance(runs, "python -m study.results --runs " + " ".join(args.runs))
        print("\n".join([*board["provenance"], *(f"left out: {line}" for line in left_out)]))
        DATA.parent.mkdir(exist_ok=True)
        write_whole(DATA, json.dumps(board | {"definitions": bench.DEFINITIONS}, indent=1) + "\n")
        write_whole(CURVES, curves(runs))
    board = json.loads(DATA.read_text())
    insert(VERDICTS, verdicts(board), VERDICT_MARKS)
    insert(PAGE, tables(board), MARKS)
    print(f"wrote {VERDICTS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
