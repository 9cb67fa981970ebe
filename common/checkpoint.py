"""Checkpoints: written whole or not at all, read on any number of ranks, the last two kept.

run/checkpoints/step_000100/ holds
    rank_0.pt, rank_1.pt, ...   each rank's share of the tensors `policy.<name>` (of parameters
                                those that are trained) and `optimizer.<name>.<field>`, cut along
                                their first dimension
    state.pt                    what the run and the algorithm remember: the same on all ranks
All are read with weights_only=True, so that no file runs code. Both functions are collective.
"""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from common import ranks
from common.errors import UserError, require, told_as

KEPT = 2


def save_checkpoint(run: Path, step: int, policy, optimizer, state: dict, kept: int | None) -> None:
    """Write the checkpoint of this step and keep the last two, and that of the step `kept`.

    state: nested dicts and lists of small tensors, numbers, strings and None. Raises UserError
    where it cannot be written; the earlier checkpoints are then as they were.
    """
    folder = run / "checkpoints" / f"step_{step:06d}"
    temporary = folder.with_suffix(".tmp")
    tensors = _policy_tensors(policy)
    names = {id(tensor): name.removeprefix("policy.") for name, tensor in tensors.items()}
    for parameter, fields in optimizer.state.items():
        own = names[id(parameter)]
        tensors |= {f"optimizer.{own}.{field}": value for field, value in fields.items()}
    sharded = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]
    layout = {"ranks": ranks.count(), "sharded": sharded}

    then = f"; those before it are intact: make room, then --resume {run}"
    told = (f"{folder} cannot be written", then)

    @told_as(*told)
    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed while it wrote
        temporary.mkdir(parents=True)
        torch.save(state | {"layout": layout}, temporary / "state.pt")

    @told_as(*told)
    def write_share() -> None:
        own = {name: _local(tensor).detach() for name, tensor in tensors.items()}
        torch.save(own, temporary / f"rank_{ranks.rank()}.pt")

    @told_as(*told)
    def publish() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was resumed from before it
        os.replace(temporary, folder)
        for old in _folders(run)[:-KEPT]:
            if _step(old) != kept:
                shutil.rmtree(old, ignore_errors=True)

    ranks.on_first(prepare)
    ranks.together(write_share)
    ranks.on_first(publish)


def load_checkpoint(
    run: Path, policy: nn.Module, optimizer=None, of=None, device: torch.device | str = "cpu"
) -> tuple[int, dict]:
    """Fill policy and optimizer, where there is one, from the newest readable checkpoint, or that
    of the step `of`; returns its (step, state), the tensors of the state on `device`. Raises
    UserError where there is none."""
    folders = ranks.on_first(lambda: [f for f in _folders(run) if of in (None, _step(f))])
    for folder in reversed(folders):
        try:
            state = {}
            ranks.together(
                lambda folder=folder, state=state: _load(folder, policy, optimizer, state, device)
            )
            return _step(folder), state
        except UserError as error:
            ranks.say(f"checkpoint {folder} cannot be read ({error}); trying the one before it")
    told = f"{'--resume' if optimizer else 'RUN'} {run}: no readable checkpoint"
    raise UserError(f"{told}{f' of step {of}' if of else ''} there")


def _load(folder: Path, policy, optimizer, state: dict, device: torch.device | str) -> None:
    with told_as("it is damaged"):
        saved = torch.load(folder / "state.pt", map_location=device, weights_only=True)
        layout, tensors = saved.pop("layout"), _policy_tensors(policy)
        state.update(saved)
        files = [folder / f"rank_{rank}.pt" for rank in range(layout["ranks"])]
        parts = [torch.load(f, map_location="cpu", mmap=True, weights_only=True) for f in files]
        for name, cut in parts[0].items():
            whole = torch.cat([p[name] for p in parts]) if name in layout["sharded"] else cut
            if name.startswith("policy."):
                _fill(tensors[name], whole)
            elif optimizer:
                owner, field = name.removeprefix("optimizer.").rsplit(".", 1)
                parameter = tensors[f"policy.{owner}"]
                like = parameter if whole.shape == parameter.shape else whole
                moment = torch.zeros_like(like, dtype=whole.dtype)
                _fill(moment, whole)
                optimizer.state[parameter][field] = moment


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, or this rank's rows of it, in place."""
    require(tensor.shape == whole.shape, f"of another model, with {tuple(whole.shape)}")
    if isinstance(tensor, DTensor):
        parts = whole.chunk(ranks.count())  # as FSDP cuts it; there may be fewer parts than ranks
        whole = parts[ranks.rank()] if ranks.rank() < len(parts) else _local(tensor)
    _local(tensor).copy_(whole)


def _policy_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and saved buffers as `policy.<name>`, tied ones once: the very tensors."""
    first = {}
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
            first.setdefault(id(tensor), (f"policy.{name}", tensor))
    return dict(first.values())


def _folders(run: Path) -> list[Path]:
    """The checkpoints, oldest first; not those half written."""
    found = (run / "checkpoints").glob("step_*")
    return sorted((folder for folder in found if folder.name[5:].isdigit()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
