"""The processes of a run: those that torchrun started, or this one alone, for which every function here works as well.

Two rules make a run the same on any number of ranks. Small things (token ids, rewards, log-probabilities) are complete on every rank, so
that advantages, covariances and weights are computed from the whole batch, everywhere alike. Large things (parameters, gradients, optimizer
state) are sharded, and what is summed over them is summed over ranks.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # a rank that waits longer than this for another gives up; loading and exporting a model takes minutes


def start(single: bool) -> torch.device:
    """This rank's device, after the process group is up: gloo on CPUs, NCCL on GPUs with gloo beside it for what lies on the CPU.

    single: make a group of one rank also without torchrun, as a GPU (where parameters are sharded to compute in bfloat16) and vLLM need;
    otherwise a process that torchrun did not start has no group. Raises UserError if this node has more ranks than GPUs.
    """
    cuda, local = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", 0))
    if cuda:
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc_per_node is more than the {torch.cuda.device_count()} GPUs of this node: start one rank per GPU")
        torch.cuda.set_device(local)
    # MASTER_ADDR alone may be set by a cluster's job script
    launched = {"RANK", "MASTER_ADDR"} <= os.environ.keys() or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not dist.is_initialized() and (launched or single or cuda):
        alone = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # in this process, without a port
        if not launched:
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # for vLLM, which reads them
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE, **alone)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def stop() -> None:
    """Wait for the other ranks and leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """The number of ranks, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(things: int, index: int, shares: int) -> slice:
    """Part `index` of `things` things in `shares` contiguous parts that differ in size by one at most."""
    return slice(things * index // shares, things * (index + 1) // shares)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, on every rank; a new tensor of the same shape."""
    total = tensor.clone()
    if count() > 1:
        dist.all_reduce(total)
    return total


def together(work: Callable[[], T]) -> list[T]:
    """Call work() on every rank and return what each returned, in the order of ranks, on every rank.

    A UserError that one rank meets is raised on all of them: alone it would leave the others waiting. Values travel pickled between
    processes of this run and no other.
    """
    try:
        outcome = (work(), None)
    except UserError as error:
        outcome = (None, str(error))
    outcomes = [outcome]
    if count() > 1:
        outcomes = [None] * count()
        dist.all_gather_object(outcomes, outcome)
    for _, message in outcomes:
        if message is not None:
            raise UserError(message)
    return [value for value, _ in outcomes]


def on_first(work: Callable[[], T]) -> T:
    """Call work() on rank 0 alone and return what it returned, or raise its UserError, on every rank."""
    return together(lambda: work() if rank() == 0 else None)[0]
