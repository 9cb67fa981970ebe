"""`python run.py score`: look at reward functions on a file of completions, before anything is trained. How much they vary, where they
differ within a prompt, which of them pull apart, and which one the covariance law says a weighted sum would give up.

Policy gradients compare the completions of one prompt, so what counts is within prompts: a covariance is taken over a prompt's G
completions with 1/G, as `cov/<objective>` of a run, and averaged over the prompts that have at least two.
"""

import inspect
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from common.verdict import NOISE
from common.errors import UserError, require

USAGE = "--completions FILE [--rewards R ...]"
Array = NDArray[np.float64]

DUPLICATE = 0.95  # correlation beyond which two rewards are nearly one
OPPOSED = -0.5  # correlation within prompts below which a sum trades one reward for the other
WIDTH = 100  # columns of the printed text


@dataclass
class Args:
    completions: str = ""
    """jsonl, json, csv or parquet file with a completion in each row, best several of each prompt; a run's own files too"""
    rewards: tuple[str, ...] = ()
    """objectives as in training, module:function or file.py:function; default: the run's, else the paper's three"""
    weights: tuple[float, ...] = ()
    """weight of each objective in the predicted sum; default: equal. Only their ratios matter"""
    completion_column: str = ""
    """column with the text; default: completion, completions or text"""
    prompt_column: str = ""
    """column that says which completions belong together; default: prompt, problem or question"""
    answer_column: str = ""
    """column with the reference answer, nested as in reward_model.ground_truth; default: answer. With --dataset, a column of that"""
    dataset: str = ""
    """where the prompts are from: gives rewards the columns that the file lacks, such as answer; as in training"""
    tokenizer: str = ""
    """testbed, a hub name or a folder, to count lengths in its tokens; default: the file's completion_ids, else words"""
    mean_length: float = 0.0
    """tokens that conciseness compares with; 0 is the mean of the file"""
    answer_check: Literal["auto", "exact", "math-verify", "boxed", "reasoning-gym"] = "auto"
    """how accuracy compares, as in training"""
    drop_unusable: bool = False
    """leave out, and count, rows whose reference answer no completion could match; else they are an error, as in training"""


def main(argv: list[str]) -> None:
    """before training: rewards on a file of completions. Which differ within prompts, which pull apart, which would a sum give up?"""
    args = tyro.cli(Args, prog="python run.py score", description="Look at rewards before training with them.", args=argv)
    if not args.completions:
        raise UserError("score: which completions? python run.py score --completions FILE, with a column `completion`, best with `prompt`")
    print(look_at(**asdict(args)))


def look_at(
    completions: str,
    rewards: Sequence[str] = (),
    weights: Sequence[float] = (),
    completion_column: str = "",
    prompt_column: str = "",
    answer_column: str = "",
    dataset: str = "",
    tokenizer: str = "",
    mean_length: float = 0.0,
    answer_check: str = "auto",
    drop_unusable: bool = False,
) -> str:
    """Score a file of completions and say what is seen: the text that `python run.py score` prints.

    completions: the file, see `read_completions`. If it is a run's completions.jsonl or training_completions.jsonl, the run's args.json
    fills what is empty here of rewards, dataset, tokenizer, answer_check and drop_unusable. rewards: paths as in `rewards.load`; default:
    the paper's three.
    weights: one for each, not negative; default: equal. dataset: take the columns that the file lacks, such as `answer`, from the
    prompts of this data set; answer_column then names a column there. tokenizer: a name as in --model, to count lengths where the file
    has no completion_ids; without it they are in words. mean_length: what `conciseness` compares with; 0: the file's mean.
    answer_check, drop_unusable: as in training.

    Raises UserError naming the flag, or the reward and the completion.
    """
    import rewards as reward_functions  # here and below: these load torch, and a mistake in the flags is told at once
    from prompts import answer_check as resolved
    from rewards.gym import NAME as REASONING_GYM

    run = _run_of(Path(completions))
    functions = reward_functions.load(rewards or run.get("rewards") or [f"rewards.{o}:{o}" for o in reward_functions.OBJECTIVES])
    weight = _weights(weights, list(functions))
    require(0 <= mean_length < np.inf, f"--mean-length {mean_length} must be a positive number of tokens; 0 is the file's mean")
    source = {} if dataset else run
    names = (source.get("prompt_column", ""), answer_column or source.get("answer_column", ""), source.get("prompt_suffix", ""))
    dataset, tokenizer = dataset or run.get("dataset", ""), tokenizer or run.get("model", "")
    require(not dataset or bool(tokenizer), f"--dataset {dataset} needs --tokenizer: prompts are compared as the model reads them")

    check = resolved(run.get("answer_check", "auto") if answer_check == "auto" else answer_check, dataset)
    usable = partial(reward_functions.unusable, functions, answer_check=check), drop_unusable or run.get("drop_unusable", False)
    own = check != REASONING_GYM  # whose scorers alone read its answers
    data = read_completions(completions, completion_column, prompt_column, "" if dataset else answer_column, *usable, own)
    encoder = _tokenizer(tokenizer) if tokenizer else None
    if dataset:
        require("prompt" in data.columns, f"--dataset {dataset}: {completions} has no prompts to look up; name them with --prompt-column")
        data.columns.update(_joined(data, dataset, encoder, names, usable))
    for name, function in functions.items():
        answer = inspect.signature(function).parameters.get("answer")
        if answer and answer.default is answer.empty and "answer" not in data.columns:
            raise UserError(
                f"the reward {name!r} wants the dataset column 'answer'; the columns there are {', '.join(data.columns) or 'none'}: "
                "name it with --answer-column, or take it from the prompts' data set, as in --dataset arithmetic --tokenizer testbed"
            )
    ids, unit = _token_ids(data, tokenizer, encoder)
    lengths = np.array([len(row) for row in ids], dtype=np.float64)
    threshold = mean_length or float(lengths.mean())
    scores = reward_functions.score(
        functions,
        prompts=data.prompts,
        completions=data.texts,
        completion_ids=ids,
        mean_length=threshold,
        columns=data.columns,
        answer_check=check,
    )
    found = statistics(scores.double().numpy(), lengths, data.groups, weight)
    sizes = np.bincount(data.groups)
    each = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    prompts = f"of {len(sizes)} prompts, {each} of each" if "prompt" in data.columns else "without prompts"
    span = f"mean {_number(lengths.mean())}, {lengths.min():.0f} to {lengths.max():.0f}"
    head = [
        f"{completions}: {len(ids)} completions {prompts}",
        f"length in {unit}: {span}; mean_length {_number(threshold)}{'' if mean_length else ', the mean of the file'}",
    ]
    if len(steps := set(map(str, data.columns.get("step", ())))) > 1:
        head.append(f"the column step has {len(steps)} values: completions of different policies are taken together")
    return "\n".join([*head, "", describe(list(functions), weight, found)])


# --- reading ---


@dataclass(frozen=True)
class Completions:
    """B completions as rewards get them."""

    texts: list[str]
    prompts: list[str]  # "" where the file has none
    groups: NDArray[np.int64]  # [B] number of the prompt; a completion's own where the file has none
    columns: dict[str, list]  # the other columns; prompts and answers as `prompt` and `answer`
    ids: list[list[int]] | None  # the column completion_ids


def read_completions(
    path: str | Path,
    completion_column: str = "",
    prompt_column: str = "",
    answer_column: str = "",
    unusable: Callable[[list[str]], dict[str, str]] = lambda answers: {},
    drop_unusable: bool = False,
    own_answers: bool = True,
) -> Completions:
    """Read a jsonl, json, csv or parquet file. A column may be nested, as in `reward_model.ground_truth`; an empty name means: find it.

    Completions, in `completion`, `completions` or `text`, are texts, chat messages, or lists of texts, each list so many completions of its
    row's prompt. Prompts, texts or chat messages, are in `prompt`, `problem` or `question`; answers, worked solutions too, in `answer`,
    `reward_model.ground_truth` or `solution`. A file may lack prompts and answers; unusable, drop_unusable: as in `load_prompts`.
    own_answers: read the file's answers; else they stay what they are.

    Raises UserError naming --completions, with the row (from 0), or the column's flag.
    """
    from prompts import ANSWER_COLUMNS, PROMPT_COLUMNS, read_answers

    columns = _read(Path(path))
    numbers = list(range(len(next(iter(columns.values())))))  # of the rows in the file
    name, values = _find(columns, answer_column, ANSWER_COLUMNS if own_answers else (), "--answer-column")
    if name:
        prompts = _find(columns, prompt_column, PROMPT_COLUMNS, "--prompt-column")[1] or [""] * len(values)
        numbers, answers = read_answers(values, prompts, f"--completions {path}: {name}", "", unusable, drop_unusable)
        columns = {other: [column[row] for row in numbers] for other, column in columns.items()} | {"answer": answers}
    name, values = _find(columns, completion_column, ("completion", "completions", "text"), "--completion-column")
    require(bool(name), f"--completion-column is needed: {path} has only {', '.join(columns)}")
    rows, texts = [], []
    for row, value in enumerate(values):
        several = value if isinstance(value, list) and value and all(isinstance(text, str) for text in value) else [value]
        rows += [row] * len(several)
        texts += [_text(text, f"--completions {path}: row {numbers[row]} of {name}") for text in several]
    require(len(texts) > 1, f"--completions {path} has fewer than two completions: there is nothing to compare")
    columns = {other: [column[row] for row in rows] for other, column in columns.items() if other != name.split(".")[0]}
    ids = columns.pop("completion_ids", None)
    for row, value in enumerate(ids or []):
        good = isinstance(value, list) and all(isinstance(token, int) for token in value)
        require(good, f"--completions {path}: completion_ids is no list of token ids for completion {row}; drop the column")
    prompts, groups = [""] * len(texts), np.arange(len(texts))
    name, values = _find(columns, prompt_column, PROMPT_COLUMNS, "--prompt-column")
    if name:
        where = f"--completions {path}: row"
        prompts = [_text(value, f"{where} {numbers[row]} of {name}") for row, value in zip(rows, values, strict=True)]
        columns["prompt"] = prompts
        groups = np.unique(prompts, return_inverse=True)[1]
    return Completions(texts, prompts, groups, columns, ids)


def _read(file: Path) -> dict[str, list]:
    """The columns of the file, read as training reads its data."""
    from prompts.files import FORMATS, ending, read_table

    kinds = ", ".join(FORMATS)
    require(not file.is_dir(), f"--completions {file} is a folder: give a file in it, one of {kinds}")
    require(file.is_file(), f"--completions {file}: there is no such file; it must be one of {kinds}")
    require(bool(ending(file)), f"--completions {file}: cannot read this format; use one of {kinds}")
    return read_table(file, f"--completions {file}")


def _find(columns: dict[str, list], name: str, candidates: tuple[str, ...], flag: str) -> tuple[str, list]:
    """The name and the values of a column by its name, or of the first of the candidates; ("", []) where there is none of them."""
    name = name or next((name for name in candidates if name in columns or name.split(".")[0] in columns), "")
    if not name:
        return "", []
    head, *fields = [name] if name in columns else name.split(".")
    require(head in columns, f"{flag} {name}: no such column; the file has {', '.join(columns)}")
    values = columns[head]
    for field in fields:
        require(all(isinstance(value, dict) and field in value for value in values), f"{flag} {name}: not every {head} has a field {field}")
        values = [value[field] for value in values]
    return name, values


def _text(value: object, where: str) -> str:
    """A text, a number, or the text of chat messages."""
    from prompts.chat import read_messages, said, whole

    if isinstance(value, list) and value:
        value = "\n".join(message["content"] for message in read_messages(value, where))
    require(isinstance(value, str | int | float), f"{where} is {str(value)[:60]!r}, of type {type(value).__name__}: it must be text")
    return whole(said(value, where), where)


def _run_of(file: Path) -> dict:
    """The flags of the run whose completions.jsonl or training_completions.jsonl this is; empty for any other file."""
    args = file.with_name("args.json")
    if file.name not in ("completions.jsonl", "training_completions.jsonl") or not args.is_file():
        return {}
    try:
        return json.loads(args.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{args}: not JSON ({error}); copy {file.name} elsewhere to look at it without the run's flags") from error


def _joined(data: Completions, dataset: str, encoder, names: tuple[str, str, str], usable: tuple) -> dict[str, list]:
    """The columns of the data set that the file lacks, B values each, found by the prompt's text. names: column flags as in training;
    usable: the last two arguments of `load_prompts`."""
    from prompts import load_prompts

    columns = {}
    for prompts in load_prompts(dataset, encoder, *names, sys.maxsize, *usable).values():
        for name, values in prompts.columns.items():
            columns.setdefault(name, []).extend(values)
    places = {prompt: place for place, prompt in enumerate(columns["prompt"])}
    unknown = [prompt for prompt in dict.fromkeys(data.prompts) if prompt not in places]
    if unknown:
        raise UserError(
            f"--dataset {dataset} lacks {len(unknown)} of the file's {len(set(data.prompts))} prompts, such as {unknown[0][:60]!r}: "
            "give the data set they are from, and with --tokenizer the model, since its chat template is part of a prompt"
        )
    return {name: [values[places[p]] for p in data.prompts] for name, values in columns.items() if name not in data.columns}


def _tokenizer(name: str):
    from common.model import load_tokenizer

    try:
        return load_tokenizer(name)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--tokenizer")) from error


def _token_ids(data: Completions, tokenizer: str, encoder) -> tuple[list[list[int]], str]:
    """B lists of token ids and what they count. Words, numbered as they come, where there is no tokenizer: good for lengths alone."""
    if data.ids is not None:
        return data.ids, "tokens (completion_ids)"
    if encoder is not None:  # that a completion was cut off before its end does not show in the text
        ids = encoder(data.texts, add_special_tokens=False)["input_ids"]
        return [[*row, encoder.eos_token_id] for row in ids], f"tokens of {tokenizer}, an end of sequence added to each"
    number = {}
    return [[number.setdefault(word, len(number)) for word in text.split()] for text in data.texts], "words, for want of --tokenizer"


def _weights(weights: Sequence[float], names: list[str]) -> Array:
    """[K], summing to 1."""
    given = np.array(weights or [1.0] * len(names))
    require(len(given) == len(names), f"--weights has {len(given)} numbers for {len(names)} objectives ({', '.join(names)})")
    valid = bool((given >= 0).all()) and 0 < given.sum() < np.inf
    require(valid, f"--weights {' '.join(map(str, weights))} must not be negative, nor all zero")
    return given / given.sum()


# --- statistics ---


@dataclass(frozen=True)
class Statistics:
    """Of K rewards on B completions; the matrices have the length as their last row and column, and NaN where one of two is constant.

    From `signal` on all is over the P prompts that have two completions or more, and NaN where there are none.
    """

    mean: Array  # [K]
    sd: Array  # [K], 1/B; sd² = between² + within² where every prompt has as many completions
    low: Array  # [K]
    high: Array  # [K]
    distinct: NDArray[np.int64]  # [K] number of different values
    commonest: Array  # [K] share of the most common value
    correlation: Array  # [K+1, K+1] over all completions
    prompts: int  # P
    signal: Array  # [K] share of prompts whose completions differ
    between: Array  # [K] standard deviation of the prompts' means
    within: Array  # [K] root of the mean variance within a prompt
    within_correlation: Array  # [K+1, K+1] of the mean covariances within a prompt
    law: Array  # [K] Cov(r_k, sum_j w_j r_j) within a prompt, mean
    law_se: Array  # [K] its standard error over prompts; NaN for a single prompt


def statistics(rewards: Array, lengths: Array, groups: NDArray[np.int64], weights: Array) -> Statistics:
    """All that is printed, in float64. rewards [B, K], lengths [B] in tokens, groups [B] numbers of the prompts from 0, weights [K].

    `law` is the covariance law's first order (arXiv 2602.06869, eq. 3) for linear scores: the mean of C w over prompts, with C a prompt's
    covariance of the rewards. A prompt counts once, whatever its number of completions.
    """
    values = np.column_stack([rewards, lengths])  # [B, K+1]
    overall = _centred(values, np.zeros(len(values), dtype=np.int64))[0]
    counts = [Counter(column) for column in rewards.T.tolist()]

    kept = (np.bincount(groups) > 1)[groups]
    group = np.unique(groups[kept], return_inverse=True)[1]
    centred, means = _centred(values[kept], group)
    covariances = np.zeros((len(means), values.shape[1], values.shape[1]))  # [P, K+1, K+1]
    np.add.at(covariances, group, centred[:, :, None] * centred[:, None, :])
    covariances /= np.bincount(group)[:, None, None]
    laws = covariances[:, :-1, :-1] @ weights  # [P, K]
    P, K = laws.shape

    def over_prompts(values: Array) -> Array:
        return values.mean(0) if P else np.full(values.shape[1:], np.nan)

    within = over_prompts(covariances)
    return Statistics(
        mean=rewards.mean(0),
        sd=np.sqrt((overall[:, :-1] ** 2).mean(0)),
        low=rewards.min(0),
        high=rewards.max(0),
        distinct=np.array([len(count) for count in counts]),
        commonest=np.array([max(count.values()) / len(values) for count in counts]),
        correlation=_correlation(overall.T @ overall / len(values)),
        prompts=P,
        signal=over_prompts((covariances.diagonal(0, 1, 2) > 0)[:, :-1]),
        between=np.sqrt(over_prompts((means - over_prompts(means)) ** 2)[:-1]),
        within=np.sqrt(within.diagonal()[:-1]),
        within_correlation=_correlation(within),
        law=over_prompts(laws),
        law_se=laws.std(0, ddof=1) / P**0.5 if P > 1 else np.full(K, np.nan),
    )


def _centred(values: Array, group: NDArray[np.int64]) -> tuple[Array, Array]:
    """Values [B, D] minus the mean of their group, and the means [P, D]. Where a group's values are equal, exactly 0 and not a rounding
    error: what is constant has no covariance, however small."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    if not len(starts):
        return values, values
    low, high, total = (f.reduceat(values[order], starts, axis=0) for f in (np.minimum, np.maximum, np.add))
    means = np.where(low == high, low, total / np.diff(starts, append=len(group))[:, None])
    return values - means[group], means


def _correlation(covariance: Array) -> Array:
    """[D, D] -> [D, D]; NaN where a variance is 0."""
    sd = np.sqrt(covariance.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / np.outer(sd, sd)


# --- words ---


def describe(names: list[str], weights: Array, found: Statistics) -> str:
    """The statistics as tables, at most WIDTH columns wide for up to ten objectives, and a line for each thing to know before training.

    names [K], weights [K] summing to 1.
    """
    blocks = [_table(names, found), _matrix([*names, "length"], found)]
    if found.prompts:
        blocks.append(_law(names, weights, found))
    remarks = [*_dead(names, found), *_pairs([*names, "length"], found), *_given_up(names, weights, found)]
    if not found.prompts:
        remarks.append("No prompt has two completions: signal, correlations within prompts and the law's prediction need several of each.")
    return "\n\n".join(blocks + ["\n".join(remarks)] * bool(remarks))


def _table(names: list[str], found: Statistics) -> str:
    head = ("objective", "mean", "sd", "min", "max", "distinct", "commonest", "signal", "between", "within")
    widths = (9, 9, 9, 9, 9, 10, 8, 9, 8)
    rows = [head]
    for k, name in enumerate(names):
        numbers = [_number(column[k]) for column in (found.mean, found.sd, found.low, found.high)]
        inside = [_number(column[k]) for column in (found.between, found.within)]
        rows.append((_short(name, 16), *numbers, str(found.distinct[k]), _share(found.commonest[k]), _share(found.signal[k]), *inside))
    return "\n".join(row[0].ljust(16) + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True)) for row in rows)


def _matrix(names: list[str], found: Statistics) -> str:
    width = max(7, min(13, (WIDTH - 16) // len(names)))
    lines = ["correlation: above the diagonal over all completions, below it within prompts"]
    lines.append(" " * 16 + "".join(_short(name, width - 1).rjust(width) for name in names))
    for i, name in enumerate(names):
        numbers = [found.correlation[i, j] if i < j else found.within_correlation[i, j] for j in range(len(names))]
        cells = ["." if i == j else "-" if np.isnan(r) else f"{r:+.2f}" for j, r in enumerate(numbers)]
        lines.append(_short(name, 16).ljust(16) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def _law(names: list[str], weights: Array, found: Statistics) -> str:
    words = {1: "rises", -1: "falls", 0: "not told from 0"}
    lines = [f"first order, {_told(weights)}: Cov(r_k, sum_j w_j r_j) within prompts, mean ± se over {found.prompts} of them"]
    for name, value, se, move in zip(names, found.law, found.law_se, _moves(weights, found), strict=True):
        lines.append(f"{_short(name, 16):16}{_number(value, '+'):>9} ± {'-' if np.isnan(se) else f'{se:.2g}':8}{words[move]}")
    return "\n".join(lines)


def _moves(weights: Array, found: Statistics) -> list[int]:
    """[K] +1 or -1 where the law's prediction is beyond NOISE standard errors, else 0, as for a single prompt."""
    rounding = 1e-9 * found.within * (weights @ found.within)  # where weights cancel, what is left is no prediction
    return [int(np.sign(x)) if abs(x) > max(NOISE * se, r) else 0 for x, se, r in zip(found.law, found.law_se, rounding, strict=True)]


def _dead(names: list[str], found: Statistics) -> list[str]:
    from common.run import LITTLE

    lines = []
    for k, name in enumerate(names):
        if found.low[k] == found.high[k]:
            lines.append(f"{name} is dead: {_number(found.low[k])} for every completion, so nothing can be learned from it.")
        elif found.prompts and found.signal[k] == 0:
            told = f"constant within each of {found.prompts} prompts (sd between them {_number(found.between[k])})"
            lines.append(f"{name} is dead: {told}. No covariance, so nothing can be learned from it.")
        elif found.prompts and found.within[k] < LITTLE:  # of a unit variance's covariance with it
            told = f"{name} hardly varies: within prompts its sd is {_number(found.within[k])}, and no covariance with advantages is larger"
            lines.append(f"{told}. Targets of a controller may be out of reach; scale it to 0 to 1.")
    return lines


def _pairs(names: list[str], found: Statistics) -> list[str]:
    """Near-duplicates, the length among them, and objectives that pull apart; within prompts where there are several completions of one."""
    lines = []
    inside, matrix = (" within prompts", found.within_correlation) if found.prompts else ("", found.correlation)
    for i, j in combinations(range(len(names)), 2):
        pair, r = f"{names[i]} and {names[j]}", matrix[i, j]
        if abs(r) > DUPLICATE and j == len(names) - 1:
            lines.append(f"{names[i]} is nearly the length, correlation {r:+.2f}{inside}.")
        elif r > DUPLICATE:
            lines.append(f"{pair} are nearly the same, correlation {r:+.2f}{inside}: their weights add up.")
        elif r < OPPOSED and found.prompts and j < len(names) - 1:
            lines.append(f"{pair} pull apart, correlation {r:+.2f}{inside}: their sum trades one for the other.")
    return lines


def _given_up(names: list[str], weights: Array, found: Statistics) -> list[str]:
    falling = [name for name, move in zip(names, _moves(weights, found), strict=True) if move < 0]
    if not falling:
        return []
    return [f"With {_told(weights)} {' and '.join(falling)} would be given up at first order; docs/algos/README.md says what prevents it."]


def _told(weights: Array) -> str:
    return "equal weights" if np.ptp(weights) == 0 else f"weights {' '.join(f'{w:.3g}' for w in weights)}"


def _number(x: float, sign: str = "") -> str:
    return "-" if np.isnan(x) else f"{round(float(x), 12) + 0.0:{sign}.3g}"  # what rounding leaves of 0, and -0, are 0


def _share(x: float) -> str:
    return "-" if np.isnan(x) else f"{x:.0%}"


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
