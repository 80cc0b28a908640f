"""One encoding of a split: its plain crops, or its pictures as an augmentation shows them once."""

import contextlib
import hashlib
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from tilewright.data.images import UnreadableImage
from tilewright.data.order import drawn_from
from tilewright.data.rows import RowReader, Transform
from tilewright.data.token_cache import Codes, ImageTokenizer, encode_rows, weights_digest


def encode_view(
    data: Dataset,
    tokenizer: ImageTokenizer,
    cache: Path,
    transform: Transform,
    drawn: tuple[int, int] | None = None,
    *,
    max_pixels: int,
    label: str | None,
) -> Codes:
    """Image tokens of all rows, from disk or made now.

    Their folder is named after the dVAE's weights, the data and the crop, whoever asks for them.
    Pictures that are files of their own count by their sizes and times.

    Args:
        drawn: what a random crop follows from, with the row: a seed, and the number of the view.
    """
    assert isinstance(tokenizer, torch.nn.Module)
    parts = [weights_digest(tokenizer), data._fingerprint, repr(transform), str(max_pixels)]
    if drawn is not None:
        parts.append(repr(drawn))
    parts += _files_digest(data)
    folder = cache / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    reader = RowReader(transform, None, training=False, max_pixels=max_pixels)

    def read(rows: range) -> list[Tensor | str]:
        records = data.select_columns("image")[rows.start : rows.stop]["image"]
        return [image(row, record) for row, record in zip(rows, records, strict=True)]

    def image(row: int, record: object) -> Tensor | str:
        try:
            if drawn is None:
                return reader.image(record)
            with drawn_from(*drawn, row):
                return reader.image(record)
        except UnreadableImage as wrong:
            return wrong.kind

    device = next(tokenizer.parameters()).device
    return encode_rows(len(data), read, tokenizer, folder, device=device, label=label)


def _files_digest(data: Dataset) -> list[str]:
    """A hash of the sizes and times of the files in which the pictures lie; none if none does."""
    digest, found = hashlib.sha256(), False
    for batch in data.select_columns("image").with_format("arrow").iter(1000):
        pictures = batch.column("image").combine_chunks()
        paths = pictures.field("path").filter(pictures.field("bytes").is_null()).drop_null()
        if not len(paths) and not found:  # they lie in the table, which is not to be read for this
            return []
        found = True
        for path in paths.to_pylist():
            with contextlib.suppress(OSError):
                status = Path(path).stat()
                digest.update(f"{path}\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return [digest.hexdigest()]
