"""The paper's figures at testbed scale, each from finished runs by one command, as PNG and PDF. Nothing is trained.

python -m study.figures 1 [2 ... 8 | readme | all] [--runs FOLDER ...] [--out docs/figures]

Figures of held-out rewards alone (1, 6, 7, 8 and the readme's) need no runs: where the default folder is not there they are drawn from the
evaluations kept in docs/results.
"""

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import tyro

from study import pictures as figures
from tools.curves import write_figure
from study.pictures import Runs, choose
from tools.looks import STYLE
from study.results import unpack
from study.targets import SETTINGS
from common.errors import UserError, plain_errors, require

STUDY, TARGETS, GRADIENTS = "results/study", "results/targets", "results/gradients"
BENCH = "python run.py bench --algos all --seeds 5 --models"
THREE_MODELS = ("testbed:fragile", "testbed:wavering", "testbed:robust")
TESTBED = f"{BENCH} testbed testbed:wavering testbed:robust --out {STUDY}"
README = ("linear", "ctwa", "ratchet")
KEPT = {"1": ("curves.csv",), "6": ("curves.csv",), "7": ("curves.csv",), "8": ("curves.csv",), "readme": ("curves.csv", "field.csv")}
PAPER_TARGETS = (None, SETTINGS["default"])  # None: not CTWA

Found = list[tuple[Path, dict]]


@dataclass
class Args:
    figures: tyro.conf.Positional[
        Annotated[tuple[Literal["1", "2", "3", "4", "5", "6", "7", "8", "readme", "all"], ...], tyro.conf.arg(metavar="N")]
    ]
    """numbers of figures, or all"""
    runs: tuple[str, ...] = ()
    """run folders, or folders that hold them, as bench makes them; default: results/study, with results/targets for figure 4, and
    results/gradients for figure 5; the evaluations in docs/results where a figure needs no more"""
    out: str = "docs/figures"
    """folder of the pictures, made where it is missing; a picture of the same name is replaced"""


def wanted(models: Collection[str], **flags: Collection) -> dict[str, Collection]:
    """The flags that a figure's runs must have, as `choose` takes them."""
    return {"model": models, "dataset": ("arithmetic",), "estimator": ("reinforce",), "cov_targets": PAPER_TARGETS} | flags


def curves(found: Found, models: Collection[str], **flags: Collection) -> tuple[object, list[str]]:
    """Figures 1, 6, 7 and 8: every algorithm that has runs on one of the models."""
    groups, notes = [], []
    for model in models:
        runs, said = choose(found, wanted((model,), **flags))
        groups += [(model, runs)] if runs else []
        absent = ", ".join(script for script in figures.ORDER if script not in runs) if runs else "runs"
        notes += [*said, *([f"without {absent} on {model}"] if absent else [])]
    return groups and figures.draw_curves(groups), notes


def readme(found: Found) -> tuple[object, list[str]]:
    """The readme's figure: the baseline, the paper's algorithm and ours on the fragile model."""
    runs, notes = choose(found, wanted(THREE_MODELS[:1], script=README))
    return runs and figures.draw_readme({script: runs[script] for script in README if script in runs}), notes


def weights(found: Found) -> tuple[object, list[str]]:
    """Figure 2: CTWA on the three models."""
    chosen = {model: choose(found, wanted((model,), script=("ctwa",))) for model in THREE_MODELS}
    models = {model: runs["ctwa"] for model, (runs, _) in chosen.items() if runs}
    return models and figures.draw_weights(models), [note for _, said in chosen.values() for note in said]


def covariances(found: Found) -> tuple[object, list[str]]:
    """Figure 3: the methods that weigh rewards; with gradients weighed, no score of a completion says what the update does."""
    runs, notes = choose(found, wanted(THREE_MODELS[:1], script=figures.REWARD_LEVEL))
    return runs and figures.draw_covariances(runs), notes


def targets(found: Found) -> tuple[object, list[str]]:
    """Figure 4: the settings of study/targets.py, all of the same seeds: those that every setting has; linear from the study."""
    settings: Runs = {}
    notes = []
    for name, values in SETTINGS.items():
        runs, said = choose(found, wanted(THREE_MODELS[:1], script=("ctwa",), cov_targets=(values,)))
        notes += said
        if runs:
            settings[f"{name}\n{' '.join(f'{value:g}' for value in values)}"] = runs["ctwa"]
        else:
            notes.append(f"without {name} targets")
    if len(settings) < 2:  # the default is in the study
        return None, notes
    linear, said = choose(found, wanted(THREE_MODELS[:1], script=("linear",)))
    shared = set.intersection(*({run.args["seed"] for run in runs} for runs in settings.values()))
    require(bool(shared), "--runs: the settings of figure 4 have no seed in common; python -m study.targets trains what is missing")
    settings = {label: [run for run in runs if run.args["seed"] in shared] for label, runs in settings.items()}
    baseline = [run for run in linear.get("linear", []) if run.args["seed"] in shared]
    notes += [*said, *([] if baseline else ["without linear of the same seeds"])]
    return figures.draw_targets(settings, baseline), notes


def conflict(found: Found) -> tuple[object, list[str]]:
    """Figure 5: runs in which the gradients were measured."""
    runs, notes = choose(found, wanted(THREE_MODELS[:1]), file="gradients.jsonl")
    return runs and figures.draw_conflict(runs), notes


# For each figure: what draws it, where its runs are by default, and the command that makes them.
FIGURES: dict[str, tuple[Callable[[Found], tuple[object, list[str]]], tuple[str, ...], str]] = {
    "1": (lambda found: curves(found, THREE_MODELS), (STUDY,), TESTBED),
    "2": (weights, (STUDY,), TESTBED.replace("all", "ctwa")),
    "3": (covariances, (STUDY,), f"{BENCH} testbed --out {STUDY}"),
    "4": (targets, (STUDY, TARGETS), "python -m study.targets"),
    "5": (conflict, (GRADIENTS,), "python -m study.gradients"),
    "6": (
        lambda found: curves(found, ("testbed:fragile3",), dataset=("arithmetic3",)),
        (STUDY,),
        f"{BENCH} testbed:fragile3 --out {STUDY} -- --dataset arithmetic3 --max-new-tokens 80",
    ),
    "7": (lambda found: curves(found, ("testbed:fragile-gpt2",)), (STUDY,), f"{BENCH} testbed:fragile-gpt2 --out {STUDY}"),
    "8": (lambda found: curves(found, THREE_MODELS, estimator=("grpo",)), (STUDY,), f"{TESTBED} --estimator grpo"),
    "readme": (readme, (STUDY,), TESTBED.replace("all", " ".join(README)).replace(" testbed:wavering testbed:robust", "")),
}


def draw(number: str, runs: tuple[str, ...], out: Path) -> list[str]:
    """Write figure-NUMBER.png and .pdf into the folder `out`; returns a line about each run that is left out or missing.

    runs: folders, or none for the figure's own. Raises UserError, with the command that makes them, where the figure has no finished run.
    """
    import matplotlib

    drawing, folders, command = FIGURES[number]
    there = runs or [folder for folder in folders if Path(folder).is_dir()]
    if not there and number in KEPT:
        with TemporaryDirectory() as kept:
            unpack(Path(kept), KEPT[number])
            return draw(number, (kept,), out)
    found = figures.find_runs(there)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure, notes = drawing(found)
        require(bool(figure), f"figure {number}: no finished run of it in {' '.join(runs or folders)}; {command} makes them")
        for ending in ("png", "pdf"):
            write_figure(figure, out / f"figure-{number}.{ending}")
    return [*notes, f"to make what is missing: {command}"] if any(note.startswith("without") for note in notes) else notes


def main(args: Args) -> None:
    """Draw the figures that can be drawn; raises UserError about the last of those that cannot, the others being told before."""
    require(bool(args.figures), f"which figure? python -m study.figures N, with N of {', '.join(FIGURES)} or all")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error.strerror}); give a folder that can be written") from error
    missing = []
    for number in FIGURES if "all" in args.figures else dict.fromkeys(args.figures):
        try:
            notes = draw(number, args.runs, out)
        except UserError as error:
            missing.append(str(error))
            continue
        print(f"wrote {out / f'figure-{number}.png'} and .pdf", *notes, sep="\n  ", flush=True)
    for error in missing[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if missing:
        raise UserError(missing[-1])


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__))
