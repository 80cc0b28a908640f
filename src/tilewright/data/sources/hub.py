"""Captioned images from the Hugging Face Hub, or from a local dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import (
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
    load_from_disk,
)

from tilewright.data.dataset_cache import full_disk_errors
from tilewright.data.sources.columns import select_image_and_caption
from tilewright.data.sources.splits import hold_out_validation, resolve_splits
from tilewright.errors import UserError, first_line


@dataclass(frozen=True)
class HubSource:
    """Dataset on the Hugging Face Hub, or in a local folder that `datasets` can load.

    Args:
        name: name on the Hub ("user/images"), a folder of data files, or a folder written by
            `save_to_disk`.
        config: configuration of the dataset.
        split: splits to load. None loads the splits with the usual names. A name or a slice
            ("train[:10%]") loads that split only. A mapping assigns a name or a slice to each of
            `train`, `validation`, `test` and `zeroshot`.
        caption_column: column of the captions. None is for images without captions.
        streaming: read during training, without a copy on this machine.
        validation_fraction: share of the training images to hold out if the dataset has no split
            for validation.
        seed: seed of that choice.
    """

    name: str
    config: str | None = None
    split: str | Mapping[str, str] | None = None
    image_column: str = "image"
    caption_column: str | None = "caption"
    streaming: bool = False
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Loads the splits. See `Source.load`."""
        description = f"dataset {self.name!r}"
        hold_out = partial(
            hold_out_validation,
            fraction=self.validation_fraction,
            seed=self.seed,
            description=description,
        )
        try:
            with full_disk_errors():
                splits = {
                    split: select_image_and_caption(
                        rows, self.image_column, self.caption_column, description
                    )
                    for split, rows in (self._load_saved() or self._load_named()).items()
                }
                resolved = resolve_splits(splits, hold_out, description, "name one with split=NAME")
        except UserError:
            raise
        except Exception as error:  # a dozen classes from three libraries
            reason = first_line(error.__cause__ or error).rstrip(".")
            raise UserError(
                f"{description} cannot be loaded: {reason}; check its name, "
                f"config={self.config}, split={self.split}, and the network"
            ) from error
        is_streaming = isinstance(resolved["train"], IterableDataset)
        return IterableDatasetDict(resolved) if is_streaming else DatasetDict(resolved)

    def _load_saved(self) -> dict[str, Any]:
        """Loads a folder written by `save_to_disk`. Returns {} for any other dataset."""
        folder = Path(self.name).expanduser()
        if (folder / "dataset_dict.json").is_file():
            saved = dict(load_from_disk(str(folder)))
        elif (folder / "state.json").is_file():
            saved = {"train": load_from_disk(str(folder))}
        else:
            return {}
        requested = self._requested_splits()
        for name in requested.values():
            if name not in saved:
                raise UserError(
                    f"dataset {self.name!r} has no split {name!r}: use {', '.join(saved)}"
                )
        return {split: saved[name] for split, name in requested.items()} or saved

    def _load_named(self) -> dict[str, Any]:
        folder = Path(self.name).expanduser()
        name = str(folder) if folder.is_dir() else self.name
        load = partial(load_dataset, name, self.config, streaming=self.streaming)
        requested = self._requested_splits()
        return {split: load(split=name) for split, name in requested.items()} or dict(load())

    def _requested_splits(self) -> dict[str, str]:
        return {"train": self.split} if isinstance(self.split, str) else dict(self.split or {})
