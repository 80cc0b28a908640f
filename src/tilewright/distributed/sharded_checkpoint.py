"""Checkpoints to which each process writes its own shards (`torch.distributed.checkpoint`).

`last.ckpt` holds everything but the sharded tensors. They are safetensors files in a folder beside
it, which `last.ckpt` names. The folder is complete before `last.ckpt` is replaced.
"""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_map, tree_map_only, tree_map_with_path

from tilewright.errors import UserError, first_line

SHARDS = "shards"  # checkpoint key that stores the shard folder and its files
TENSOR = "tilewright.stored_tensor"  # key of a stored tensor's name
SUFFIX = 8 * "[0-9a-f]"  # of a shard folder's name, as a pattern; other folders are the user's


@dataclass(frozen=True)
class StoredTensor:
    """Reference to a tensor in a folder of shards."""

    folder: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype


def write_shards(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Writes all sharded tensors of a checkpoint. All processes must call this.

    Returns:
        The checkpoint with a reference in the place of each sharded tensor.

    Raises:
        UserError: a process cannot write its shards. No existing file has changed.
    """
    import torch.distributed.checkpoint as dcp  # slow to import
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.tensor import DTensor

    tensors: dict[str, DTensor] = {}

    def replace(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        name = keystr(path)
        tensors[name] = leaf
        return {TENSOR: name, "shape": leaf.shape, "dtype": leaf.dtype}

    references = tree_map_with_path(replace, checkpoint)
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer)
    except CheckpointException as error:  # raised in all processes
        rank, (reason, _) = next(iter(error.failures.items()))
        raise UserError(
            f"the shards {folder} cannot be written by process {rank} ({first_line(reason)}). "
            "Existing checkpoints are unchanged: free some space, then continue with "
            f"resume={folder.parents[1]}"
        ) from error
    files = sorted(file.name for file in folder.iterdir())
    return {**references, SHARDS: {"folder": folder.name, "files": files}}


def read_checkpoint(file: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint with or without shards. Sharded tensors are `StoredTensor`s.

    Code in the file is not run.

    Args:
        mmap: True leaves the other tensors on the disk until they are used.

    Raises:
        FileNotFoundError: a file of shards is missing.
    """
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    if SHARDS not in checkpoint:
        return checkpoint
    shards = checkpoint.pop(SHARDS)
    folder = file.parent / shards["folder"]
    for name in shards["files"]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")

    def resolve(leaf: Any) -> Any:
        if not _is_reference(leaf):
            return leaf
        return StoredTensor(folder, leaf[TENSOR], leaf["shape"], leaf["dtype"])

    return tree_map(resolve, checkpoint, is_leaf=_is_reference)


def read_shards(targets: dict[StoredTensor, Tensor]) -> None:
    """Fills tensors from the files of shards.

    A process reads only its own shard of a `DTensor`, however the stored tensor was sharded.
    """
    import torch.distributed.checkpoint as dcp  # slow to import

    for folder in {stored.folder for stored in targets}:
        state = {stored.name: t for stored, t in targets.items() if stored.folder == folder}
        reader = dcp.HuggingFaceStorageReader(str(folder))
        with warnings.catch_warnings():  # about the missing process group, which is not needed
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(state, storage_reader=reader, no_dist=True)


def load_stored_tensors(value: Any) -> Any:
    """Returns the same nested value with every `StoredTensor` read into memory."""
    targets: dict[StoredTensor, Tensor] = {}

    def allocate(stored: StoredTensor) -> Tensor:
        targets[stored] = torch.empty(stored.shape, dtype=stored.dtype)
        return targets[stored]

    loaded = tree_map_only(StoredTensor, allocate, value)
    if targets:
        read_shards(targets)
    return loaded


def remove_old_shards(file: Path, checkpoint: dict[str, Any]) -> None:
    """Removes the folders of checkpoints that a file held before this one."""
    current = checkpoint.get(SHARDS, {}).get("folder")
    for folder in file.parent.glob(f"{file.name}-{SUFFIX}"):
        if folder.name != current:
            shutil.rmtree(folder, ignore_errors=True)


def _is_reference(leaf: Any) -> bool:
    return isinstance(leaf, dict) and TENSOR in leaf
