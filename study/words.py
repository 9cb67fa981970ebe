r"""The table of docs/realmodel.md: what a study on the real model came to, from
docs/results/words.csv.

    python -m study.words [--runs results/words]

--runs adds runs of `--preset smollm2-135m-words` to the file; one that is there is replaced. Their
kept completions (--log-completions) give two shares that the rewards do not have: how many have a
\boxed{} at all, and in how many the last number of the text is the right one.
"""

import re
from dataclasses import dataclass

import pandas as pd
import tyro

from common.errors import plain_errors
from common.runs import Run
from study.results import DOCS, markdown, merged, put
from testbed import words
from tools.leaderboard import load_finished

DATA = DOCS / "results" / "words.csv"
OBJECTIVES = ("accuracy", "units", "sentence")
RUN = ["script", "seed"]
LOGGED = {  # columns by their keys in metrics.jsonl
    "step": "step",
    **{f"reward/{name}": name for name in OBJECTIVES},
    **{f"eval/{name}": f"held-out {name}" for name in OBJECTIVES},
    **{f"eval/greedy/{name}": f"greedy {name}" for name in OBJECTIVES},
    "weight_share/accuracy": "share of accuracy",
    "law/accuracy": "law of accuracy",
    "law/nats": "nats",
    "length/mean": "tokens",
}


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """run folders, or results folders of bench, to add to docs/results/words.csv"""


def rows_of(run: Run) -> pd.DataFrame:
    """Every step of a run, in the columns of words.csv."""
    rows = pd.DataFrame(run.rows)[list(LOGGED)].rename(columns=LOGGED)
    about = {name: run.args[name] for name in RUN}
    return rows.join(read_texts(run), on="step").assign(**about)


def read_texts(run: Run) -> pd.DataFrame:
    """By step the shares of the kept training completions that are `boxed` and that have the right
    `last number`."""
    known, texts = words.problems("train"), run.path / "training_completions.jsonl"
    answers = dict(zip(known["question"], known["answer"], strict=True))
    texts = pd.read_json(texts, lines=True)
    asked = texts["prompt"].str.findall("|".join(map(re.escape, answers))).str[-1]
    numbers = texts["completion"].str.findall(r"-?\d+").str[-1]
    boxed = texts["completion"].str.contains("\\boxed{", regex=False)
    shares = pd.DataFrame({"boxed": boxed, "last number": numbers == asked.map(answers)})
    return shares.groupby(texts["step"]).mean()


def table(rows: pd.DataFrame) -> str:
    """A row per run: its last evaluation, and of what each step logs the last and the mean size."""
    lines = []
    for (script, seed), run in rows.groupby(RUN):
        end = run.ffill().iloc[-1]
        line = {"script": f"`{script}`", "seed": seed, "steps": run["step"].max()}
        line["accuracy (greedy)"] = f"{end['held-out accuracy']:.2f} ({end['greedy accuracy']:.2f})"
        for name in ("held-out units", "held-out sentence", "boxed"):
            line[name.removeprefix("held-out ")] = f"{end[name]:.2f}"
        lines.append(line | {"nats a step": f"{run['nats'].mean():.2f}"})
    return markdown(pd.DataFrame(lines))


def main(args: Args) -> None:
    rows = pd.read_csv(DATA)
    if args.runs:
        new = pd.concat(map(rows_of, load_finished(args.runs)[0]))
        rows = merged(rows, new, RUN).sort_values([*RUN, "step"])
        rows.to_csv(DATA, index=False, float_format="%.5g", lineterminator="\n")
    put(DOCS / "realmodel.md", "words", table(rows))
    print(f"wrote {DOCS / 'realmodel.md'}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
