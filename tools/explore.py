"""`python run.py explore`: a page on which the weights can be turned. One HTML file with batches of
a run in it: every completion's advantage and the predicted change of each objective follow the
weights, and what other controllers would have chosen is a click away.

The page computes in the reader's browser; its mathematics is explore.js, which a test compares with
the scripts' own functions.
"""

import html
import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.errors import require, told_as
from common.runs import Run, write_whole
from tools.logs import Columns, Log, beside, load, load_samples, load_statistics
from tools.scripts import ROOT

USAGE = "RUN [--out FILE]"
TEMPLATE, MATHS = Path(__file__).with_suffix(".html"), Path(__file__).with_suffix(".js")
FLAGS = ("script", "model", "dataset", "estimator", "seed", "steps")  # that the page shows,
FLAGS += ("completions", "mini_batches", "epochs")  # or counts with
MARK = '<meta name="generator" content="CleanMOA explore">'  # of a page that may be replaced
LOGGED = (  # what a page of another trainer's log says of itself
    "its curves and what is measured are of training completions, not of held-out prompts. It has "
    "no log-probabilities, so how far a step went is not known, nor what is by the move."
)
TEXTS, NUMBERS = 300_000, 1_500_000  # bytes of completions and numbers; beyond, some are left out


@dataclass
class Args(Columns):
    """A page on which the weights of a run can be turned."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """run folder, finished or still running; --log-completions keeps the texts that are shown. Or
    the log of another trainer, a .parquet, .csv or .jsonl, or a folder of them"""
    out: str = ""
    """the page; default: explore.html in the run's folder, or beside the log. An older page is
    replaced, another file is not"""


def main(argv: list[str]) -> None:
    """turn the weights on the batches of a run: who is rewarded, what becomes of each objective; a
    page, opened as a file"""
    args = tyro.cli(Args, prog="python run.py explore", args=argv)
    run = load(args.run, args)
    out = Path(args.out or beside(run, "explore.html"))
    require(
        not out.is_file() or MARK in out.read_text(errors="replace"),
        f"--out {out} exists and is no page of explore: name another file",
    )
    text = page(page_data(run))
    with told_as(f"--out {out} cannot be written"):
        write_whole(out, text)
    print(out.resolve().as_uri())


def page(data: dict) -> str:
    """The page's HTML of what `page_data` gives, which stands in it as JSON, so that a page can be
    made anew from itself.

    Completions are whatever a model wrote: `<` is escaped here so that they cannot end the script
    element, and the page's script puts them into text nodes only. Raises ValueError for a number
    that is not finite.
    """
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    head, tail = TEMPLATE.read_text(encoding="utf-8").split("__DATA__")
    head = head.replace("__MARK__", MARK).replace("__TITLE__", html.escape(data["name"]))
    return head + embedded + tail.replace("__MATHS__", MATHS.read_text(encoding="utf-8"))


def page_data(run: Run) -> dict:
    """What the page shows, ready for JSON. `steps` has batches of B completions, K objectives, as
    statistics.jsonl has them, and with each `weights` [K]: the run's own, of sum 1; `rate`: nats
    per unit of advantage; `chosen`: for each controller weights [K] or null; `advantages` [B] where
    they are not those of a weighted sum; `prompts` and `texts` by their number, as far as the run
    kept them.

    Raises UserError for a run of one objective or without a step.
    """
    names = run.objectives
    require(
        len(names) > 1, f"{run.path} has one objective, so no weights to turn; explain tells of it"
    )
    told = f"{run.path}: no step yet; look again once the run has taken its first"
    require(len(run.rows) > 1, told)
    lines = load_statistics(run)[: len(run.rows) - 1]  # a step's metrics are written last
    from tools.counterfactual import choices  # loads torch: a mistake in the flags is told at once

    found, texts = choices(run, lines), _texts(run)
    own = found.get(run.args["script"])  # none of a script that is no longer there
    summed = run.summed if isinstance(run, Log) else own and own.summed
    for at, (line, row) in enumerate(zip(lines, run.rows[1:], strict=True)):
        line["weights"] = [row[f"weight_share/{name}"] for name in names]
        line["rate"] = row.get("law/rate")
        line["chosen"] = {name: choice.weights[at] for name, choice in found.items()}
        line.pop("gram", None)
        if summed and min(line["weights"]) >= 0:
            del line["advantages"]
    stride, last = 1 + len(json.dumps(lines)) // NUMBERS, lines[-1]["step"]
    steps = [
        line | texts.get(line["step"], {})
        for number, line in enumerate(lines, 1)
        if number in (1, len(lines)) or line["step"] in texts or number % stride == 0
    ]
    scripts = {name: importlib.import_module(f"algos.{name}") for name in found}
    return {
        "name": run.name,
        "args": {flag: run.args[flag] for flag in FLAGS},
        "objectives": names,
        "pays": _pays(run),
        "about": {name: _first(script) for name, script in scripts.items()},
        "last": last,
        "estimated": [name for name, choice in found.items() if choice.estimated],
        "curves": {
            name: [*run.series(f"eval/{name}"), run.series(f"eval/{name}_se")[1]] for name in names
        },
        "steps": steps,
    }


def _first(described) -> str:
    """The first paragraph of a docstring."""
    return inspect.getdoc(described).split("\n\n")[0].replace("\n", " ")


def _pays(run: Run) -> dict[str, str]:
    """What an objective pays for, by its name: what its function says of itself, of this
    collection's own rewards alone. A run's other reward files are not loaded: a page is made of
    what a run logged, and executes nothing of it."""
    if isinstance(run, Log):
        return {"This page is made of another trainer's log": LOGGED}
    own, found = {f"rewards.{file.stem}" for file in ROOT.glob("rewards/[a-z]*.py")}, {}
    for spec, name in zip(run.args["rewards"], run.objectives, strict=True):
        module, _, function = spec.partition(":")
        if module in own:
            found[name] = _first(getattr(importlib.import_module(module), function))
    return found


def _texts(run: Run) -> dict[int, dict[str, dict]]:
    """Prompts and completions by their number in a step, for each step of which some were kept; of
    more prompts than there is room for every second one, or third, and so on."""
    blocks = {}
    for sample in load_samples(run):
        number = sample["row"] // run.args["completions"]
        blocks.setdefault((sample["step"], number), []).append(sample)
    found: dict[int, dict[str, dict]] = {}
    stride = 1 + len(json.dumps([*blocks.values()])) // TEXTS
    for step, number in list(blocks)[::stride]:
        own = found.setdefault(step, {"prompts": {}, "texts": {}})
        for sample in blocks[step, number]:
            own["texts"][sample["row"]] = sample["completion"]
            prompt = sample["prompt"]
            own["prompts"][number] = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return found
