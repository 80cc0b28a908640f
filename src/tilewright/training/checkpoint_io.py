"""Checkpoint files that are either complete or absent."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from tilewright.distributed.sharded_checkpoint import (
    load_stored_tensors,
    read_checkpoint,
    remove_old_shards,
)
from tilewright.errors import UserError, first_line
from tilewright.files import atomic_file
from tilewright.training.checkpoint_steps import write_steps


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces the previous checkpoint only when the new one is complete.

    Lightning's own plugin copies the finished file into place, so a crash can truncate it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint, then removes the shards of the one that it replaces.

        Raises:
            UserError: the file cannot be written. The previous checkpoint is unchanged.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file object makes torch report the reason, such as a full disk.
            with atomic_file(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                write_steps(temporary, checkpoint["global_step"])
            remove_old_shards(path, checkpoint)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            reason = first_line(error.__context__ or error)
            if path.exists():
                way_out = (
                    f"The previous checkpoint is unchanged: free some space, then continue with "
                    f"resume={path.parents[1]}"
                )
            else:
                way_out = "Free some space, then start the run again"
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}). {way_out}"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint into CPU memory, with or without shards. Code in it is not run."""
        return load_stored_tensors(read_checkpoint(Path(path)))
