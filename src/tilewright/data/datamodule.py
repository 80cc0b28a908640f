"""`CaptionedImages`: the one LightningDataModule that every stage shares."""

import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytorch_lightning as pl
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader

from tilewright.data.filters import Filter, apply, captions_of
from tilewright.data.images import MAX_PIXELS, to_floats
from tilewright.data.order import EvaluationBatches, TrainingBatches
from tilewright.data.rows import RowReader, Rows, Transform, collate
from tilewright.data.skipped import Skips, Unusable, listed
from tilewright.data.sources import CaptionChecker, CaptionStyles, Source
from tilewright.data.splits import part_of
from tilewright.data.streaming import Place, StreamedRows
from tilewright.data.token_cache import Codes, ImageTokenizer
from tilewright.data.token_views import encode_view
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.errors import UserError

log = logging.getLogger(__name__)


def leave_signals_to_the_training(worker: int) -> None:
    """Has a worker go on reading when all processes of a run get a signal.

    Ctrl-C, SLURM and `timeout` send theirs to all. The process that trains saves what there is and
    then ends its workers; without them it could not come so far. What it had fork inherit, such as
    a handler that saves, is not for them either. A second SIGTERM ends a worker as it does the run.
    """

    def first(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)
    for name in ("SIGINT", "SIGUSR1"):  # Windows has one of them
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


class CaptionedImages(pl.LightningDataModule):
    """Batches of captioned images for every stage, over any source.

    A batch is a dictionary: `caption`, a list of strings; `image`, float [B, 3, H, W] in [0, 1];
    with a tokenizer `text_tokens`, [B, T]; with an image tokenizer `image_tokens`, [B, h, w].
    Image tokens come from disk, encoded once for the whole split, and then a batch holds no
    `image`; where the data streams, or with `augmented_tokens`, they are made as batches go by.

    Rows that cannot be used are skipped: `skips` counts them by kind.

    Processes that train together share each batch: its rows, and so the training, are the same on
    any number of them. The order of the rows, and what is random about each, follow from the seed
    and the epoch, so that a training that resumes goes on with the batch that would have been next.
    Of a stream each process reads its own rows, and a checkpoint holds how far each has come.

    Args:
        source: where the pairs come from.
        image_size: side of the images, in pixels.
        batch_size: rows of a batch, of all processes together.
        train_transform, eval_transform: PIL picture to a picture of image_size x image_size.
        tokenizer: text tokenizer, trained or loaded by whoever starts the run.
        image_tokenizer: a frozen model with `encode`; it makes this the prior's data.
        augmented_tokens: encode freshly augmented pictures at every step, as the paper does,
            rather than each picture once.
        views: encode so many augmented crops of each training picture once, and train on another
            of them in each epoch; 0 encodes the plain crop.
        overfit_batches: train on the first so many batches alone, each time the same to the bit;
            their rows are the validation too. 0 for all.
        filters: which pairs are used, by any names.
        max_pixels: a picture of more is skipped.
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
        views: int = 0,
        overfit_batches: int = 0,
        filters: Mapping[str, Filter] | None = None,
        max_pixels: int = MAX_PIXELS,
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
        counts = {"num_workers": num_workers, "views": views, "overfit_batches": overfit_batches}
        if batch_size < 1 or min(counts.values()) < 0:
            others = ", ".join(f"data.{name}={count}" for name, count in counts.items())
            raise UserError(
                f"data.batch_size={batch_size} has to be 1 or more, and {others} 0 or more"
            )
        if views and augmented_tokens:
            raise UserError("data.views and data.augmented_tokens exclude each other: set one")
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.augmented_tokens = augmented_tokens
        self.views = views
        self.overfit_batches = overfit_batches
        self.filters = list((filters or {}).values())
        self.max_pixels = max_pixels
        self.cache = Path(cache)
        self.num_workers = num_workers
        self.seed = seed
        self.skips = Skips()
        self._splits: dict[str, Any] = {}
        self._rows: dict[str, Rows | StreamedRows] = {}
        self._positions: dict[int, dict[str, Any]] = {}  # how far each part of a stream has come

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
                self._splits[name] = self._used(name, split)
            if self.overfit_batches:
                self._splits["validation"] = self._overfitted()

    @property
    def splits(self) -> list[str]:
        """Names of the splits; train and validation are always there."""
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
        """All captions of a split, one after the other; of several to a picture, every one."""
        for row in self._split(split).select_columns("caption"):
            with contextlib.suppress(Unusable):
                yield from captions_of(row["caption"], self.filters)

    def present(self, splits: Sequence[str]) -> list[str]:
        """Those of some splits, or of parts such as validation[2000:3000], that the data has."""
        return [split for split in splits if split.partition("[")[0] in self.splits]

    def examples(self, split: str, count: int) -> list[tuple[Tensor, str]]:
        """The first `count` readable images [3, H, W] of a split, each with its first caption.

        Args:
            split: its name, or that of a part as `datasets` has them: validation[2000:3000].

        Raises:
            UserError: there is no such split, or no row that can be used; or a part is unreadable
                or of a stream.
        """
        found: list[tuple[Tensor, str]] = []
        wrong: Counter[str] = Counter()
        read = RowReader(self.eval_transform, None, False, self.filters, self.max_pixels)
        for record in self._split(split):
            if len(found) == count:
                break
            row = read(record["image"], record["caption"])
            if isinstance(row, dict):
                found.append((to_floats(row["pixels"]), row["caption"]))
            elif not found:
                wrong[row] += 1
        if not found:
            raise UserError(f"no picture of the split {split} can be used: {listed(wrong)}")
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
        rank, processes, _ = self._place
        start = self.trainer.fit_loop.total_batch_idx + 1 if training and self.trainer else 0
        batches: dict[str, Any]
        if isinstance(rows, StreamedRows):
            if training:
                rows.go_on(start, self._positions)
            batches = {"batch_size": self.batch_size // processes}
        elif training:
            batches = {
                "batch_sampler": TrainingBatches(
                    len(rows),
                    self.batch_size,
                    self.seed,
                    start,
                    rank,
                    processes,
                    self.overfit_batches,
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
            worker_init_fn=leave_signals_to_the_training,
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
        skipped, position = batch.pop("skipped", {}), batch.pop("position", None)
        if position is not None:
            self._positions[position["part"]] = position
        if self.trainer is None or self.trainer.training:
            if skipped and not self.skips.total:
                log.warning("Rows that cannot be used are skipped: %s so far", listed(skipped))
            self.skips.add(len(batch["caption"]) + sum(skipped.values()), skipped)
        if self.image_tokenizer is not None and "image_tokens" not in batch:
            batch["image_tokens"] = self.image_tokenizer.encode(batch.pop("image"))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How far the processes have come in their parts of a stream, and what was skipped.

        All processes that train together have to call it.
        """
        positions = {part: at for of in self._of_all(self._positions) for part, at in of.items()}
        skips = self.all_skips().state_dict()
        return {"parts": self._place.parts, "positions": positions, "skips": skips}

    def all_skips(self) -> Skips:
        """What was skipped by all processes that train together; all of them have to call it."""
        skips = Skips()
        for state in self._of_all(self.skips.state_dict()):
            skips.add(state["read"], state["kinds"])
        return skips

    def _of_all(self, mine: Any) -> list[Any]:
        """A value of each process."""
        values = [mine] * self._place.processes
        if len(values) > 1:
            torch.distributed.all_gather_object(values, mine)
        return values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._place.rank == 0:  # the counts of all processes go on with the first
            self.skips.load_state_dict(state["skips"])
        self._positions = state["positions"]
        if self._positions and state["parts"] != self._place.parts:
            epoch = 1 + max(at["epoch"] for at in self._positions.values())
            log.warning(
                "The stream was read in %d parts and is now in %d: it goes on with its next epoch",
                state["parts"],
                self._place.parts,
            )
            self._positions = {part: {"epoch": epoch} for part in range(self._place.parts)}

    def teardown(self, stage: str) -> None:
        if self.skips.total:
            log.warning("%s", self.skips)
        if self.tokenizer is not None and self.tokenizer.truncated:
            log.warning(
                "%d captions were longer than tokenizer.length=%d and were cut",
                self.tokenizer.truncated,
                self.tokenizer.length,
            )

    @property
    def _place(self) -> Place:
        """Which of the processes that share each batch this is, and how many read for each."""
        workers = max(1, self.num_workers)
        if self.trainer is None:
            return Place(workers=workers)
        return Place(self.trainer.global_rank, self.trainer.world_size, workers)

    def _used(self, name: str, split: Any) -> Any:
        """A split as it is loaded, with its pictures encoded, less what the filters drop."""
        if isinstance(split, IterableDataset):  # they are, and filters look at rows as they come
            return split
        encoded = split.cast_column("image", datasets.Image(decode=False))
        if not self.filters:
            return encoded
        kept, dropped = apply(encoded, self.filters)
        if dropped:
            log.info(
                "%s: %d of %d rows dropped: %s", name, dropped.total(), len(split), listed(dropped)
            )
        if not len(kept):
            raise UserError(f"the filters keep no row of {name}: {listed(dropped)}")
        return kept

    def _overfitted(self) -> Dataset:
        """The rows of the batches that training repeats, in their order."""
        data = self._splits["train"]
        if isinstance(data, IterableDataset):
            raise UserError(
                "data.overfit_batches repeats the rows of a table, and this is a stream: set "
                "data.source.streaming=false"
            )
        batches = TrainingBatches(len(data), self.batch_size, self.seed)
        return data.select(
            [draw.row for batch in islice(batches, self.overfit_batches) for draw in batch]
        )

    def _split(self, name: str) -> Any:
        """A split, or the part of one that the name takes."""
        split = name.partition("[")[0]
        if split not in self.splits:
            raise UserError(f"the data has no split {split}; it has {', '.join(self.splits)}")
        return part_of(self._splits[split], name)

    def _make_rows(self, split: str, training: bool) -> Rows | StreamedRows:
        data = self._split(split)
        transform = self.train_transform if training else self.eval_transform
        read = RowReader(transform, self.tokenizer, training, self.filters, self.max_pixels)
        if isinstance(data, IterableDataset):
            return StreamedRows(data, read, self._place, self.seed if training else None)
        if self.image_tokenizer is None or (training and self.augmented_tokens):
            return Rows(data, read)
        return Rows(data, read, self.encode(split, training))

    def check_table(self, split: str) -> Dataset:
        """A split that can be encoded ahead.

        Raises:
            UserError: there is no such split, or it streams.
        """
        data = self._split(split)
        if isinstance(data, IterableDataset):
            raise UserError("a stream cannot be encoded ahead: set data.source.streaming=false")
        return data

    def encode(self, split: str, training: bool = False, quiet: bool = False) -> list[Codes]:
        """Image tokens of a split, from disk or made now: of each view, or of the plain crop.

        Raises:
            UserError: the split streams, or the tokens cannot be written.
        """
        data = self.check_table(split)
        assert self.image_tokenizer is not None
        encode = partial(
            encode_view, data, self.image_tokenizer, self.cache, max_pixels=self.max_pixels
        )
        label = None if quiet else split
        if not (training and self.views):
            return [encode(self.eval_transform, label=label)]
        return [
            encode(self.train_transform, (self.seed, view), label=label and f"{split}, view {view}")
            for view in range(self.views)
        ]
