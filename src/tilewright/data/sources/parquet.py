"""Captioned images in parquet files."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_dataset
from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile, read_schema

from tilewright.data.dataset_cache import full_disk_errors
from tilewright.data.fingerprints import file_state
from tilewright.data.sources.columns import TEXT, is_value, select_image_and_caption
from tilewright.data.sources.listing import list_files
from tilewright.data.sources.splits import group_by_split, hold_out_validation, resolve_splits
from tilewright.errors import UserError, first_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files with a column of images and a column of captions.

    The name of a file or of its folder determines its split by one of the words train, validation,
    valid, val, dev, test or zeroshot: "val-00000-of-00001.parquet", "val/part-3.parquet". All other
    files are for training.

    Args:
        path: a file, a folder (its *.parquet at any depth), or a glob pattern.
        image_column: encoded images as Hugging Face structs or as bytes, or paths of images
            relative to the folder of the parquet file, or addresses.
        caption_column: column of the captions. None is for images without captions.
        validation_fraction: share of the training images to hold out if there is no file for
            validation.
        seed: seed of that choice.
    """

    path: str
    image_column: str = "image"
    caption_column: str | None = "caption"
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict:
        """Loads the splits. See `Source.load`."""
        path = Path(self.path).expanduser()
        if path.is_dir():
            files = list_files(path.absolute()).select({".parquet"})
        elif path.is_file():  # its name may have signs of patterns
            files = [path.absolute()]
        else:
            files = sorted({Path(file).absolute() for file in glob(str(path), recursive=True)})  # noqa: PTH207
        if not files:
            raise UserError(
                f"{self.path!r} matches no parquet file: give a file, a folder or a pattern"
            )

        # One folder at a time, because paths in a file are relative to its own folder.
        groups: dict[str, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
        description = f"parquet at {self.path!r}"
        files = self._check_files(files)
        for split, paths in group_by_split([str(file) for file in files], description).items():
            for file in map(Path, paths):
                groups[split][file.parent].append(file)
        splits = {split: self._load_folders(folders) for split, folders in groups.items()}
        hold_out = partial(
            hold_out_validation,
            fraction=self.validation_fraction,
            seed=self.seed,
            description=description,
        )
        return DatasetDict(
            resolve_splits(splits, hold_out, description, "put 'train' in the name of a file")
        )

    def _check_files(self, files: Sequence[Path]) -> list[Path]:
        """Reads the headers of the files, and returns the files that have rows.

        Raises:
            UserError: a file is broken or lacks a column that others have, or no file has a row.
        """
        schemas: dict[Path, set[str]] = {}
        for file in files:
            try:
                with ParquetFile(file) as parquet:
                    if parquet.metadata.num_rows:
                        schemas[file] = {*parquet.schema_arrow.names}
            except (OSError, ArrowException) as error:
                raise UserError(
                    f"{file} cannot be read as a parquet file ({first_line(error)}): replace or "
                    "remove it"
                ) from error
        if not schemas:
            raise UserError(f"the parquet files at {self.path!r} have no rows: add some")
        if empty := [file for file in files if file not in schemas]:
            log.info("%d parquet file(s) have no rows, such as %s", len(empty), empty[0])
        for column in filter(None, (self.image_column, self.caption_column)):
            complete = [file for file, columns in schemas.items() if column in columns]
            incomplete = [file for file in schemas if file not in complete]
            if complete and incomplete:
                raise UserError(
                    f"{incomplete[0]} has no column {column!r}, but {complete[0]} has it: give the "
                    "columns the same names in all files"
                )
        return list(schemas)

    def _load_folders(self, folders: Mapping[Path, list[Path]]) -> Dataset:
        try:
            with full_disk_errors():
                groups = [self._load_folder(*group) for group in folders.items()]
            return concatenate_datasets(groups)
        except UserError:
            raise
        except Exception as error:  # pyarrow's classes, wrapped in those of datasets
            raise UserError(
                f"parquet at {self.path!r} cannot be read: {first_line(error.__cause__ or error)}; "
                "store images and captions in the same form in all files"
            ) from error

    def _load_folder(self, folder: Path, files: list[Path]) -> Dataset:
        description = f"parquet in {str(folder)!r}"
        names = {self.image_column} | ({self.caption_column} if self.caption_column else set())
        has_all = names <= {*read_schema(files[0]).names}
        states = str([file_state(file) for file in files])
        rows = load_dataset(
            "parquet",
            hashlib.sha256(states.encode()).hexdigest()[:16],  # a changed file is read again
            data_files=[escape(str(file)) for file in files],  # they are read as patterns
            # With a missing column, all are loaded, so that the error can list them.
            columns=sorted(names) if has_all else None,
            split="train",
        )
        holds_paths = is_value(rows.features.get(self.image_column), TEXT)
        pairs = select_image_and_caption(rows, self.image_column, self.caption_column, description)
        if not holds_paths:
            return pairs
        encoded = pairs.cast_column("image", Image(decode=False)).map(
            _make_absolute, fn_kwargs={"folder": str(folder)}, desc="Finding the images"
        )
        return encoded.cast_column("image", Image())


def _make_absolute(row: dict[str, Any], folder: str) -> dict[str, Any]:
    path = row["image"] and row["image"]["path"]
    if path and "://" not in path:
        path = str(Path(folder, path))
    return {"image": {"bytes": None, "path": path or None}}
