"""A checkpoint that each process has written its own shards of.

The file `last.ckpt` holds all but the sharded tensors; these lie in a folder beside it that the
file names, `last.ckpt-…/0.pt` for the first process and so on, cut along their first dimension. The
folder is whole before the file is there, so that the file is never without it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map, tree_map_only

FOLDER = "shards"  # key of the folder's name
PARTS = "parts"  # key of how many files are in it
SHARD = "tilewright.shard"  # key of a tensor's number among those that are sharded


@dataclass(frozen=True)
class Shards:
    """A tensor that has not been put together yet."""

    parts: list[Tensor]

    @property
    def shape(self) -> torch.Size:
        return torch.Size([sum(len(part) for part in self.parts), *self.parts[0].shape[1:]])

    def whole(self) -> Tensor:
        return torch.cat(self.parts)


def cut(
    checkpoint: dict[str, Any], folder: str, processes: int
) -> tuple[dict[str, Any], list[Tensor]]:
    """A checkpoint without its sharded tensors, and this process's shards of them."""
    shards: list[Tensor] = []

    def take(tensor: DTensor) -> dict[str, int]:
        shards.append(tensor.to_local().cpu())
        return {SHARD: len(shards) - 1}

    kept = tree_map_only(DTensor, take, checkpoint)
    return {**kept, FOLDER: folder, PARTS: processes}, shards


def read(file: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of either kind; what lies in shards comes as `Shards`.

    No code that a file may hold is run.

    Args:
        mmap: leave tensors on the disk until they are used, as those in shards always are.

    Raises:
        FileNotFoundError: shards are missing.
    """
    checkpoint = _load(file, mmap)
    if FOLDER not in checkpoint:
        return checkpoint
    folder = file.parent / checkpoint.pop(FOLDER)
    files = [folder / f"{number}.pt" for number in range(checkpoint.pop(PARTS))]
    parts = [_load(part, mmap=True) for part in files]

    def found(leaf: Any) -> Any:
        return Shards([part[leaf[SHARD]] for part in parts]) if _is_shard(leaf) else leaf

    return tree_map(found, checkpoint, is_leaf=_is_shard)


def joined(value: Any) -> Any:
    """The same with every tensor whole."""
    return tree_map_only(Shards, Shards.whole, value)


def remove_others(file: Path, checkpoint: dict[str, Any]) -> None:
    """Removes the folders of the checkpoints that a file held before this one."""
    for folder in file.parent.glob(f"{file.name}-*"):
        if folder.name != checkpoint.get(FOLDER):
            shutil.rmtree(folder, ignore_errors=True)


def _is_shard(leaf: Any) -> bool:
    return isinstance(leaf, dict) and leaf.keys() == {SHARD}


def _load(file: Path, mmap: bool) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
