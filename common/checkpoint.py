"""Checkpoints of a run: written whole or not at all, read on any number of ranks without executing anything, the last two kept,
and one that is asked for.

run/checkpoints/step_000100/ holds
    __0_0.distcp, __1_0.distcp, ...   each rank's share of the tensors `policy.<name>` and `optimizer.<name>.<field>`
    .metadata                         where in these files each part of each tensor is
    state.pt                          the algorithm's state: small, and the same on all ranks
    manifest.json                     size and CRC-32 of each of these files
The first two are the format of torch.distributed.checkpoint, whose tools (`format_utils.dcp_to_torch_save`) read the folder as well. Its
safetensors writer was not taken: it holds two copies of a rank's share in host memory, this one a copy of a single tensor.

Both functions are collective: every rank calls them on a folder that all ranks share, and returns or raises as the others do.
"""

import io
import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import metadata

from common import ranks
from common.errors import UserError, require
from integrations.checkpoint_files import Reader, Writer, as_user_error, fingerprint, flush_names, write_through

KEPT = 2


def save_checkpoint(
    run: Path, step: int, policy: nn.Module, optimizer: torch.optim.Optimizer, state: dict, kept: int | None = None
) -> None:
    """Write the checkpoint of this step to run/checkpoints and keep the last two, and that of the step `kept` if there is one.

    state: nested dicts and lists of small tensors, numbers, strings and None, the same on all ranks. Raises UserError if the folder cannot
    be written or the disk is full; the earlier checkpoints are then as they were.
    """
    folder = run / "checkpoints" / f"step_{step:06d}"
    temporary = folder.with_suffix(".tmp")
    tensors = _policy_tensors(policy)
    names = {id(tensor): name.removeprefix("policy.") for name, tensor in tensors.items()}
    # not torch's get_optimizer_state_dict: it takes a step of an optimizer that has no state yet, which would then count one too many
    for parameter, fields in optimizer.state.items():
        tensors |= {f"optimizer.{names[id(parameter)]}.{field}": value for field, value in fields.items()}
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise TypeError(f"{others[0]} is no tensor: it would be pickled, and loading refuses that")
    marks = {}

    @as_user_error()
    def prepare() -> None:
        for left in folder.parent.glob("step_*.tmp"):  # of a run that was killed while it wrote
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
        torch.save(state, buffer := io.BytesIO())
        write_through(temporary / "state.pt", buffer.getvalue())

    @as_user_error()
    def fingerprints() -> dict[str, list[int]]:
        """Of the files that this rank wrote."""
        own = (f"__{ranks.rank()}_", *((".metadata", "state.pt") if ranks.rank() == 0 else ()))
        return {path.name: fingerprint(path) for path in temporary.iterdir() if path.name.startswith(own)}

    @as_user_error()
    def publish() -> None:
        for name in marks:
            require((temporary / name).exists(), f"{name} is missing: all ranks must share this folder")
        write_through(temporary / "manifest.json", json.dumps(marks, indent=1).encode())
        flush_names(temporary)  # the rename must not reach the disk before the content
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was stopped at this step and resumed from an earlier one
        os.replace(temporary, folder)
        flush_names(folder.parent)

    try:
        ranks.on_first(prepare)
        with as_user_error():
            dcp.save(tensors, storage_writer=Writer(temporary))
        for part in ranks.together(fingerprints):
            marks |= part
        ranks.on_first(publish)
    except UserError as error:
        ranks.on_first(lambda: shutil.rmtree(temporary, ignore_errors=True))
        told = f"step {step}: the checkpoint cannot be written to {folder} ({error})"
        if ranks.on_first(lambda: bool(_folders(run))):
            goes_on = f"those before it are intact. Make room there or make it writable, then continue with --resume {run}"
        else:
            goes_on = "there is none before it. Make room there, or give another --out, and start again"
        raise UserError(f"{told}; {goes_on}") from error
    ranks.on_first(lambda: [shutil.rmtree(old, ignore_errors=True) for old in _folders(run)[:-KEPT] if _step(old) != kept])


def load_checkpoint(run: Path, policy: nn.Module, optimizer: torch.optim.Optimizer | None, of: int | None = None) -> tuple[int, dict]:
    """Fill policy and optimizer, where there is one, from the newest checkpoint that every rank can read, and return its (step, state).

    of: take no other than this step's. Else one that cannot be read is named and the one before it used. Tensors of state that were on a
    GPU come to the policy's device, others to the CPU. The optimizer keeps its learning rate and other settings. Raises UserError naming
    --resume if none can be read.
    """
    for folder in reversed(ranks.on_first(lambda: [f for f in _folders(run) if of in (None, _step(f))])):
        try:
            return _step(folder), _load(folder, policy, optimizer)
        except UserError as error:
            if ranks.rank() == 0:
                print(f"checkpoint {folder} cannot be read ({error}); trying the one before it")
    raise UserError(f"--resume {run}: no readable checkpoint in {run / 'checkpoints'}; start again without --resume")


def _load(folder: Path, policy: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict:
    """Fill policy and optimizer and return the state, or raise UserError on every rank.

    A damaged checkpoint is found before the policy is touched. Only forged data, whose checksums are right, can leave it partly filled;
    then the checkpoint before fills all of it, or the run ends.
    """
    tensors, state, moments = _policy_tensors(policy), {}, {}
    device, reader = next(iter(tensors.values())).device, Reader(folder)

    def place(storage: torch.UntypedStorage, saved_on: str) -> torch.UntypedStorage:
        return storage if saved_on == "cpu" else storage.to(device=device)

    def examine() -> None:
        with as_user_error("manifest.json"):
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            files = sorted(manifest)[ranks.rank() :: ranks.count()]  # each rank a share of them
        for name in files:
            with as_user_error(name):
                require(fingerprint(folder / name) == manifest[name], f"{name} is not as it was written")
        with as_user_error("state.pt"):
            state.update(torch.load(folder / "state.pt", map_location=place, weights_only=True))
        with as_user_error(".metadata"):
            moments.update(_empty_moments(reader.read_metadata().state_dict_metadata, tensors))

    ranks.together(examine)
    if not optimizer:
        moments.clear()
    with as_user_error("*.distcp"):
        dcp.load(tensors | moments, storage_reader=reader)
    if not optimizer:
        return state
    index = {id(parameter): i for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    loaded = {}
    for key, value in moments.items():
        name, field = _owner(key)
        loaded.setdefault(index[id(tensors[name])], {})[field] = value
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


# --- Tensors ---


def _policy_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers as `policy.<name>`, tied ones once. The very tensors, so that loading fills them in place."""
    first = {}
    for name, tensor in policy.state_dict(keep_vars=True).items():  # brings FSDP's parameters into their sharded form
        first.setdefault(id(tensor), (f"policy.{name}", tensor))
    return dict(first.values())


def _empty_moments(saved: dict[str, metadata.TensorStorageMetadata], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Room for the optimizer state in a checkpoint: sharded like the parameter where it has the parameter's shape, whole on the CPU
    elsewhere (AdamW's count of steps). Raises ValueError if the checkpoint is of another model."""
    if other := {key for key in saved if key.startswith("policy.")} ^ tensors.keys():
        raise ValueError(f"of another model: {min(other).removeprefix('policy.')} is only in one of them")
    moments = {}
    for key in saved.keys() - tensors.keys():
        size, dtype, parameter = saved[key].size, saved[key].properties.dtype, tensors[_owner(key)[0]]
        moments[key] = torch.zeros_like(parameter, dtype=dtype) if size and size == parameter.shape else torch.zeros(size, dtype=dtype)
    return moments


def _owner(key: str) -> tuple[str, str]:
    """`optimizer.<name>.<field>` -> (`policy.<name>`, `<field>`)."""
    name, field = key.removeprefix("optimizer.").rsplit(".", 1)
    return f"policy.{name}", field


# --- Folders ---


def _folders(run: Path) -> list[Path]:
    """The checkpoints, oldest first; not those half written."""
    return sorted((f for f in (run / "checkpoints").glob("step_*") if f.name[5:].isdigit()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
