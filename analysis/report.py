"""What is shown at the end of a run."""

from pathlib import Path

from analysis.curves import draw
from analysis.runs import load_run
from analysis.verdict import verdict


def report(folder: Path) -> None:
    """Draw curves.png into a run's folder and print the verdict: each objective from start to end, and what was lost.

    Raises UserError where the picture cannot be written.
    """
    run = load_run(folder)
    draw([run], folder / "curves.png")
    print(f"\n{verdict(run).text}\n\ncurves: {folder / 'curves.png'}   model: {folder / 'model'}")
