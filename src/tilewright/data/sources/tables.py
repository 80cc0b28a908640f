"""Where captioned pictures come from: the Hugging Face Hub and parquet files.

A source is any object whose `load()` gives splits with a column `image`, still encoded, and a
column `caption`. A new one is one class, and one file under `conf/data/` that names it. Pictures in
a folder are in `folder.py`, emoji in `emoji.py`.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from glob import glob
from os.path import commonpath
from pathlib import Path
from typing import Any, Protocol, TypeVar

from datasets import (
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    LargeList,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from tilewright.data.splits import halve_rows, settle, split_in_name
from tilewright.errors import UserError

log = logging.getLogger(__name__)

Rows = TypeVar("Rows", Dataset, IterableDataset)


class Source(Protocol):
    """Anything that captioned pictures can be loaded from."""

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Load the splits: `train` and `validation`, and perhaps `test` and `zeroshot`.

        Every split has exactly two columns: `image`, a `datasets.Image`, and `caption`, a string
        or a list of strings that say the same picture in different words. No picture is decoded
        yet, and some will turn out to be broken: read them by casting the column to
        `Image(decode=False)`, as that of a stream is already, and `images.decode`. A table has no
        row without a caption; a stream may have some, and captions that are no text.

        Raises:
            UserError: there is no such data, or it lacks a column.
        """
        ...


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face Hub, or in a local folder that `datasets` can load.

    Args:
        name: a name on the Hub ("user/pictures"), a folder of data files, or a folder that
            `save_to_disk` has written.
        config: which of the data set's configurations.
        split: which of its splits. None takes them by their usual names; a name or a slice
            ("train[:10%]") takes that one alone; a mapping of `train`, `validation`, `test` and
            `zeroshot` to names or slices says it all.
        streaming: read while training, without a copy on this machine.
        validation_fraction: the share of training pictures that is held out when the data set has
            no split to validate on.
    """

    name: str
    config: str | None = None
    split: str | Mapping[str, str] | None = None
    image_column: str = "image"
    caption_column: str = "caption"
    streaming: bool = False
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Load the splits; see `Source.load`."""
        what = f"data set {self.name!r}"
        try:
            splits = self._load_saved() or self._load_named()
        except UserError:
            raise
        except Exception as error:  # of a dozen classes, from three libraries
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            check = f"check its name, config={self.config}, split={self.split}, and the network"
            raise UserError(f"{what} could not be loaded: {reason}; {check}") from error
        splits = {
            split: as_pairs(rows, self.image_column, self.caption_column, what)
            for split, rows in splits.items()
        }
        halve = partial(halve_rows, fraction=self.validation_fraction, seed=self.seed, what=what)
        found = settle(splits, halve, what, "say which is by split=NAME")
        stream = isinstance(found["train"], IterableDataset)
        return IterableDatasetDict(found) if stream else DatasetDict(found)

    def _load_saved(self) -> dict[str, Any]:
        folder = Path(self.name).expanduser()
        if (folder / "dataset_dict.json").is_file():
            saved = dict(load_from_disk(str(folder)))
        elif (folder / "state.json").is_file():
            saved = {"train": load_from_disk(str(folder))}
        else:
            return {}
        wanted = self._wanted()
        for theirs in wanted.values():
            if theirs not in saved:
                raise UserError(
                    f"data set {self.name!r} has no split {theirs!r}: it has {', '.join(saved)}"
                )
        return {ours: saved[theirs] for ours, theirs in wanted.items()} or saved

    def _load_named(self) -> dict[str, Any]:
        folder = Path(self.name).expanduser()
        name = str(folder) if folder.is_dir() else self.name
        load = partial(load_dataset, name, self.config, streaming=self.streaming)
        wanted = self._wanted()
        return {ours: load(split=theirs) for ours, theirs in wanted.items()} or dict(load())

    def _wanted(self) -> dict[str, str]:
        return {"train": self.split} if isinstance(self.split, str) else dict(self.split or {})


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with a column of pictures and one of captions.

    A file of whose name train, validation, valid, val, dev, test or zeroshot is a word is of that
    split ("val-00000-of-00001.parquet", "val/part-3.parquet"); the others are for training.

    Args:
        path: a file, a folder (its *.parquet, at any depth), or a glob pattern.
        image_column: encoded pictures, as Hugging Face's structs or as bare bytes; or the paths of
            pictures, relative to the folder of the parquet file.
        validation_fraction: the share of training pictures that is held out when no file is of a
            split to validate on.
    """

    path: str
    image_column: str = "image"
    caption_column: str = "caption"
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict:
        """Load the splits; see `Source.load`."""
        path = Path(self.path).expanduser()
        pattern = str(path / "**" / "*.parquet") if path.is_dir() else str(path)
        files = sorted(Path(file).resolve() for file in glob(pattern, recursive=True))  # noqa: PTH207
        if not files:
            raise UserError(f"no parquet file at {self.path!r}: give a file, a folder or a pattern")

        # One folder at a time, because paths in a file are relative to its own folder.
        groups: dict[str, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
        root = commonpath([file.parent for file in files])
        for file in files:
            groups[split_in_name(file.relative_to(root))][file.parent].append(file)
        splits = {
            split: concatenate_datasets([self._load_folder(*group) for group in folders.items()])
            for split, folders in groups.items()
        }

        what = f"parquet at {self.path!r}"
        halve = partial(halve_rows, fraction=self.validation_fraction, seed=self.seed, what=what)
        return DatasetDict(settle(splits, halve, what, "put 'train' in the name of a file"))

    def _load_folder(self, folder: Path, files: list[Path]) -> Dataset:
        what = f"parquet in {str(folder)!r}"
        try:
            rows = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        except Exception as error:  # pyarrow's own classes, wrapped in those of datasets
            reason = str(error.__cause__ or error).splitlines()[0]
            check = f"make sure that {', '.join(file.name for file in files)} is whole"
            raise UserError(f"{what} could not be read: {reason}; {check}") from error
        paths = _is_value(rows.features.get(self.image_column), _TEXT)
        pairs = as_pairs(rows, self.image_column, self.caption_column, what)
        if not paths:
            return pairs
        encoded = pairs.cast_column("image", Image(decode=False)).map(
            _absolute, fn_kwargs={"folder": str(folder)}, desc="Finding the pictures"
        )
        return encoded.cast_column("image", Image())


_TEXT = ("string", "large_string")
_BYTES = ("binary", "large_binary")


def as_pairs(rows: Rows, image_column: str, caption_column: str, what: str) -> Rows:
    """Reduce rows of any data set to the columns `image` (encoded) and `caption`.

    Rows of a table that have no caption are left out, with one warning that counts them.

    Raises:
        UserError: a column is not there, or holds something else; the message opens with `what`.
    """
    columns = rows.column_names or list(next(iter(rows), {}))  # a stream may not know them
    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in columns:
            there = ", ".join(columns)
            raise UserError(f"{what} has no column {column!r}: it has {there}; set {argument}")
    if rows.features is not None:
        if not _holds_pictures(rows.features[image_column]):
            raise UserError(f"{what} has no pictures in column {image_column!r}: set image_column")
        if not _holds_text(rows.features[caption_column]):
            raise UserError(f"{what} has no text in column {caption_column!r}: set caption_column")
    # Cast before all else: a stream decodes its pictures in any later step, a renaming even.
    if rows.features is not None:
        rows = rows.cast_column(image_column, Image(decode=False))
    rows = rows.select_columns([image_column, caption_column])
    names = {image_column: "image", caption_column: "caption"}
    rows = rows.rename_columns({old: new for old, new in names.items() if old != new})
    if isinstance(rows, IterableDataset):  # rows without a caption are counted as they come
        return rows
    captioned = rows.filter(_has_caption)
    if missing := len(rows) - len(captioned):
        log.warning("%d of %d rows of %s have no caption and are skipped", missing, len(rows), what)
    return (captioned if missing else rows).cast_column("image", Image())


def _has_caption(row: Mapping[str, Any]) -> bool:
    return bool(row["caption"])


def _holds_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):  # the struct of an Image whose type was lost on the way
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, Image) or _is_value(feature, _TEXT + _BYTES)


def _holds_text(feature: Any) -> bool:
    several = isinstance(feature, (List, LargeList))
    return _is_value(feature.feature if several else feature, _TEXT)


def _is_value(feature: Any, dtypes: tuple[str, ...]) -> bool:
    return isinstance(feature, Value) and feature.dtype in dtypes


def _absolute(row: dict[str, Any], folder: str) -> dict[str, Any]:
    return {"image": {"bytes": None, "path": str(Path(folder, row["image"]["path"]))}}
