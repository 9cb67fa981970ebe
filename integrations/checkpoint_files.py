"""torch's checkpoint files, hardened: written through to the disk, read without executing anything, errors of one line."""

import os
import pickle
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException

from common.errors import UserError


class Writer(dcp.FileSystemWriter):
    """torch's writer, one file per rank, which names the disk's error and leaves the path of the temporary folder out of the metadata."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> torch.futures.Future:
        with as_user_error():
            return super().write_data(plan, planner)

    def storage_meta(self) -> None:
        return None


class Reader(dcp.FileSystemReader):
    """torch's reader, which reads tensors with `weights_only`; its pickled metadata may name nothing but what metadata consists of.

    Entries that are no tensors (BytesStorageMetadata), which torch would unpickle unchecked, are not among it.
    """

    def read_metadata(self) -> metadata.Metadata:
        with open(self.path / ".metadata", "rb") as file:
            return _MetadataUnpickler(file).load()


# what .metadata consists of, by the name a pickle has for it; the function turns a string into a torch.layout
_PARTS = [metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.ChunkStorageMetadata, torch.Size]
_PARTS += [metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING, filesystem._StorageInfo, torch.serialization._get_layout]
_KNOWN = {f"{part.__module__}.{part.__name__}": part for part in _PARTS}
_KNOWN |= {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class _MetadataUnpickler(pickle.Unpickler):
    """Every class and function that a pickle uses it gets from here."""

    def find_class(self, module: str, name: str) -> object:
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no checkpoint needs")
        return _KNOWN[f"{module}.{name}"]


@contextmanager
def as_user_error(file: str = "") -> Iterator[None]:
    """Turn what the disk, the format or torch objects to into a UserError of one line, about this file. Also a decorator."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns that one process has no process group
            yield
    except (Exception, CheckpointException) as error:  # a broken pickle may raise anything; CheckpointException is no Exception
        if isinstance(error, CheckpointException):
            error = next(iter(error.failures.values()))[0]  # of the first rank that failed
            if isinstance(error, KeyboardInterrupt):
                raise error
        if isinstance(error, UserError):
            raise error
        disk = error
        while disk and not isinstance(disk, OSError):
            disk = disk.__context__  # torch's zip writer hides the disk's error behind its own
        lines = str(disk or error).splitlines() or [""]
        raise UserError(f"{file}{': ' if file else ''}{type(disk or error).__name__}: {lines[0]}") from error


def fingerprint(path: Path) -> list[int]:
    """[size in bytes, CRC-32]."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**24):
            checksum = zlib.crc32(block, checksum)
        return [file.tell(), checksum]


def write_through(path: Path, content: bytes) -> None:
    """Write a file that is on the disk, not only in its cache, when this returns. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_names(folder: Path) -> None:
    """Wait until the disk has the names of the files in a folder."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
