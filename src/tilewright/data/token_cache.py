"""Image tokens of a whole split, encoded once by a frozen dVAE and kept on disk, memory-mapped.

They lie in shards of `SHARD` rows, each a file that is there when it is whole. Any number of
processes, started at any time and also on machines that share the disk, make them together: each
takes the next shard that nobody is at work on.
"""

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich import get_console
from rich.progress import Progress
from torch import Tensor

from tilewright.data.images import KINDS
from tilewright.errors import UserError

SHARD = 8192  # rows of a file
SAVE_EVERY = 30.0  # seconds between two saves of a shard that is not whole yet

# A row whose picture cannot be used holds this number less that of its kind; no codebook is so
# large.
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


def kind_of(tokens: np.ndarray) -> str | None:
    """What was wrong with a row's picture; None if nothing."""
    number = UNREADABLE - int(tokens.flat[0])
    return KINDS[number] if number < len(KINDS) else None


class Codes:
    """Image tokens [h, w] of each of `rows` rows, uint16 and read-only, from a folder of shards."""

    def __init__(self, folder: Path, rows: int):
        self.folder = folder
        self.rows = rows
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        shard, place = divmod(row, SHARD)
        if shard not in self._shards:
            self._shards[shard] = self._open(shard)
        return self._shards[shard][place]

    def __reduce__(self) -> Any:  # a copy for another process maps the files itself
        return Codes, (self.folder, self.rows)

    def wrong(self) -> Counter[str]:
        """How many rows hold no tokens, by kind."""
        first = np.concatenate(
            [self._open(shard)[:, 0, 0] for shard in range(-(-self.rows // SHARD))]
        )
        counts = {kind: int((first == UNREADABLE - i).sum()) for i, kind in enumerate(KINDS)}
        return Counter({kind: count for kind, count in counts.items() if count})

    def _open(self, shard: int) -> np.ndarray:
        path = shard_file(self.folder, shard)
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read: remove it, and it is made again") from error
        if len(found) != min(SHARD, self.rows - shard * SHARD):
            raise UserError(f"{path} is of other data: remove it, and it is made again")
        return found


def encode_rows(
    rows: int,
    read: Callable[[range], list[Tensor | str]],
    tokenizer: ImageTokenizer,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    label: str | None = "images",
) -> Codes:
    """Image tokens of `rows` pictures, from disk or encoded now.

    An interrupted encoding goes on where it stopped. The caller names the folder after everything
    that the tokens depend on.

    Args:
        read: pictures [3, H, W] of a range of rows; one of `KINDS` where a picture cannot be used.
        label: what the progress bar calls the rows; None shows no bar.

    Raises:
        UserError: the folder cannot be written.
    """
    if tokenizer.num_tokens > UNREADABLE - len(KINDS):
        raise ValueError(f"a codebook of {tokenizer.num_tokens} does not fit 16 bits")
    parts = [range(first, min(first + SHARD, rows)) for first in range(0, rows, SHARD)]
    files = [shard_file(folder, number) for number in range(len(parts))]
    if not all(file.exists() for file in files):
        shown = label is not None and get_console().is_terminal  # in a log file it is blank lines
        with _written(folder), Progress(transient=True, disable=not shown) as progress:
            folder.mkdir(parents=True, exist_ok=True)
            bar = progress.add_task(f"Encoding {label} to image tokens", total=rows)
            # First the shards that nobody is at work on, then those that others have not finished.
            for wait in (False, True):
                for part, file in zip(parts, files, strict=True):
                    with _claimed(file, wait) as mine:
                        if mine:
                            done = sum(map(len, _whole(parts, files)))
                            progress.update(bar, completed=done)
                            advance = _advancing(progress, bar)
                            _encode_shard(file, part, read, tokenizer, device, batch_size, advance)
    return Codes(folder, rows)


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.npy"


def _whole(parts: list[range], files: list[Path]) -> Iterator[range]:
    return (part for part, file in zip(parts, files, strict=True) if file.exists())


def _advancing(progress: Progress, bar: Any) -> Callable[[int], None]:
    return lambda rows: progress.advance(bar, rows)


@contextlib.contextmanager
def _claimed(file: Path, wait: bool) -> Iterator[bool]:
    """Whether a shard is to be made, by this process, which holds it in here."""
    if file.exists():
        yield False
        return
    # The lock of a process that is killed goes with it.
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield not file.exists()
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it finds the shard whole


def _encode_shard(
    file: Path,
    rows: range,
    read: Callable[[range], list[Tensor | str]],
    tokenizer: ImageTokenizer,
    device: torch.device | str,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    begun = file.with_name(f".{file.name}.part")
    tokens = _begun(begun, (len(rows), tokenizer.grid, tokenizer.grid))
    saved, last_save = len(tokens), time.monotonic()
    advance(saved)
    try:
        while len(tokens) < len(rows):
            first = rows.start + len(tokens)
            batch = range(first, min(first + batch_size, rows.stop))
            tokens = np.concatenate([tokens, _encode(read(batch), tokenizer, device)])
            advance(len(batch))
            if time.monotonic() - last_save >= SAVE_EVERY:
                _save(begun, tokens)
                saved, last_save = len(tokens), time.monotonic()
    except BaseException:
        if len(tokens) > saved:
            _save(begun, tokens)
        raise
    _save(file, tokens)
    begun.unlink(missing_ok=True)


def _begun(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The rows of a shard that an interrupted encoding has left, none if it left none."""
    with contextlib.suppress(OSError, ValueError, EOFError):  # none yet, or not whole
        found = np.load(path)
        if found.shape[1:] == shape[1:] and len(found) <= shape[0] and found.dtype == np.uint16:
            return found
    return np.empty((0, *shape[1:]), dtype=np.uint16)


def _save(path: Path, tokens: np.ndarray) -> None:
    """Writes a file such that a process that is killed leaves the old one or the new one."""
    new = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with new.open("wb") as file:
            np.save(file, tokens)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"image tokens cannot be written to {folder} ({error.strerror or error}): mend that, "
            "or set data.cache; what has been encoded is kept"
        ) from error


def _encode(
    images: list[Tensor | str], tokenizer: ImageTokenizer, device: torch.device | str
) -> np.ndarray:
    tokens = np.empty((len(images), tokenizer.grid, tokenizer.grid), dtype=np.uint16)
    usable = [i for i, image in enumerate(images) if isinstance(image, Tensor)]
    for i, image in enumerate(images):
        if isinstance(image, str):
            tokens[i] = UNREADABLE - KINDS.index(image)
    if usable:
        stacked = torch.stack([image for image in images if isinstance(image, Tensor)]).to(device)
        tokens[usable] = tokenizer.encode(stacked).cpu().numpy().astype(np.uint16)
    return tokens
