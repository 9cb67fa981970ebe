r"""What a study on the real model came to (docs/realmodel.md): every step and evaluation of its runs, a table and a figure.

python -m study.words_study [--runs results/words/runs/*] [--write] [--figure docs/figures/words.png]

From docs/results/words.csv, to which --runs are added: a run that is there already is replaced. Runs are of `--preset smollm2-135m-words`
and kept completions (--log-completions), from which two shares come that the rewards do not have: how many completions have a
\boxed{} at all, and in how many the last number of the text is the right one.
"""

import csv
import io
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import tyro

from tools.curves import write_figure
from tools.looks import GREY, LABEL, STYLE, Name, algorithm_look, name_lines
from common.runs import Run, load_run
from study.differing_lines import put
from common.errors import plain_errors, require
from common.files import write_whole
from testbed import words

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs" / "results" / "words.csv", ROOT / "docs" / "realmodel.md"
MARKS = ("<!-- words: begin -->", "<!-- words: end -->")
OBJECTIVES = ("accuracy", "units", "sentence")
RUN = ("script", "seed", "step")
LOGGED = {  # columns beside RUN, by their keys in metrics.jsonl
    **{name: f"reward/{name}" for name in OBJECTIVES},
    **{f"held-out {name}": f"eval/{name}" for name in OBJECTIVES},
    **{f"greedy {name}": f"eval/greedy/{name}" for name in OBJECTIVES},
    "share of accuracy": "weight_share/accuracy",
    "law of accuracy": "law/accuracy",
    "nats": "law/nats",
    "tokens": "length/mean",
}
READ = ("boxed", "last number")  # shares of the completions that were kept of a step

Row = dict[str, float | None]  # a step of a run: the columns of LOGGED and READ


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """run folders to add to docs/results/words.csv"""
    write: bool = False
    """write the table into docs/realmodel.md, and the runs into docs/results/words.csv"""
    figure: str = ""
    """a .png or .pdf to draw, replaced if it exists"""


@cache
def _answers() -> dict[str, int]:
    return {problem.question: problem.answer for problem in words.split("train")}


def right_answer(prompt: str) -> int:
    """The answer to the training problem whose question stands last in a prompt. Raises ValueError where there is none."""
    found = [(prompt.rfind(question), answer) for question, answer in _answers().items() if question in prompt]
    if not found:
        raise ValueError(f"no training problem of the words in {prompt!r}")
    return max(found)[1]


def last_number(text: str) -> int | None:
    """The last integer that is written in a text."""
    numbers = re.findall(r"-?\d+", text)
    return int(numbers[-1]) if numbers else None


def read_texts(run: Run) -> dict[int, tuple[float, float]]:
    """By step: shares of the kept training completions that have a box, and whose last number is right. Empty where none were kept."""
    file, found = run.path / "training_completions.jsonl", defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        row = json.loads(line)
        text = row["completion"]
        found[row["step"]].append((r"\boxed{" in text, last_number(text) == right_answer(row["prompt"])))
    return {step: tuple(fmean(column) for column in zip(*pairs, strict=True)) for step, pairs in found.items()}


def rows_of(run: Run) -> dict[tuple[str, str, str], Row]:
    """Every step of a run by (script, seed, step)."""
    texts, found = read_texts(run), {}
    for row in run.rows:
        shares = texts.get(row["step"], (None,) * len(READ))
        values = {column: row.get(key) for column, key in LOGGED.items()} | dict(zip(READ, shares, strict=True))
        found[run.args["script"], str(run.args["seed"]), str(row["step"])] = values
    return found


def merged(kept: str, runs: list[Run]) -> str:
    """words.csv with these runs in it, sorted. kept: the file's text, or ""."""
    new = {key: row for run in runs for key, row in rows_of(run).items()}
    old = {key: row for key, row in parse(kept).items() if key[:2] not in {key[:2] for key in new}}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*RUN, *LOGGED, *READ])
    for key, row in sorted((old | new).items(), key=lambda item: (item[0][0], int(item[0][1]), int(item[0][2]))):
        writer.writerow([*key, *("" if value is None else f"{value:.5g}" for value in row.values())])
    return out.getvalue()


def parse(text: str) -> dict[tuple[str, str, str], Row]:
    """The rows of words.csv by (script, seed, step)."""
    columns = [*LOGGED, *READ]
    lines = csv.DictReader(text.splitlines())
    return {tuple(line[key] for key in RUN): {name: float(line[name]) if line[name] else None for name in columns} for line in lines}


def by_run(rows: dict[tuple[str, str, str], Row]) -> dict[tuple[str, str], dict[str, tuple[list[int], list[float]]]]:
    """(script, seed) -> every column's steps and values, where it has any."""
    found: dict = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for (script, seed, step), row in rows.items():
        for name, value in row.items():
            if value is not None:
                found[script, seed][name][0].append(int(step))
                found[script, seed][name][1].append(value)
    return found


def table(runs: dict) -> str:
    """Markdown: a row per run; every evaluation, from the first value to the last of what is read, and means over the steps."""
    heads = [
        "",
        "seed",
        "steps",
        *(f"{name} (greedy)" for name in OBJECTIVES),
        "boxed",
        "last number right",
        "nats a step",
        "share of accuracy",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (script, seed), columns in runs.items():

        def ends(name: str, columns: dict = columns) -> str:
            values = columns[name][1]
            return f"{values[0]:.2f} → {values[-1]:.2f}" if values else "– → –"

        cells = []
        for name in OBJECTIVES:
            greedy = dict(zip(*columns[f"greedy {name}"], strict=True))
            evaluations = zip(*columns[f"held-out {name}"], strict=True)
            cells.append(" → ".join(f"{mean:.2f} ({f'{greedy[step]:.2f}' if step in greedy else '–'})" for step, mean in evaluations))
        cells += [ends(name) for name in READ]
        cells += [f"{fmean(columns['nats'][1]):.2f}" if columns["nats"][1] else "–", ends("share of accuracy")]
        lines.append("| " + " | ".join([f"`{script}`", seed, str(columns["accuracy"][0][-1]), *cells]) + " |")
    return "\n".join(lines)


def draw(runs: dict, out: Path) -> None:
    """A panel per objective: the mean reward of each step's completions, every run thin and a script's mean at the steps that all its runs
    have. Raises UserError for another kind of file."""
    require(out.suffix in (".png", ".pdf"), f"--figure {out}: a figure is a .png or a .pdf")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(7.6, 2.5))
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(OBJECTIVES), sharex=True, sharey=True)
        figure.subplots_adjust(left=0.07, right=0.87, top=0.82, bottom=0.15, wspace=0.12)
        last = max(columns["accuracy"][0][-1] for columns in runs.values())
        for panel, name in zip(panels, OBJECTIVES, strict=True):
            names: dict[str, Name] = {}
            for script in dict.fromkeys(script for script, _ in runs):
                look = algorithm_look(script)
                own = [dict(zip(*columns[name], strict=True)) for (other, _), columns in runs.items() if other == script]
                for each in own:
                    panel.plot(list(each), list(each.values()), linewidth=0.6, alpha=0.35, **look.pen)
                steps = sorted(set.intersection(*map(set, own)))
                means = [fmean(each[step] for each in own) for step in steps]
                panel.plot(steps, means, linewidth=1.5, markevery=(0, 2), **look.pen, **look.points)
                names[script] = Name(script, look, steps[-1], means[-1])
            panel.set(title=name, xlabel="step", xlim=(1, last), ylim=(-0.03, 1.03))
            if panel is panels[-1]:
                name_lines(panel, list(names.values()), sample=True)
        panels[0].set_ylabel("mean reward of a step's completions")
        told = "SmolLM2-135M-Instruct, word problems: thin each run, 24 completions a step; thick the mean of a script's runs"
        figure.text(0.07, 0.95, told, color=GREY, fontsize=LABEL)
        write_figure(figure, out)


def main(args: Args) -> None:
    """Print the table, or write it into the page; draw the figure that is asked for."""
    kept = DATA.read_text(encoding="utf-8") if DATA.is_file() else ""
    text = merged(kept, [load_run(folder) for folder in args.runs]) if args.runs else kept
    require(text, "--runs: there is no docs/results/words.csv yet; give run folders")
    runs = by_run(parse(text))
    if args.figure:
        draw(runs, Path(args.figure))
        print(f"wrote {args.figure}")
    put(table(runs), PAGE, MARKS, args.write)
    if args.write and args.runs:
        write_whole(DATA, text)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
