"""Encoding of a split to image tokens, with one crop per image."""

import hashlib
from pathlib import Path

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor

from tilewright.data import bit_depth, images
from tilewright.data.captions import find_captions
from tilewright.data.fingerprints import fingerprint_code, fingerprint_files
from tilewright.data.image_tokenizer import ImageTokenizer, module_device, weights_digest
from tilewright.data.images import UnreadableImage
from tilewright.data.row_reader import RowReader, Transform
from tilewright.data.seeding import temporary_seed
from tilewright.data.token_cache import TokenCache, encode_rows


def encode_split(
    table: Dataset,
    image_tokenizer: ImageTokenizer,
    cache: Path,
    transform: Transform,
    crop_seed: tuple[int, int] | None = None,
    *,
    max_pixels: int,
    label: str | None,
    retry: bool,
) -> TokenCache:
    """Encodes all images of a split, or opens their tokens if they are on disk.

    The name of the folder depends on the image tokenizer's class and weights, the data, the crop,
    and the code that decodes and crops images. It also depends on the state of images that are
    separate files (`fingerprint_files`).

    Args:
        cache: folder of all token caches.
        transform: crop of the images.
        crop_seed: (seed, index of the crop) of a random crop. None for a deterministic one.
        max_pixels: larger images are skipped.
        label: name of the split in the progress bar. None shows no bar.
        retry: try images again that could not be opened before.
    """
    assert isinstance(image_tokenizer, torch.nn.Module)
    parts = [type(image_tokenizer).__qualname__, weights_digest(image_tokenizer)]
    parts += filter(None, [image_tokenizer.extra_repr()])
    parts += [table._fingerprint, Hasher.hash(transform), str(max_pixels)]
    parts.append(fingerprint_code(images, bit_depth, transform))
    parts.append(str("HEIF" in images.FORMATS))  # without it, HEIC images have no tokens
    if crop_seed is not None:
        parts.append(repr(crop_seed))
    parts.append(fingerprint_files(table))
    folder = cache / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    reader = RowReader(transform, None, training=False, max_pixels=max_pixels)

    def read(rows: range) -> list[Tensor | str]:
        records = table.select_columns(["image", "caption"])[rows.start : rows.stop]
        images_of_rows = zip(rows, records["image"], records["caption"], strict=True)
        return [read_image(*image_of_row) for image_of_row in images_of_rows]

    def read_image(row: int, record: object, caption: object) -> Tensor | str:
        captions, _ = find_captions(caption)
        try:
            if crop_seed is None:
                return reader.read_image(record, captions)
            with temporary_seed(*crop_seed, row):
                return reader.read_image(record, captions)
        except UnreadableImage as error:
            return error.reason

    device = module_device(image_tokenizer)
    return encode_rows(
        len(table), read, image_tokenizer, folder, device=device, label=label, retry=retry
    )
