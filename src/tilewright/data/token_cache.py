"""Cache of image tokens on disk: a split is encoded once and then memory-mapped.

The tokens lie in shards of `SHARD` rows. A shard file exists only when it is complete. Several
processes can encode at the same time, also on machines that share the disk. Each process takes the
next shard that no other process is encoding.

An image that cannot be opened may be on a disk or a server that fails for a while. Its shard gets a
mark beside it, and the next process that opens the cache with `retry` tries these images once more.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilewright.data.image_tokenizer import ImageTokenizer, encode_images
from tilewright.data.images import NOT_OPENED, REASONS
from tilewright.data.shards import (
    Advance,
    encode_shards,
    map_shard,
    shard_file,
    write_errors,
)
from tilewright.errors import UserError
from tilewright.files import atomic_file

log = logging.getLogger(__name__)

SHARD = 8192  # rows of a file
SAVE_EVERY = 30.0  # seconds between two saves of an incomplete shard
RETRY = ".retry"  # end of the name of a mark

ReadImages = Callable[[range], list[Tensor | str]]


class TokenCache:
    """Image tokens [h, w] of each row of a split, read-only, from a folder of shards.

    Their dtype is `token_dtype` of the codebook.
    """

    def __init__(self, folder: Path, rows: int):
        self.folder = folder
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        shard, offset = divmod(row, SHARD)
        return self._open(shard)[offset]

    def __reduce__(self) -> Any:  # another process maps the files itself
        return TokenCache, (self.folder, self.rows)

    def unreadable(self) -> dict[str, list[int]]:
        """Returns the rows without tokens, by reason."""
        first = np.concatenate(
            [self._open(shard)[:, 0, 0] for shard in range(-(-self.rows // SHARD))]
        )
        rows = {r: np.flatnonzero(first == _unreadable_token(r, first.dtype)) for r in REASONS}
        return {reason: indices.tolist() for reason, indices in rows.items() if len(indices)}

    def _open(self, shard: int) -> np.ndarray:
        path = shard_file(self.folder, shard)
        tokens = map_shard(path)
        if len(tokens) != min(SHARD, self.rows - shard * SHARD):
            raise UserError(f"{path} belongs to other data: delete it to encode it again")
        return tokens


def token_dtype(num_tokens: int) -> np.dtype:
    """Returns the dtype that holds the tokens of a codebook and the marks of unreadable rows."""
    values = num_tokens + len(REASONS)
    return np.dtype(np.uint16 if values <= np.iinfo(np.uint16).max + 1 else np.int32)


def _unreadable_token(reason: str, dtype: np.dtype) -> int:
    """Returns the value that marks an unreadable row, one of the largest of the dtype."""
    return np.iinfo(dtype).max - REASONS.index(reason)


def unreadable_reason(tokens: np.ndarray) -> str | None:
    """Returns the reason for which a row has no tokens, or None if it has tokens."""
    first = tokens.flat[0]
    return next((r for r in REASONS if _unreadable_token(r, tokens.dtype) == first), None)


def encode_rows(
    rows: int,
    read: ReadImages,
    image_tokenizer: ImageTokenizer,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    label: str | None = "images",
    retry: bool = False,
) -> TokenCache:
    """Encodes the images of `rows` rows, or opens the tokens if the folder has them.

    An interrupted encoding continues near the row where it stopped.

    Args:
        read: returns the images [3, H, W] of a range of rows, or one of `REASONS` for an image that
            cannot be used.
        folder: folder of the shards. Its name must depend on all that determines the tokens.
        label: name of the rows in the progress bar. None shows no bar.
        retry: try images again that could not be opened before.

    Raises:
        UserError: the folder cannot be written.
    """
    if retry:
        for mark in sorted(folder.glob(f".*{RETRY}")):
            _retry_unopened(mark, read, image_tokenizer, device, batch_size)

    def encode(file: Path, shard: range, advance: Advance) -> None:
        _encode_shard(file, shard, read, image_tokenizer, device, batch_size, advance)

    encode_shards(folder, rows, SHARD, encode, "image tokens", label)
    return TokenCache(folder, rows)


def _encode_shard(
    file: Path,
    rows: range,
    read: ReadImages,
    image_tokenizer: ImageTokenizer,
    device: torch.device | str,
    batch_size: int,
    advance: Advance,
) -> None:
    partial_file = file.with_name(f".{file.name}.partial")
    tokens = _load_partial(partial_file, len(rows), image_tokenizer)
    saved, last_save = len(tokens), time.monotonic()
    advance(saved)
    try:
        while len(tokens) < len(rows):
            first = rows.start + len(tokens)
            batch = range(first, min(first + batch_size, rows.stop))
            tokens = np.concatenate([tokens, _encode_batch(read(batch), image_tokenizer, device)])
            advance(len(batch))
            if time.monotonic() - last_save >= SAVE_EVERY:
                _save(partial_file, tokens)
                saved, last_save = len(tokens), time.monotonic()
    except BaseException:
        if len(tokens) > saved:
            _save(partial_file, tokens)
        raise
    if len(_unopened(tokens)):
        file.with_name(f".{file.name}{RETRY}").touch()
    _save(file, tokens)
    partial_file.unlink(missing_ok=True)


def _retry_unopened(
    mark: Path,
    read: ReadImages,
    image_tokenizer: ImageTokenizer,
    device: torch.device | str,
    batch_size: int,
) -> None:
    """Tries the images of a marked shard again that could not be opened, and removes the mark.

    There is no third time, because a server that is gone takes minutes for each image.
    """
    file = mark.with_name(mark.name.removeprefix(".").removesuffix(RETRY))
    with write_errors(mark.parent, "image tokens"):
        try:
            mark.unlink()
        except FileNotFoundError:  # another process tries them
            return
        if not file.exists():  # the user has deleted it
            return
        tokens = np.array(map_shard(file))
        unopened, first = _unopened(tokens), int(file.stem) * SHARD
        log.info("Trying %d images again that could not be opened", len(unopened))
        try:
            for start in range(0, len(unopened), batch_size):
                batch = unopened[start : start + batch_size]
                images = [read(range(row, row + 1))[0] for row in (first + batch).tolist()]
                tokens[batch] = _encode_batch(images, image_tokenizer, device)
            _save(file, tokens)
        except BaseException:
            mark.touch()
            raise
        map_shard.cache_clear()  # maps the old file
    if remaining := len(_unopened(tokens)):
        log.warning(
            "%d images still cannot be opened and are skipped: to try them once more, delete %s",
            remaining,
            file,
        )


def _unopened(tokens: np.ndarray) -> np.ndarray:
    """Returns the rows of a shard whose image could not be opened."""
    return np.flatnonzero(tokens[:, 0, 0] == _unreadable_token(NOT_OPENED, tokens.dtype))


def _load_partial(path: Path, rows: int, image_tokenizer: ImageTokenizer) -> np.ndarray:
    """Returns the encoded rows of an interrupted shard, or no rows if there is no usable file."""
    empty = _empty_tokens(0, image_tokenizer)
    with contextlib.suppress(OSError, ValueError, EOFError):
        tokens = np.load(path)
        has_format = (tokens.shape[1:], tokens.dtype) == (empty.shape[1:], empty.dtype)
        if has_format and len(tokens) <= rows:
            return tokens
    return empty


def _empty_tokens(rows: int, image_tokenizer: ImageTokenizer) -> np.ndarray:
    grid = image_tokenizer.grid
    return np.empty((rows, grid, grid), token_dtype(image_tokenizer.num_tokens))


def _save(path: Path, tokens: np.ndarray) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, tokens)


def _encode_batch(
    images: list[Tensor | str], image_tokenizer: ImageTokenizer, device: torch.device | str
) -> np.ndarray:
    tokens = _empty_tokens(len(images), image_tokenizer)
    usable = [i for i, image in enumerate(images) if isinstance(image, Tensor)]
    for i, image in enumerate(images):
        if isinstance(image, str):
            tokens[i] = _unreadable_token(image, tokens.dtype)
    if usable:
        stacked = torch.stack([image for image in images if isinstance(image, Tensor)])
        tokens[usable] = encode_images(image_tokenizer, stacked, device).cpu().numpy()
    return tokens
