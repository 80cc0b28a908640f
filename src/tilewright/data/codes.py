"""Image tokens of a whole split, encoded once by a frozen dVAE and kept on disk, memory-mapped."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

# Marks a row whose picture could not be read; no codebook is that large.
UNREADABLE = np.iinfo(np.uint16).max


class ImageTokenizer(Protocol):
    """What turns pictures into image tokens and back: a dVAE, or anything with its face."""

    image_size: int
    grid: int
    num_tokens: int

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, tokens: Tensor) -> Tensor: ...


def weights_digest(module: torch.nn.Module) -> str:
    """A short hash of a module's weights: the same weights, the same image tokens."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def encode_rows(
    rows: int,
    read: Callable[[range], list[Tensor | None]],
    tokenizer: ImageTokenizer,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    label: str = "images",
) -> np.ndarray:
    """Image tokens [rows, h, w] of `rows` pictures, from disk or encoded now.

    An interrupted encoding goes on where it stopped. The caller names the folder after everything
    that the tokens depend on.

    Args:
        read: pictures [3, H, W] of a range of rows, None where one cannot be read.
        folder: holds `tokens.npy` and `progress.json`.
        label: what the progress bar calls the rows.

    Returns:
        A read-only memory map of uint16; a row whose picture cannot be read is all `UNREADABLE`.
    """
    if tokenizer.num_tokens > UNREADABLE:
        raise ValueError(f"a codebook of {tokenizer.num_tokens} does not fit 16 bits")
    folder.mkdir(parents=True, exist_ok=True)
    path, progress = folder / "tokens.npy", folder / "progress.json"
    shape = (rows, tokenizer.grid, tokenizer.grid)
    done = _rows_done(progress) if path.exists() else 0
    if done < rows:
        mode = "r+" if done else "w+"
        tokens = np.lib.format.open_memmap(path, mode, dtype=np.uint16, shape=shape)
        starts = range(done, rows, batch_size)
        for start in track(starts, f"Encoding {label} to image tokens", transient=True):
            batch = range(start, min(start + batch_size, rows))
            tokens[batch.start : batch.stop] = _encode(read(batch), tokenizer, device)
            if (start // batch_size) % 50 == 0 or batch.stop == rows:
                tokens.flush()
                _write_whole(progress, json.dumps({"rows": batch.stop}))
    return np.load(path, mmap_mode="r")


def _rows_done(progress: Path) -> int:
    try:
        return int(json.loads(progress.read_text())["rows"])
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or not whole
        return 0


def _write_whole(path: Path, text: str) -> None:
    """Writes a file such that a process that is killed leaves the old one or the new one."""
    new = path.with_name(f".{path.name}-{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def _encode(
    images: list[Tensor | None], tokenizer: ImageTokenizer, device: torch.device | str
) -> np.ndarray:
    tokens = np.full((len(images), tokenizer.grid, tokenizer.grid), UNREADABLE, dtype=np.uint16)
    readable = [i for i, image in enumerate(images) if image is not None]
    if readable:
        stacked = torch.stack([image for image in images if image is not None]).to(device)
        tokens[readable] = tokenizer.encode(stacked).cpu().numpy().astype(np.uint16)
    return tokens
