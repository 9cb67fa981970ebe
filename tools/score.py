"""`python run.py score`: look at reward functions on a file of completions, before anything is
trained. How much they vary, where they differ within a prompt, which of them pull apart, and which
one the covariance law says a weighted sum would give up.

Policy gradients compare the completions of one prompt, so what counts is within prompts: a
covariance is taken over a prompt's G completions with 1/G, as `cov/<objective>` of a run, and
averaged over the prompts that have at least two.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import tyro

import rewards
from common import data
from common.errors import UserError, require
from common.flags import RunFlags, at_least, shares
from common.model import load_tokenizer
from common.pretrained import model_path
from common.run import LITTLE
from common.runs import load_run
from common.verdict import NOISE
from prompts.chat import render
from prompts.tables import read_table

USAGE = "--completions FILE [--rewards R ...]"
DUPLICATE = 0.95  # correlation beyond which two rewards are nearly one
OPPOSED = -0.5  # correlation within prompts below which a sum trades one reward for the other
MOVES = {-1: "falls", 0: "not told from 0", 1: "rises"}


@dataclass
class Args:
    """Look at reward functions on a file of completions, before anything is trained."""

    completions: str
    """jsonl, json, csv or parquet file with a completion in each row, best several of each prompt;
    a run's own files too"""
    rewards: tuple[str, ...] = ()
    """objectives as in training, module:function or file.py:function; default: the run's, else the
    paper's three"""
    weights: tuple[float, ...] = ()
    """weight of each objective in the predicted sum; default: equal. Only their ratios matter"""
    completion_column: str = ""
    """column with the text; default: completion, completions or text"""
    prompt_column: str = ""
    """column that says which completions belong together; default: prompt, problem or question"""
    answer_column: str = ""
    """column with the reference answer, nested as in reward_model.ground_truth; default: answer.
    With --dataset, a column of that"""
    dataset: str = ""
    """where the prompts are from: gives rewards the columns that the file lacks, such as answer; as
    in training"""
    tokenizer: str = ""
    """testbed, a hub name or a folder, to count lengths in its tokens; default: the file's
    completion_ids, else words"""
    mean_length: float = 0.0
    """tokens that conciseness compares with; 0 is the mean of the file"""
    answer_check: str = ""
    """how accuracy compares, as in training; default: as the run does, or auto"""
    drop_unusable: bool = False
    """leave out, and count, rows whose reference answer no completion could match; else they are an
    error, as in training"""


def main(argv: list[str]) -> None:
    """before training: which rewards differ within prompts, pull apart, are given up by a sum?"""
    args = tyro.cli(Args, prog="python run.py score", args=argv)
    try:
        print(look_at(args))
    except UserError as error:  # what a run calls by other flags
        file, told = args.completions, str(error).replace("--model", "--tokenizer")
        raise UserError(told.replace(f"--dataset: {file}", f"--completions {file}")) from error


def look_at(args: Args) -> str:
    """The text that `python run.py score` prints. What is not given, a run's args.json says where
    the file lies beside it. Raises UserError naming a flag, or the reward."""
    at_least(args, 0, "mean_length")
    file, flags = Path(args.completions), vars(RunFlags(dataset="", model=""))
    if file.with_name("args.json").is_file():
        flags |= load_run(file.parent).args
    given = {"model": args.tokenizer, **vars(args), "prompt_column": ""}
    flags |= {name: value for name, value in given.items() if value}
    source = SimpleNamespace(**flags)  # of the completions: what a run has as `args`
    functions = rewards.load(flags.get("rewards", rewards.DEFAULT))
    weights = shares("--weights", args.weights, functions).numpy()
    check = data.answer_check(source.answer_check, source.dataset)
    tokenizer = load_tokenizer(model_path(source.model)) if source.model else None

    frame = read_completions(args, source, functions, check)
    if source.dataset:  # has the columns that the file lacks
        require(tokenizer is not None, f"--dataset {source.dataset} needs --tokenizer")
        splits = data.load(source, tokenizer, functions, check).values()
        known = pd.concat([pd.DataFrame(split.columns, dtype=object) for split in splits])
        known = known.drop_duplicates("prompt").set_index("prompt")
        lost = sorted(set(frame["prompt"]) - set(known.index))
        told = f"--dataset {source.dataset} lacks prompts of the file, such as {lost[:1]}: give"
        require(not lost, f"{told} theirs, and the model, whose chat template is part of them")
        frame = frame.join(known.drop(columns=frame.columns, errors="ignore"), on="prompt")
    columns = frame.to_dict("list")
    texts, ids, unit = columns.pop("completion"), columns.pop("completion_ids", None), "tokens"
    if ids is None and tokenizer:  # that a completion was cut off does not show in its text
        unit = f"tokens of {source.model}, an end of sequence added to each"
        ended = [text + tokenizer.eos_token for text in texts]
        ids = tokenizer(ended, add_special_tokens=False)["input_ids"]
    elif ids is None:  # good for lengths alone
        ids, unit = [text.split() for text in texts], "words, for want of --tokenizer"
    lengths = pd.Series(map(len, ids))
    threshold = args.mean_length or lengths.mean()
    scores = rewards.score(functions, texts, ids, columns, threshold, check)
    scores = pd.DataFrame(scores.double(), columns=functions)
    groups = pd.Series(columns["prompt"] if all(columns["prompt"]) else range(len(texts)))
    head = f"{file}: {len(texts)} completions of {groups.nunique()} prompts\nlength in {unit}: "
    head += f"mean {lengths.mean():.3g}, {lengths.min()} to {lengths.max()}; "
    head += f"mean_length {threshold:.3g}\n"
    if len(set(map(str, columns.get("step", [])))) > 1:
        head += "the column step has several values: different policies are taken together\n"
    return f"{head}\n{describe(weights, *statistics(scores, lengths, groups, weights))}"


def read_completions(args: Args, source, functions, check: str) -> pd.DataFrame:
    """A row per completion, numbered as the file's: `completion` a text, `prompt` a text, "" in a
    file without, `answer` as rewards read it, where there is one, and the file's other columns.

    A completion is a text, chat messages, or a list of texts, so many of its row's prompt.
    Raises UserError naming --completions and the row (from 0), or a column's flag.
    """
    file = args.completions
    frame = pd.DataFrame(read_table(Path(file)), dtype=object)

    def cells(name, *candidates):  # of a column that is named or found, None where there is none
        known = (each for each in candidates if each.split(".")[0] in frame)
        name = name or next(known, None)
        return name and pd.Series(data.column(frame, name, file), frame.index, object)

    def text(row, cell):
        plain = SimpleNamespace(chat_template=None)
        return render(cell, "", plain, f"--completions {file}: row {row}")

    def texts(row, cell):
        several = isinstance(cell, list) and cell and isinstance(cell[0], str)
        return [text(row, each) for each in (cell if several else [cell])]

    found = cells(args.completion_column, "completion", "completions", "text")
    require(found is not None, f"--completion-column is needed: {file} has {', '.join(frame)}")
    frame["completion"] = [texts(*each) for each in found.items()]
    frame = frame.explode("completion")
    asked = cells(args.prompt_column, *data.PROMPT_COLUMNS)
    frame["prompt"] = "" if asked is None else [text(*each) for each in asked.items()]
    # a data set has the answers; reasoning-gym's are read by its scorers alone
    answers = cells("" if source.dataset else source.answer_column, *data.ANSWER_COLUMNS)
    if answers is not None and check != data.gym.NAME:
        table = {"prompt": list(frame["prompt"]), "answer": list(answers), "row": range(len(frame))}
        own = RunFlags(drop_unusable=source.drop_unusable)
        kept = data.usable(own, file, table, functions, check)
        frame = frame.iloc[kept["row"]].assign(answer=kept["answer"])
    return frame


def statistics(rewards: pd.DataFrame, lengths, groups, weights) -> tuple:
    """All that is printed. rewards [B, K], lengths [B] in tokens, groups [B] the prompt of each,
    weights [K]. What is within prompts is over those that have two completions or more, and NaN
    where there are none. -> frames and a number,

    - a row per objective. signal: share of prompts whose completions differ. between, within:
      standard deviations of the prompts' means, and within a prompt: sd² = between² + within² where
      every prompt has as many completions. law: the covariance law's first order (arXiv 2602.06869,
      eq. 3) for linear scores, Cov(r_k, sum_j w_j r_j) within a prompt, mean over prompts, each of
      which counts once; se: its standard error; move: its sign where it is beyond NOISE of these,
      else 0;
    - correlations [K+1, K+1] over all completions, the length among them;
    - the same within a prompt, of the mean covariances;
    - the number of prompts that have two completions or more.
    """
    values = rewards.assign(length=lengths) + 0.0  # no -0
    several = values[groups.duplicated(keep=False)]
    prompts = several.groupby(groups)
    differ = prompts.transform("min") < prompts.transform("max")

    def within_prompts(values: pd.DataFrame) -> pd.DataFrame:
        """Centred; exactly 0 where all are alike: rounding must not look like a covariance."""
        own = values.groupby(groups)
        alike = own.transform("min") == own.transform("max")
        return (values - own.transform("mean")).mask(alike, 0.0)

    centred = within_prompts(several)
    own = centred[rewards.columns]
    # a reward that does not apply adds nothing to the sum
    parts = within_prompts(several[rewards.columns].fillna(0.0))
    score = parts @ weights
    score = score.where(score.abs() > 1e-6 * (parts.abs() @ weights), 0.0)  # nor where they cancel
    laws = own.mul(score, axis=0).groupby(groups).mean()  # [P, K]
    law, se = laws.mean(), laws.sem()
    columns = {
        "mean": values.mean(),
        "sd": values.std(ddof=0),
        "min": values.min(),
        "max": values.max(),
        "distinct": values.nunique(),
        "commonest": values.apply(lambda each: each.value_counts(normalize=True).max()),
        "signal": differ.groupby(groups).any().mean(),
        "between": prompts.mean().std(ddof=0),
        "within": np.sqrt((centred**2).groupby(groups).mean().mean()),
        "law": law,
        "se": se,
        "move": np.sign(law).where(law.abs() > NOISE * se, 0.0),
    }
    each = pd.DataFrame(columns, rewards.columns).round(12)
    scaled = centred.div(np.sqrt(prompts["length"].transform("size")), axis=0)
    return each, values.corr(), scaled.corr(), prompts.ngroups


def describe(weights, each, over, inside, prompts) -> str:
    """`statistics` as tables, and a line for each thing to know before training. weights [K]."""
    table = each.drop(columns=["law", "se", "move"]).rename_axis(columns="objective")
    of = dict.fromkeys(["commonest", "signal"], "{:.0%}".format)
    lines = [table.to_string(float_format="{:.3g}".format, formatters=of, na_rep="-"), ""]
    matrix = over.where(np.tri(len(over)).T > 0, inside).map("{:+.2f}".format)
    matrix = matrix.replace("+nan", "-").mask(np.eye(len(over)) > 0, ".")
    lines += ["correlation: above the diagonal over all completions, below it within prompts"]
    lines += [matrix.to_string(), ""]
    weighted = f"weights {' '.join(f'{weight:.3g}' for weight in weights)}"
    told = f"first order, {weighted}: Cov(r_k, sum_j w_j r_j) within prompts, mean ± se over"
    law = [
        f"{name:16} {own['law']:+9.3g} ± {own['se']:<8.2g}{MOVES[own['move']]}"
        for name, own in each.iterrows()
    ]
    alone = "No prompt has two completions, so nothing is known of what differs within prompts"
    lines += [f"{told} {prompts} of them", *law, ""] if prompts else [alone, ""]
    for name, own in each.iterrows():
        if own["sd"] == 0 or own["signal"] == 0:
            told = "is dead: no prompt's completions differ in it, and nothing can be learned"
            lines += [f"{name} {told}"]
        elif own["within"] < LITTLE:  # of a unit variance's covariance with it
            told = "hardly varies within prompts, and no covariance can be larger:"
            lines += [f"{name} {told} a controller's targets may be out of reach"]
    where, matrix = (" within prompts", inside) if prompts else ("", over)
    for one, other in combinations(matrix, 2):
        found = matrix.loc[one, other]
        told = f"correlation {found:+.2f}{where}"
        if prompts and found < OPPOSED and other != "length":
            lines += [f"{one} and {other} pull apart, {told}: their sum trades one for the other"]
        elif abs(found) > DUPLICATE:
            lines += [f"{one} and {other} say nearly the same, {told}"]
    if given_up := " and ".join(each.index[each["move"] < 0]):
        told = f"With {weighted} {given_up} would be given up at first order"
        lines += [f"{told}; docs/algos/README.md says what prevents it"]
    return "\n".join(lines)
