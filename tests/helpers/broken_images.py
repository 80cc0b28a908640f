"""Data source with random images, of which some cannot be read."""

from datasets import Dataset, DatasetDict

from helpers.tiny import FEATURES, RandomImages

BROKEN = {"bytes": b"not an image", "path": None}


class BrokenImages(RandomImages):
    """The rows of `RandomImages`, about half of them broken.

    Args:
        validation: readability of the validation rows.
    """

    def __init__(self, validation):
        self.validation = validation

    def load(self):
        rows = list(
            super().load()["train"].cast_column("image", FEATURES["image"].__class__(False))
        )
        train = [
            row if index % 5 in (0, 3) else {**row, "image": BROKEN}
            for index, row in enumerate(rows)
        ]
        validation = [
            row if readable else {**row, "image": BROKEN}
            for row, readable in zip(rows, self.validation, strict=False)
        ]
        return DatasetDict(
            {
                "train": Dataset.from_list(train, features=FEATURES),
                "validation": Dataset.from_list(validation, features=FEATURES),
            }
        )
