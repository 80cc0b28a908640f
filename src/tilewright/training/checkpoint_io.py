"""Checkpoint files that are always complete."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from tilewright.distributed import sharded_checkpoint
from tilewright.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a whole one is always there.

    Lightning's own writes it on the disk for temporary files and copies it over the last one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; one of that name is there until the new one is complete.

        Raises:
            UserError: it cannot be written.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sharded_checkpoint.remove_others(path, checkpoint)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own
            reason = str(error.__context__ or error).splitlines()[0]
            kept = "the one before it is still there" if path.exists() else "there is none before"
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}); {kept}: mend that, then "
                f"go on with resume={path.parents[1]}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A whole checkpoint on the CPU, also of processes that have each written a part of it."""
        return sharded_checkpoint.joined(sharded_checkpoint.read(Path(path)))
