"""What the covariance law says of every script before it is trained, beside what happened: the first step's covariance of each objective
with the advantages, and the end of each objective in runs that are there.

python -m study.predictions [--runs results/field/runs/*] [--write]

Each script takes one step with learning rate 0 on the same prompts and completions, and logs the covariance itself. It is divided by the
standard deviation of the advantages, so that scripts can be compared: within prompts, 1/G, as in the law. Outcomes are those of
docs/results/curves.csv, the study's, and of docs/results/field.csv, to which --runs are added: a run that is there already is replaced.
--write keeps these there, and the table in docs/algos/README.md.
"""

import csv
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from tqdm import tqdm

from common.runs import load_run
from study.results import RUN, curves, evaluations, in_order, insert
from tools.scripts import algorithms
from common.errors import UserError, plain_errors
from common.files import write_whole
from rewards import OBJECTIVES

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "algos" / "README.md"
MARKS = ("<!-- predictions: begin -->", "<!-- predictions: end -->")
LAST = 3  # evaluations whose mean is the end, as in docs/results.md


@dataclass
class Args:
    model: str = "testbed"
    """base whose first step is looked at"""
    dataset: str = "arithmetic"
    """its problems"""
    estimator: str = "reinforce"
    """advantages: reinforce or grpo"""
    prompts: int = 128
    """prompts of the step, 16 completions each"""
    seed: int = 101
    """of prompts and completions"""
    jobs: int = 2
    """scripts at a time, each on one thread"""
    runs: tuple[str, ...] = ()
    """run folders to add to those of docs/results/field.csv"""
    write: bool = False
    """write the table into docs/algos/README.md, and the evaluations of --runs into docs/results/field.csv"""


def merged(kept: str, new: str) -> str:
    """Two files like curves.csv as one, sorted; a run that both have is the new one's."""
    rows = [list(csv.DictReader(text.splitlines())) for text in (kept, new)]
    runs = [{tuple(row[key] for key in RUN) for row in each} for each in rows]
    every = [row for row in rows[0] if tuple(row[key] for key in RUN) not in runs[1]] + rows[1]
    every.sort(key=lambda row: (*in_order({"args": row}), row["script"], int(row["seed"]), int(row["step"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, (rows[0] or rows[1])[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    return text.getvalue()


def first_step(script: str, args: Args) -> dict[str, float]:
    """Covariance of each objective with the first step's advantages of unit variance. Raises UserError with what the script said."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        flags = {"model": args.model, "dataset": args.dataset, "estimator": args.estimator, "prompts": args.prompts, "seed": args.seed}
        flags |= {"steps": 1, "lr": 0, "eval-prompts": 2, "out": out, "max-new-tokens": 80 if args.dataset == "arithmetic3" else 56}
        command = [sys.executable, str(ROOT / "algos" / f"{script}.py"), *(f"--{name}={value}" for name, value in flags.items())]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{script}: {done.stderr.strip().splitlines()[-1]}")
        row = load_run(out).rows[-1]
        spread = np.std(json.loads((out / "statistics.jsonl").read_text())["advantages"])
    return {name.removeprefix("cov/"): value / spread for name, value in row.items() if name.startswith("cov/")}


def field(args: Args) -> str:
    """docs/results/field.csv with --runs in it."""
    kept = (DATA / "field.csv").read_text(encoding="utf-8")
    return merged(kept, curves([load_run(Path(folder)) for folder in args.runs])) if args.runs else kept


def outcomes(args: Args) -> dict[str, list[dict[str, tuple[float, float, float]]]]:
    """Of each script's runs, by objective: (start, lowest, end), the end a mean over the last evaluations."""
    texts = [(DATA / "curves.csv").read_text(encoding="utf-8"), field(args)]
    found = defaultdict(list)
    for (*setting, script, _), own in evaluations(texts).items():
        if setting == [args.model, args.dataset, args.estimator]:
            found[script].append({name: (own[name][0], min(own[name]), fmean(own[name][-LAST:])) for name in OBJECTIVES})
    return found


def table(predicted: dict[str, dict[str, float]], happened: dict[str, list]) -> str:
    """Markdown: a row per script, the covariances, and the objectives' ends with accuracy's lowest, a value per seed."""
    names = list(next(iter(predicted.values())))
    head = [*(f"cov {name}" for name in names), "seeds", *(f"{name} at the end" for name in names), f"lowest {names[0]}"]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for script, covariances in sorted(predicted.items(), key=lambda item: item[1][names[0]]):
        runs = happened.get(script, [])
        ends = [" / ".join(f"{run[name][2]:.2f}" for run in runs) or "–" for name in names]
        lowest = " / ".join(f"{run[names[0]][1]:.2f}" for run in runs) or "–"
        cells = [f"{covariances[name]:+.2f}" for name in names] + [str(len(runs)), *ends, lowest]
        lines.append(f"| `{script}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Print the table, and write it where --write says."""
    scripts, happened = list(algorithms()), outcomes(args)
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(tqdm(pool.map(lambda script: first_step(script, args), scripts), "first steps", len(scripts)))
    text = table(dict(zip(scripts, found, strict=True)), happened)
    print(text)
    if args.write:
        insert(PAGE, text, MARKS)
        if args.runs:
            write_whole(DATA / "field.csv", field(args))


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
