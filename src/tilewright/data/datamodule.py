"""`CaptionedImages`: the one LightningDataModule that every stage shares."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytorch_lightning as pl
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader

from tilewright.data.codes import ImageTokenizer, encode_rows, weights_digest
from tilewright.data.order import EvaluationBatches, TrainingBatches
from tilewright.data.rows import (
    RowReader,
    Rows,
    StreamedRows,
    Transform,
    collate,
    first_caption,
    read_image,
)
from tilewright.data.sources import Source
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.errors import UserError

log = logging.getLogger(__name__)


class CaptionedImages(pl.LightningDataModule):
    """Batches of captioned images for every stage, over any source.

    A batch is a dictionary: `caption`, a list of strings; `image`, float [B, 3, H, W] in [0, 1];
    with a tokenizer `text_tokens`, [B, T]; with an image tokenizer `image_tokens`, [B, h, w].
    Image tokens come from disk, encoded once for the whole split, and then a batch holds no
    `image`; where the data streams, or with `augmented_tokens`, they are made as batches go by.

    A picture that cannot be read is skipped, with one warning that counts them.

    Processes that train together share each batch: its rows, and so the training, are the same on
    any number of them. The order of the rows, and what is random about each, follow from the seed
    and the epoch, so that a training that resumes goes on with the batch that would have been next.

    Args:
        source: where the pairs come from.
        image_size: side of the images, in pixels.
        batch_size: rows of a batch, of all processes together.
        train_transform, eval_transform: PIL picture to a picture of image_size x image_size.
        tokenizer: text tokenizer, trained or loaded by whoever starts the run.
        image_tokenizer: a frozen model with `encode`; it makes this the prior's data.
        augmented_tokens: encode freshly augmented pictures at every step, as the paper does,
            rather than each picture once.
        cache: folder for image tokens.
        num_workers: processes that read pictures beside each that trains.
        seed: of the training's order, captions, crops and spellings.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        batch_size: int,
        train_transform: Transform,
        eval_transform: Transform,
        tokenizer: BytePairTokenizer | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        augmented_tokens: bool = False,
        cache: str | Path = "data/codes",
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.prepare_data_per_node = False
        if image_tokenizer is not None and image_tokenizer.image_size != image_size:
            side = image_tokenizer.image_size
            raise UserError(
                f"this dVAE reads pictures of {side}x{side} and the data gives {image_size}x"
                f"{image_size}: set data.image_size={side}, or train a dVAE on this data"
            )
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.augmented_tokens = augmented_tokens
        self.cache = Path(cache)
        self.num_workers = num_workers
        self.seed = seed
        self.skipped = 0
        self._splits: dict[str, Any] = {}
        self._rows: dict[str, Rows | StreamedRows] = {}

    def prepare_data(self) -> None:
        """Brings to disk what training reads; the first process does it, and the others wait."""
        self.setup()
        self.rows("train", training=True)
        self.rows("validation")

    def setup(self, stage: str | None = None) -> None:
        """Loads the source; images stay encoded until they are read."""
        if self.trainer is not None and isinstance(self.image_tokenizer, torch.nn.Module):
            self.image_tokenizer.to(self.trainer.strategy.root_device)
        if not self._splits:
            for name, split in self.source.load().items():
                self._splits[name] = split.cast_column("image", datasets.Image(decode=False))

    @property
    def splits(self) -> list[str]:
        """Names of the splits; train and validation are always there."""
        self.setup()
        return list(self._splits)

    def captions(self, split: str = "train") -> Iterator[str]:
        """All captions of a split, one after the other; of several to a picture, every one."""
        for caption in self._split(split).select_columns("caption"):
            value = caption["caption"]
            yield from [value] if isinstance(value, str) else value

    def examples(self, split: str, count: int) -> list[tuple[Tensor, str]]:
        """The first `count` readable images [3, H, W] of a split, each with its first caption."""
        found: list[tuple[Tensor, str]] = []
        for row in self._split(split):
            if len(found) == count:
                break
            image = read_image(row["image"], self.eval_transform)
            if image is not None:
                found.append((image, first_caption(row["caption"])))
        if not found:
            raise UserError(f"no picture of the split {split} can be read")
        return found

    def train_dataloader(self) -> DataLoader:
        return self.dataloader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self.dataloader("validation")

    def dataloader(self, split: str, training: bool = False) -> DataLoader:
        """Batches of a split, or this process's share of each.

        In training they have no end; they are shuffled and augmented, with a random caption to each
        image, and begin with the one after those that the trainer has seen.
        """
        rows = self.rows(split, training)
        rank, processes = self._place
        batches: dict[str, Any]
        if isinstance(rows, StreamedRows):
            batches = {"batch_size": self.batch_size // processes}
        elif training:
            start = self.trainer.fit_loop.total_batch_idx + 1 if self.trainer is not None else 0
            batches = {
                "batch_sampler": TrainingBatches(
                    len(rows), self.batch_size, self.seed, start, rank, processes
                )
            }
        else:
            batches = {
                "batch_sampler": EvaluationBatches(len(rows), self.batch_size, rank, processes)
            }
        return DataLoader(
            rows,
            **batches,
            generator=torch.Generator(),  # or it takes a number of the global one
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def rows(self, split: str, training: bool = False) -> Rows | StreamedRows:
        """A split as a torch data set."""
        key = f"{split} in training" if training else split
        if key not in self._rows:
            self._rows[key] = self._make_rows(split, training)
        return self._rows[key]

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Tokens that no disk holds are made here, on the device; skipped rows are counted."""
        skipped = batch.pop("skipped", 0)
        if skipped:
            first = not self.skipped
            self.skipped += skipped
            if first:
                log.warning("Pictures that cannot be read are skipped; %d so far", self.skipped)
        if self.image_tokenizer is not None and "image_tokens" not in batch:
            batch["image_tokens"] = self.image_tokenizer.encode(batch.pop("image"))
        return batch

    def teardown(self, stage: str) -> None:
        if self.skipped:
            log.warning("%d pictures could not be read and were skipped", self.skipped)
        if self.tokenizer is not None and self.tokenizer.truncated:
            log.warning(
                "%d captions were longer than tokenizer.length=%d and were cut",
                self.tokenizer.truncated,
                self.tokenizer.length,
            )

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process, and how many share each batch."""
        return (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )

    def _split(self, name: str) -> Any:
        if name not in self.splits:
            raise UserError(f"the data has no split {name}; it has {', '.join(self.splits)}")
        return self._splits[name]

    def _make_rows(self, split: str, training: bool) -> Rows | StreamedRows:
        data = self._split(split)
        transform = self.train_transform if training else self.eval_transform
        read = RowReader(transform, self.tokenizer, training)
        if isinstance(data, IterableDataset):
            rank, processes = self._place
            order = data.shuffle(self.seed, buffer_size=1000) if training else data
            part = split_dataset_by_node(order, rank, processes)
            return StreamedRows(part, read, (self.seed, rank) if training else None)
        on_the_fly = training and self.augmented_tokens
        if self.image_tokenizer is None or on_the_fly:
            return Rows(data, read)
        return Rows(data, read, self._encode(split, data, self.image_tokenizer))

    def _encode(self, split: str, data: Dataset, tokenizer: ImageTokenizer) -> Any:
        """Image tokens of a split, keyed by the dVAE's weights, the data and the crop."""
        assert isinstance(tokenizer, torch.nn.Module)
        parts = (weights_digest(tokenizer), data._fingerprint, repr(self.eval_transform))
        key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

        def read(rows: range) -> list[Tensor | None]:
            records = data.select_columns("image")[rows.start : rows.stop]["image"]
            return [read_image(record, self.eval_transform) for record in records]

        device = next(tokenizer.parameters()).device
        return encode_rows(len(data), read, tokenizer, self.cache / key, device=device, label=split)
