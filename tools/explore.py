"""`python run.py explore`: a page on which the weights can be turned. One HTML file with batches of a run in it: every completion's
advantage and the predicted change of each objective follow the weights, and what other controllers would have chosen is a click away.

The page computes in the reader's browser; its mathematics is explore.js, which a test compares with the scripts' own functions.
"""

import html
import importlib
import inspect
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tools.curves import COLOURS
from common.runs import Run, load_run, load_statistics
from tools.explain import scalarised
from tools.scripts import algorithms
from common.errors import UserError, require
from common.files import write_whole

USAGE = "RUN [--out FILE]"
TEMPLATE, MATHS = Path(__file__).with_suffix(".html"), Path(__file__).with_suffix(".js")
PARTS = Path(__file__).with_name("parts.js")
FACTS = {"script": "algorithm", "model": "model", "dataset": "data", "estimator": "advantages"}
MARK = '<meta name="generator" content="CleanMOA explore">'  # of a page that may be replaced
OWN = {f"rewards.{path.stem}" for path in (Path(__file__).parents[1] / "rewards").glob("[a-z]*.py")}
TEXTS, NUMBERS = 300_000, 500_000  # bytes of completions, and of the other numbers of steps; beyond them steps are left out


@dataclass
class Args:
    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]] = ""
    """run folder, finished or still running; --log-completions keeps the texts that are shown"""
    out: str = ""
    """the page; default: explore.html in the run's folder. An older page is replaced, another file is not"""


def main(argv: list[str]) -> None:
    """turn the weights on the batches of a run: who is rewarded, what becomes of each objective; a page, opened as a file"""
    args = tyro.cli(Args, prog="python run.py explore", description="A page on which the weights of a run can be turned.", args=argv)
    require(bool(args.run), "explore: which run? python run.py explore RUN, such as runs/linear-s1")
    out = Path(args.out) if args.out else Path(args.run) / "explore.html"
    _require_free(out)
    text = page(page_data(load_run(args.run)))
    try:
        write_whole(out, text)
    except OSError as error:
        raise UserError(f"explore: --out {out} cannot be written ({error.strerror}); name a file in a folder that exists") from None
    print(out.resolve().as_uri())


def _require_free(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"explore: --out {out} is a folder; name a file in it, such as {out / 'explore.html'}")
    if out.is_file() and MARK.encode() not in out.read_bytes()[:1000]:
        raise UserError(f"explore: --out {out} exists and is no page of explore; name another file, or remove it")


def page(data: dict) -> str:
    """The page's HTML of what `page_data` gives, which stands in it as JSON, so that a page can be made anew from itself; `about` joins it,
    the first sentences of each controller's script as it is today.

    Completions are whatever a model wrote: `<` is escaped here so that they cannot end the script element, and the page's script puts
    them into text nodes only. Raises ValueError for a number that is not finite.
    """
    docs = {name: inspect.getdoc(importlib.import_module(f"algos.{name}")) for name in algorithms()}
    about = {name: docs[name].split("\n\n")[0].replace("\n", " ") for name in data["steps"][0]["chosen"] if name in docs}
    data = data | {"about": about}
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")  # ASCII: U+2028 too
    head, tail = TEMPLATE.read_text(encoding="utf-8").split("__DATA__")
    tail = tail.replace("__MATHS__", MATHS.read_text(encoding="utf-8")).replace("__PARTS__", PARTS.read_text(encoding="utf-8"))
    return head.replace("__MARK__", MARK).replace("__TITLE__", html.escape(data["name"])) + embedded + tail


def page_data(run: Run) -> dict:
    """What the page shows, ready for JSON. `steps` has a batch of B completions each, P prompts of `size`, K objectives:

    kinds [n][K + 1]: rewards and length (tokens) of the completions that differ in them; of [B]: which of them a completion is; drift [B]
    and age [P]: see common/observe.py; weights [K]: the run's own, of sum 1; rate: nats per unit of advantage; chosen: for each
    controller weights [K] or null; paid [B]: the run's own advantages, where they are not those of a weighted sum; prompts and texts:
    of the first completions, where the run kept them.

    Raises UserError for a run of one objective, one without statistics or with a reward that is not finite, and a line that is broken.
    """
    told = f"there are no weights to turn; python run.py plot {run.path} draws it"
    require(len(run.objectives) > 1, f"{run.path} has one objective, {run.objectives[0]}: {told}")
    rows, size = {row["step"]: row for row in run.rows}, run.args["completions"]
    lines = [line for line in load_statistics(run) if line["step"] in rows]  # a run in progress writes its metrics last
    require(bool(lines), f"{run.path}: statistics.jsonl has no step yet; look again once the run has taken its first")
    for line in lines:
        lost = [name for name, rewards in zip(run.objectives, zip(*line["rewards"], strict=True), strict=True) if None in rewards]
        told = f"{run.path}: {', '.join(lost)} was not finite in step {line['step']}, so that no advantage can be told"
        require(not lost, f"{told}; mend the reward and train anew")
    from tools.counterfactual import counterfactual_weights  # loads torch: a mistake in the flags is told at once

    scripts = {name: importlib.import_module(f"algos.{name}") for name in algorithms()}
    _, chosen, estimated = counterfactual_weights(run, scripts)
    summed = scalarised(run, 0, lines[-1]["step"])
    texts, without = _texts(run)
    steps = {}
    for i, line in enumerate(lines):
        row = rows[line["step"]]
        steps[line["step"]] = {
            "step": line["step"],
            **_kinds(line),
            "drift": _rounded(line.get("drift", []), 5),
            "age": line.get("age", [])[::size],  # a prompt's completions are trained on together
            "weights": _rounded((row.get(f"weight_share/{name}") for name in run.objectives), 5),
            "rate": row.get("law/rate"),
            "chosen": {name: _finite(weights[i]) for name, weights in chosen.items()},
            **({} if summed else {"paid": _rounded(line["advantages"], 5)}),
        }
    kept = fewer({step: len(json.dumps(own)) for step, own in steps.items()}, NUMBERS, spared=texts)
    facts = [f"{word} {run.args[key]}" for key, word in FACTS.items() if run.args.get(key)]
    return {
        "name": run.name,
        "facts": " · ".join([*facts, f"seed {run.args.get('seed')}"]),
        "script": run.args.get("script", ""),
        "objectives": run.objectives,
        "pays": _pays(run),
        "size": size,
        "estimator": run.args["estimator"],
        "updates": run.args.get("mini_batches", 1) * run.args.get("epochs", 1),
        "last": run.rows[-1]["step"],
        "planned": run.args.get("steps", run.rows[-1]["step"]),
        "colours": COLOURS,
        "estimated": ["mgda", "nash_mtl"] if estimated else [],
        "curves": {name: _curve(run, name) for name in run.objectives},
        "steps": [steps[step] | texts.get(step, {}) for step in kept],
        "left_out": len(steps) - len(kept),
        "texts_left_out": without,
    }


def _pays(run: Run) -> dict[str, str]:
    """What an objective pays for, by its name: the first sentence of its function, of this collection's own rewards alone. A run's other
    reward files are not loaded: a page is made of what a run logged, and executes nothing of it."""
    found = {}
    for spec, name in zip(run.args.get("rewards", ()), run.objectives, strict=False):
        module, _, function = spec.partition(":")
        if module in OWN:
            told = inspect.getdoc(getattr(importlib.import_module(module), function, None)) or ""
            found[name] = told.split(". ")[0].split("\n\n")[0].rstrip(".").removeprefix("Reward ").replace("\n", " ")
    return found


def _kinds(line: dict) -> dict[str, list]:
    """A batch's rewards and lengths, of which many are the same, each once and by number."""
    found: dict[tuple, int] = {}
    of = [found.setdefault((*rewards, length), len(found)) for rewards, length in zip(line["rewards"], line["lengths"], strict=True)]
    return {"kinds": [list(kind) for kind in found], "of": of}


def _finite(weights) -> list[float] | None:
    """Of a controller that could tell: a tensor [K], or None."""
    return None if weights is None or not weights.isfinite().all() else _rounded(weights.tolist(), 4)


def _rounded(values: Iterable[float | None], digits: int) -> list[float | None]:
    return [None if value is None else float(f"{value:.{digits}g}") for value in values]


def _curve(run: Run, name: str) -> list[list[float]]:
    """Steps, held-out values and their standard errors, which an older run may lack."""
    steps, values = run.series(f"eval/{name}")
    errors = dict(zip(*run.series(f"eval/{name}_se"), strict=True))
    return [steps, _rounded(values, 4), _rounded((errors.get(step) for step in steps), 4)]


def _texts(run: Run) -> tuple[dict[int, dict[str, list]], int]:
    """Prompts and texts of the first completions of a step, for each step of which they were kept and have room; how many had none."""
    found: dict[int, dict[str, list]] = {}
    for sample in read_samples(run, "training_completions.jsonl"):
        own = found.setdefault(sample["step"], {"prompts": [], "texts": []})
        if sample["row"] % run.args["completions"] == 0:
            own["prompts"].append(sample["prompt"] if isinstance(sample["prompt"], str) else json.dumps(sample["prompt"]))
        own["texts"].append(sample["completion"])
    sizes = {step: len(json.dumps(own)) for step, own in found.items()}
    kept = fewer(sizes, TEXTS)
    for step in kept:  # of long completions, fewer prompts
        own = found[step]
        while len(own["prompts"]) > 1 and len(json.dumps(own)) > TEXTS / len(kept):
            own["prompts"].pop()
            own["texts"] = own["texts"][: len(own["prompts"]) * run.args["completions"]]
    return {step: found[step] for step in kept}, len(found) - len(kept)


def read_samples(run: Run, name: str) -> list[dict]:
    """The lines of a run's file of completions, none where there is no such file; a half written last line is passed over. Raises
    `UserError` for any other line that is broken."""
    file = run.path / name
    samples = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.is_file() else [], start=1):
        try:
            samples.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{file} line {number}: not JSON ({error}); delete the line to read the rest") from None
    return samples


def fewer(sizes: dict[int, int], room: int, spared: Collection[int] = ()) -> list[int]:
    """Steps, every second of which is left out, never the first or the last, until their sizes add up to `room` at most or two are left.
    Those that are `spared` stay as long as there are others."""
    kept = list(sizes)
    while len(kept) > 2 and sum(sizes[step] for step in kept) > room:
        inner = [step for step in kept[1:-1] if step not in spared] or kept[1:-1]
        kept = [step for step in kept if step not in inner[::2]]
    return kept
