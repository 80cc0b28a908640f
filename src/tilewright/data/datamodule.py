"""`CaptionedImages`, the LightningDataModule of all stages."""

import contextlib
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader

from tilewright.checks import MAX_SEED, check_flag, check_whole
from tilewright.configs import switched_on
from tilewright.data.batches import BatchLoader, EvaluationBatches, TrainingBatches, mark_updates
from tilewright.data.caption_encoder import CaptionEncoder
from tilewright.data.captions import find_captions
from tilewright.data.dataset_cache import full_disk_errors
from tilewright.data.encode_split import encode_split
from tilewright.data.feature_cache import FeatureCache, encode_captions
from tilewright.data.filters import Filter, usable_captions
from tilewright.data.image_tokenizer import ImageTokenizer, encode_images
from tilewright.data.images import MAX_PIXELS, to_floats
from tilewright.data.row_reader import RowReader, Transform, collate
from tilewright.data.skipping import SkipCounts, SkipRow, format_counts
from tilewright.data.sources import CaptionChecker, CaptionStyles, Source
from tilewright.data.split_preparation import prepare_splits, rows_of_first_batches, slice_split
from tilewright.data.streaming import StreamingDataset, equalize_batches, read_sample
from tilewright.data.streaming_position import ReaderGroup, StreamingProgress
from tilewright.data.table import TableDataset
from tilewright.data.text_tokenizer import TextTokenizer
from tilewright.data.token_cache import TokenCache
from tilewright.data.worker_signals import ignore_stop_signals
from tilewright.distributed.collectives import gather_objects
from tilewright.errors import UserError

log = logging.getLogger(__name__)

CAPTIONS_READ_TOGETHER = 1000
RECORDS_READ_TOGETHER = 16  # several times faster than single records of a shuffled table


class CaptionedImages(pl.LightningDataModule):
    """Batches of captioned images from any source, for all stages.

    A batch is a dictionary:

    - `caption`: list of B strings.
    - `image`: float [B, 3, H, W] in [0, 1]. Missing if there are image tokens.
    - `rows`: number of rows that count. It is B, or 0 if the only row is padding, because every
      process needs a batch.
    - `text`: text of the stream, with a tokenizer: text tokens, int64 [B, T], or features of a
      caption encoder, float [B, T, D + 1]. Features come from a cache, which is filled once. With
      streaming data, each batch is encoded on the device.
    - `update_rows`, `update_text`, `update_index`: see `mark_updates`; with accumulation.
    - `image_tokens`: int64 [B, h, w], with an image tokenizer. They come from the token cache,
      which is filled once. With streaming data or `augmented_tokens`, each batch is encoded on the
      device.

    Rows that cannot be used are skipped and counted by reason in `skip_counts`.

    The first rows of each split are a sample of it, the same in every run and on every machine. The
    order of the training and all its random numbers depend on the seed and the epoch only. The
    batches are therefore the same for any number of processes, and a resumed training continues
    with the next row. With streaming data each reader has its own rows, and a checkpoint holds the
    position of each reader.

    Args:
        source: source of the captioned images.
        image_size: side of the images in pixels.
        batch_size: rows of a batch, summed over all processes.
        train_transform, eval_transform: PIL image to a PIL image of image_size x image_size. A
            train_transform of None is the eval_transform.
        tokenizer: text tokenizer or caption encoder, already trained or loaded.
        image_tokenizer: frozen image tokenizer. It makes this the data of the prior.
        augmented_tokens: encode newly augmented images at every step, as the paper does, instead
            of each image once.
        crops_per_image: number of augmented crops of each training image that are encoded once.
            Each epoch uses the next crop. 0 encodes the center crop.
        overfit_batches: train on the first `overfit_batches` batches only, and validate on their
            rows. 0 uses all data.
        filters: filters by name. A name with None is left out.
        max_pixels: larger images are skipped.
        require_captions: skip images without a caption. If false, their caption is "".
        cache: folder for image tokens and caption features.
        num_workers: dataloader workers of each process. 0 reads between the steps.
        seed: seed of the order, the choice of captions, the crops and BPE dropout.

    Raises:
        UserError: an argument is out of range or contradicts another one.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        batch_size: int,
        train_transform: Transform | None,
        eval_transform: Transform,
        tokenizer: TextTokenizer | None = None,
        image_tokenizer: ImageTokenizer | None = None,
        augmented_tokens: bool = False,
        crops_per_image: int = 0,
        overfit_batches: int = 0,
        filters: Mapping[str, Filter | None] | None = None,
        max_pixels: int = MAX_PIXELS,
        require_captions: bool = True,
        cache: str | Path = "data/image_tokens",
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.prepare_data_per_node = False
        if image_tokenizer is not None and image_tokenizer.image_size != image_size:
            side = image_tokenizer.image_size
            raise UserError(
                f"data.image_size={image_size} does not match the dVAE, which encodes images of "
                f"{side}x{side}: set data.image_size={side}, or choose a dVAE for images of "
                f"{image_size}x{image_size} with dvae=PATH"
            )
        check_whole("data.image_size", image_size)
        check_whole("data.batch_size", batch_size)
        check_whole("data.max_pixels", max_pixels)
        check_whole("data.num_workers", num_workers, 0)
        check_whole("data.crops_per_image", crops_per_image, 0)
        check_whole("data.overfit_batches", overfit_batches, 0)
        check_whole("data.seed", seed, 0, MAX_SEED)
        check_flag("data.require_captions", require_captions)
        if crops_per_image and augmented_tokens:
            raise UserError(
                f"data.crops_per_image={crops_per_image} and data.augmented_tokens=true exclude "
                "each other: set one of them"
            )
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.train_transform = train_transform or eval_transform
        self.eval_transform = eval_transform
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.augmented_tokens = augmented_tokens
        self.crops_per_image = crops_per_image
        self.overfit_batches = overfit_batches
        self.filters: list[Filter] = list(switched_on("data.filters", filters or {}))
        self.max_pixels = max_pixels
        self.require_captions = require_captions
        self.cache = Path(cache)
        self.num_workers = num_workers
        self.seed = seed
        self.skip_counts = SkipCounts()
        self._rows_read = 0  # training rows of all processes, which is the position in a table
        self._splits: dict[str, Any] = {}
        self._datasets: dict[tuple[str, bool], TableDataset | StreamingDataset] = {}
        self._progress = StreamingProgress()

    # -- splits -------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Writes to disk all that training reads. Lightning calls it in the first process only."""
        self.setup()
        self.dataset("train", training=True)
        self.dataset("validation")

    def setup(self, stage: str | None = None) -> None:
        """Loads the source. Images stay encoded until they are read."""
        if self.trainer is not None and isinstance(self.image_tokenizer, torch.nn.Module):
            self.image_tokenizer.to(self.trainer.strategy.root_device)
        if self.trainer is not None and isinstance(self.tokenizer, CaptionEncoder):
            self.tokenizer.to(self.trainer.strategy.root_device)
        if not self._splits:
            with full_disk_errors():
                splits = self.source.load()
                self._splits = prepare_splits(splits, self.filters, self.require_captions)
            if self.overfit_batches:
                self._splits["validation"] = rows_of_first_batches(
                    self._splits["train"], self.overfit_batches, self.batch_size, self.seed
                )

    @property
    def splits(self) -> list[str]:
        """Names of the splits. `train` and `validation` always exist."""
        self.setup()
        return list(self._splits)

    @property
    def checker(self) -> CaptionChecker | None:
        """Checker of the source, or None if the source has none."""
        return getattr(self.source, "checker", None)

    @property
    def caption_styles(self) -> CaptionStyles | None:
        """Caption styles of the source, or None if the source has none."""
        return getattr(self.source, "caption_styles", None)

    def captions(self, split: str = "train") -> Iterator[str]:
        """Yields all usable captions of a split, including all captions of the same image.

        The first ones are a sample of the split.
        """
        for record in self._records(split, ["caption"]):
            with contextlib.suppress(SkipRow):
                yield from usable_captions(record["caption"], self.filters)

    def examples(self, split: str, count: int) -> list[tuple[Tensor, str]]:
        """Returns a sample of at most `count` readable images [3, H, W] with their first captions.

        The sample is the same in every run and on every machine.

        Args:
            split: name of a split, or of a part in the syntax of `datasets`: validation[2000:3000].

        Raises:
            UserError: the split does not exist, its part is invalid, or no row can be used.
        """
        examples: list[tuple[Tensor, str]] = []
        reasons: Counter[str] = Counter()
        reader = self._row_reader(self.eval_transform)
        for record in self._records(split, ["image", "caption"]):
            if len(examples) == count:
                break
            row = reader(record["image"], record["caption"])
            if isinstance(row, dict):
                examples.append((to_floats(row["pixels"]), row["caption"]))
            elif not examples:
                reasons[row] += 1
        if not examples:
            raise UserError(
                f"no image of the split {split} can be used ({format_counts(reasons)}): "
                "fix the data or its settings"
            )
        return examples

    def table(self, split: str) -> Dataset:
        """Returns a split that has random access.

        Raises:
            UserError: the split does not exist, or it streams.
        """
        rows = self._rows(split)
        if isinstance(rows, IterableDataset):
            raise UserError(
                f"{split} streams and cannot be encoded ahead: set data.source.streaming=false"
            )
        return rows

    def encode(self, split: str, training: bool = False, quiet: bool = False) -> list[TokenCache]:
        """Encodes a split to image tokens, or opens them if they are on disk.

        Args:
            training: encode `crops_per_image` augmented crops.
            quiet: show no progress bar.

        Returns:
            One cache per augmented crop, or the cache of the center crop.

        Raises:
            UserError: the split streams, the tokens cannot be written, or the training images would
                be flipped without any effect.
        """
        assert self.image_tokenizer is not None
        if training and not self.crops_per_image and getattr(self.train_transform, "flip", False):
            raise UserError(
                "augmentation.flip=true has no effect on image tokens of the center crop: set "
                "data.crops_per_image=8 or data.augmented_tokens=true, or augmentation.flip=false"
            )
        encode = partial(
            encode_split,
            self.table(split),
            self.image_tokenizer,
            self.cache,
            max_pixels=self.max_pixels,
            retry=not quiet and self._reader_group.rank == 0,  # others open the cache just after
        )
        if not (training and self.crops_per_image):
            return [encode(self.eval_transform, label=None if quiet else split)]
        return [
            encode(
                self.train_transform,
                (self.seed, crop),
                label=None if quiet else f"{split}, crop {crop}",
            )
            for crop in range(self.crops_per_image)
        ]

    def encode_captions(self, split: str, quiet: bool = False) -> FeatureCache | None:
        """Encodes the captions of a split to features, or opens them if they are on disk.

        Captions that the filters drop are encoded, too, if their row has another one.

        Args:
            quiet: show no progress bar.

        Returns:
            None without a caption encoder.

        Raises:
            UserError: the split streams, the encoder cannot be loaded, or the features cannot be
                written.
        """
        if not isinstance(self.tokenizer, CaptionEncoder):
            return None
        table = self.table(split).select_columns("caption")
        key = f"{self.tokenizer.identity} {table._fingerprint}"
        folder = self.cache / "captions" / hashlib.sha256(key.encode()).hexdigest()[:16]
        missing = [] if self.require_captions else [""]
        captions = (
            [text for value in batch["caption"] for text in find_captions(value)[0] or missing]
            for batch in table.iter(CAPTIONS_READ_TOGETHER)
        )
        label = None if quiet else f"captions of {split}"
        return encode_captions(captions, self.tokenizer, folder, label)

    def _rows(self, name: str) -> Any:
        """Returns the records of a split, or of a part of it."""
        split = name.partition("[")[0]
        if split not in self.splits:
            raise UserError(
                f"the data has no split {name}: set the key split to one of "
                f"{', '.join(self.splits)}"
            )
        return slice_split(self._splits[split], name)

    def _records(self, name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yields the records of a split or of a part of it, in its order."""
        rows = self._rows(name).select_columns(columns)
        if isinstance(rows, IterableDataset):
            yield from read_sample(rows)
            return
        for batch in rows.iter(RECORDS_READ_TOGETHER):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    # -- batches ------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        return self.dataloader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self.dataloader("validation")

    def dataloader(self, split: str, training: bool = False) -> DataLoader:
        """Returns the batches of a split, or this process's share of each batch.

        Args:
            training: shuffle, augment and repeat the rows endlessly, choose one of several captions
                at random, and start after the batches that the trainer has seen.
        """
        dataset = self.dataset(split, training)
        batches_per_update = 1
        if training and self.trainer is not None:
            batches_per_update = self.trainer.accumulate_grad_batches
        # Workers read the next update while this one is computed.
        prefetch_factor = max(2, math.ceil(batches_per_update / max(self.num_workers, 1)))
        postprocess: Callable[[Iterator], Iterator] = iter
        if isinstance(dataset, StreamingDataset) and not training:
            postprocess = equalize_batches
        elif batches_per_update > 1:
            postprocess = partial(mark_updates, count=batches_per_update, start=self._batches_read)
        return BatchLoader(
            dataset,
            **self._batching(dataset, training),
            generator=torch.Generator(),  # otherwise, it draws from the global generator
            num_workers=self.num_workers,
            worker_init_fn=ignore_stop_signals,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=prefetch_factor if self.num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
            postprocess=postprocess,
        )

    def dataset(self, split: str, training: bool = False) -> TableDataset | StreamingDataset:
        """Returns a split as a torch dataset of batch rows. It encodes image tokens if needed."""
        if (split, training) not in self._datasets:
            self._datasets[split, training] = self._make_dataset(split, training)
        return self._datasets[split, training]

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Encodes a batch without image tokens on the device, and counts skipped rows."""
        skipped, truncated = batch.pop("skipped", {}), batch.pop("truncated", [])
        position = batch.pop("position", None)
        if position is not None:
            self._progress.update(position)
        if self.trainer is None or self.trainer.training:
            self._rows_read += self.batch_size
            if skipped and not self.skip_counts.total:
                log.warning("Some rows are skipped, first: %s", format_counts(skipped))
            if truncated and self.tokenizer is not None and not self.skip_counts.truncated:
                log.warning(
                    "Some captions are longer than %d text tokens and are truncated, first: %r",
                    self.tokenizer.length,
                    truncated[0],
                )
            read = batch["rows"] + sum(skipped.values())
            self.skip_counts.add(read, skipped, len(truncated))
        if self.image_tokenizer is not None and "image_tokens" not in batch:
            images = batch.pop("image")
            batch["image_tokens"] = encode_images(self.image_tokenizer, images, images.device)
        if isinstance(self.tokenizer, CaptionEncoder):
            batch.pop("update_text", None)  # features are not predicted
            states = batch.pop("features", None)
            batch["text"] = self._features(self.tokenizer, batch["text"], states)
        return batch

    @staticmethod
    def _features(encoder: CaptionEncoder, tokens: Tensor, states: Tensor | None) -> Tensor:
        """Returns the features [B, T, D + 1] of text tokens [B, T], from hidden states if given."""
        if states is None:
            return encoder.encode_tokens(tokens).to(tokens.device)
        return encoder.arrange(states, (tokens >= 0).sum(dim=1))

    def _make_dataset(self, split: str, training: bool) -> TableDataset | StreamingDataset:
        rows = self._rows(split)
        transform = self.train_transform if training else self.eval_transform
        tokenizer = self.tokenizer
        if isinstance(tokenizer, CaptionEncoder):  # workers have no network
            tokenizer = tokenizer.tokenizer
        reader = self._row_reader(transform, tokenizer, training)
        if isinstance(rows, IterableDataset):
            seed = self.seed if training else None
            return StreamingDataset(rows, reader, self._reader_group, seed)
        features = self.encode_captions(split)
        if self.image_tokenizer is None or (training and self.augmented_tokens):
            return TableDataset(rows, reader, features=features)
        return TableDataset(rows, reader, self.encode(split, training), features)

    def _row_reader(
        self, transform: Transform, tokenizer: TextTokenizer | None = None, training: bool = False
    ) -> RowReader:
        return RowReader(
            transform, tokenizer, training, self.filters, self.max_pixels, self.require_captions
        )

    def _batching(self, dataset: TableDataset | StreamingDataset, training: bool) -> dict[str, Any]:
        """Returns the arguments of the DataLoader that determine the rows of a batch."""
        rank, processes, _ = self._reader_group
        if isinstance(dataset, StreamingDataset):
            if training:
                dataset.resume(self._batches_read, self._progress.positions)
            return {"batch_size": self.batch_size // processes}
        sampler: TrainingBatches | EvaluationBatches
        if training:
            if self.batch_size > len(dataset):
                log.warning(
                    "data.batch_size=%d is more than the %d rows of the training split, so each "
                    "batch repeats rows: lower it",
                    self.batch_size,
                    len(dataset),
                )
            sampler = TrainingBatches(
                len(dataset),
                self.batch_size,
                self.seed,
                self._rows_read,
                rank,
                processes,
                self.overfit_batches,
            )
        else:
            sampler = EvaluationBatches(len(dataset), self.batch_size, rank, processes)
        return {"batch_sampler": sampler}

    @property
    def _batches_read(self) -> int:
        """Number of training batches that were read before."""
        return self.trainer.fit_loop.total_batch_idx + 1 if self.trainer else 0

    @property
    def _reader_group(self) -> ReaderGroup:
        workers = max(1, self.num_workers)
        if self.trainer is None:
            return ReaderGroup(workers=workers)
        return ReaderGroup(self.trainer.global_rank, self.trainer.world_size, workers)

    # -- checkpoints --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the positions and the skip counts. All processes must call it."""
        return {
            "rows_read": self._rows_read,
            "streaming": self._progress.state_dict(self._reader_group),
            "skip_counts": self.total_skip_counts().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._reader_group.rank == 0:  # the first process continues the counts of all
            self.skip_counts.load_state_dict(state["skip_counts"])
        self._rows_read = state["rows_read"]
        self._progress.load_state_dict(state["streaming"], self._reader_group)

    def total_skip_counts(self) -> SkipCounts:
        """Returns the skip counts summed over all processes. All processes must call it."""
        total = SkipCounts()
        for counts in gather_objects(self.skip_counts):
            total.add(counts.read, counts.reasons, counts.truncated)
        return total

    def teardown(self, stage: str) -> None:
        """Logs the numbers of skipped rows and truncated captions. All processes must call it."""
        counts = self.total_skip_counts()
        if counts.total:
            log.warning("%s", counts)
        if counts.truncated and self.tokenizer is not None:
            log.warning(
                "%d captions were longer than %d text tokens and were truncated",
                counts.truncated,
                self.tokenizer.length,
            )
