"""Checkpoints of a run: written whole, loaded without executing anything, the last two kept."""

import os
import pickle
import shutil
from pathlib import Path

import torch

from common.errors import UserError

KEPT = 2


def save_checkpoint(run: Path, step: int, state: dict) -> None:
    """Write state (nested dicts and lists of tensors, numbers and strings) to run/checkpoints/step_XXXXXX and keep the last two."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with open(temporary / "state.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # the rename must not reach the disk before the content
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was stopped at this step and resumed from an earlier one
    os.replace(temporary, folder)
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(run: Path, device: torch.device) -> tuple[int, dict]:
    """(step, state) of the newest checkpoint that can be read; an unreadable one is named and the one before it is used.

    Nothing in the file is executed (`weights_only`). Raises UserError naming --resume if there is none.
    """
    for folder in reversed(_folders(run)):
        try:
            return int(folder.name.removeprefix("step_")), torch.load(folder / "state.pt", map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"checkpoint {folder} cannot be read ({str(error).splitlines()[0]}); trying the one before it")
    raise UserError(f"--resume {run}: no readable checkpoint in {run / 'checkpoints'}; start again with another --out")


def _folders(run: Path) -> list[Path]:
    return sorted(f for f in (run / "checkpoints").glob("step_*") if f.suffix != ".tmp")
