r"""The table of docs/realmodel.md: what a study on the real model came to, from
docs/results/words.csv.

    python -m study.words [--runs results/words]

--runs adds runs of `--preset smollm2-135m-words` to the file; one that is there is replaced. Their
kept completions (--log-completions) give shares that the means of the rewards do not have.
"""

import re
from dataclasses import dataclass

import pandas as pd
import tyro

from common.errors import plain_errors, require
from common.runs import Run
from study.results import DOCS, merged, put
from testbed import words
from tools.leaderboard import load_finished, markdown

DATA = DOCS / "results" / "words.csv"
OBJECTIVES = ("accuracy", "units", "sentence")
RUN = ["script", "cap", "seed"]  # cap: of a step's length, in nats; 0 for none
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
    """Every step of a run, in the columns of words.csv. Raises UserError for one that was evaluated
    on the tuning problems."""
    told = f"--runs {run.path}: the table is of the test problems, and --eval-split was tune"
    require(run.args["eval_split"] == "test", told)
    rows = pd.DataFrame(run.rows)[list(LOGGED)].rename(columns=LOGGED)
    about = {"script": run.args["script"], "seed": run.args["seed"]}
    about["cap"] = round((2 * run.args.get("desired_kl", 0)) ** 0.5, 4)
    return rows.join(read_texts(run), on="step").assign(**about)


def read_texts(run: Run) -> pd.DataFrame:
    """By step the shares of the kept training completions that have a `\\boxed{}` at all, whose
    `last number` is the right one, that earn `nothing`, and that earn accuracy `with another`
    reward; of those with a box, the share that is `right`."""
    known, texts = words.problems("train"), run.path / "training_completions.jsonl"
    answers = dict(zip(known["question"], known["answer"], strict=True))
    texts = pd.read_json(texts, lines=True)
    asked = texts["prompt"].str.findall("|".join(map(re.escape, answers))).str[-1]
    numbers = texts["completion"].str.findall(r"-?\d+").str[-1]
    boxed = texts["completion"].str.contains("\\boxed{", regex=False)
    right, *others = (texts[name] == 1 for name in OBJECTIVES)
    shares = {"boxed": boxed, "last number": numbers == asked.map(answers)}
    shares |= {"nothing": ~(right | others[0] | others[1]), "right": right.where(boxed)}
    shares["with another"] = right & (others[0] | others[1])
    return pd.DataFrame(shares).astype(float).groupby(texts["step"]).mean()


def table(rows: pd.DataFrame) -> str:
    """A row per script and cap, its seeds in order: the last held-out means, the share of the last
    kept completions that are `boxed`, and the mean size of a step."""
    ends = rows.groupby(RUN).last().groupby(RUN[:2])
    columns = {"accuracy": "held-out accuracy", "greedily": "greedy accuracy"}
    columns |= {"units": "held-out units", "sentence": "held-out sentence", "boxed": "boxed"}
    told = {head: ends[name] for head, name in columns.items()}
    told["nats a step"] = rows.groupby(RUN)["nats"].mean().groupby(RUN[:2])
    cells = {
        head: of.agg(lambda own: ", ".join(own.map("{:.2f}".format))) for head, of in told.items()
    }
    table = pd.DataFrame(cells)
    table.insert(0, "steps", ends["step"].max())
    table = table.sort_index(level="cap", sort_remaining=False).reset_index()
    table["script"] = table["script"].map("`{}`".format)
    table["cap"] = table["cap"].map("{:.2g}".format).replace("0", "–")
    return markdown(table)


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
