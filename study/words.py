r"""The table of docs/realmodel.md: what a study on the real model came to, from docs/results/words.csv.

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
from study.results import DOCS, finished, markdown, put
from testbed import words

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
    rows = pd.DataFrame(run.rows)[list(LOGGED)].rename(columns=LOGGED).set_index("step")
    about = dict(zip(RUN, (run.args["script"], run.args["seed"]), strict=True))
    return rows.join(read_texts(run)).reset_index().assign(**about)


def read_texts(run: Run) -> pd.DataFrame:
    """By step the shares of the kept training completions that are `boxed` and that have the right
    `last number`."""
    answers = {problem.question: problem.answer for problem in words.split("train")}
    texts = pd.read_json(run.path / "training_completions.jsonl", lines=True)
    asked = "|".join(map(re.escape, answers))
    texts["right"] = [answers[re.findall(asked, prompt)[-1]] for prompt in texts["prompt"]]
    numbers = texts["completion"].str.findall(r"-?\d+").str[-1].astype(float)
    shares = {"boxed": texts["completion"].str.contains("\\boxed{", regex=False)}
    shares["last number"] = numbers == texts["right"]
    return pd.DataFrame(shares).groupby(texts["step"]).mean()


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Both, sorted; a run that both have is the new one's."""
    new_runs = new.set_index(RUN).index
    both = pd.concat([old[~old.set_index(RUN).index.isin(new_runs)], new])
    return both.sort_values([*RUN, "step"])[old.columns]


def table(rows: pd.DataFrame) -> str:
    """A row per run: every evaluation, and of what each step logs the first and the last."""
    lines = []
    for (script, seed), run in rows.groupby(RUN):
        cells = [f"`{script}`", str(seed), str(run["step"].max())]
        for name in OBJECTIVES:
            evaluated = run[[f"held-out {name}", f"greedy {name}"]].dropna()
            cells.append(" → ".join(f"{x:.2f} ({greedy:.2f})" for x, greedy in evaluated.values))
        for name in ("boxed", "last number", "nats", "share of accuracy"):
            own = run[name].dropna()
            ends = f"{own.iloc[0]:.2f} → {own.iloc[-1]:.2f}"
            cells.append(f"{own.mean():.2f}" if name == "nats" else ends)
        lines.append(cells)
    heads = ["", "seed", "steps", *(f"{name} (greedy)" for name in OBJECTIVES), "boxed"]
    heads += ["last number right", "nats a step", "share of accuracy"]
    return markdown(heads, lines)


def main(args: Args) -> None:
    rows = pd.read_csv(DATA)
    if args.runs:
        rows = merged(rows, pd.concat(map(rows_of, finished(args.runs))))
        rows.to_csv(DATA, index=False, float_format="%.5g", lineterminator="\n")
    put(DOCS / "realmodel.md", "words", table(rows))
    print(f"wrote {DOCS / 'realmodel.md'}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))
