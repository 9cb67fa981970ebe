"""Which algorithms there are, for the entrance and for the commands that take their names."""

import difflib
import os
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def algorithms() -> dict[str, Path]:
    """Every script in algos/ by its name, relative to the current folder as a user types it.

    A new file there is a new command.
    """
    scripts = sorted(ROOT.glob("algos/[a-z]*.py"))
    return {path.stem: Path(os.path.relpath(path)) for path in scripts}


def nearest(word: str, known: Collection[str]) -> str:
    """The end of a message about a word that is not known: what was meant, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
