"""Protocol of a data source.

A source is any object with a method `load`. A new source is one class and one file under
`conf/data/` that names it (docs/extending.md).
"""

from typing import Protocol

from datasets import DatasetDict, IterableDatasetDict


class Source(Protocol):
    """Object that loads splits of captioned images."""

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Loads the splits: `train` and `validation`, and optionally `test` and `zeroshot`.

        Each split has exactly two columns. `image` is a `datasets.Image`. `caption` is a string, or
        a list of strings that describe the same image in different words. A row without a caption
        has None or an empty list. stage=dvae uses its image, and the other stages leave it out.

        No image is decoded yet, and some may be broken. Cast the column to `Image(decode=False)`
        and read its records with `images.decode_image`. Streaming splits are already cast.

        Raises:
            UserError: the data does not exist or lacks a column.
        """
        ...
