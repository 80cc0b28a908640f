"""Source of the shapes dataset: renders it on first use and keeps it as a Hugging Face dataset."""

import hashlib
import io
import random
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
    load_from_disk,
)
from PIL import Image as PILImage
from rich.console import Console
from rich.progress import track

from tilewright.data.sources.shapes.checker import ShapesChecker
from tilewright.data.sources.shapes.grammar import choose_captions
from tilewright.data.sources.shapes.world import WORLD_VERSION, render, sample_scene
from tilewright.errors import UserError
from tilewright.files import atomic_folder

FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


class ShapesSource:
    """Captioned images of colored shapes, rendered without a download.

    The same arguments give the same bytes on every machine.

    Args:
        root: folder for data. The images go to `<root>/shapes/<hash of the other arguments>/`.
        image_size: side of the images in pixels, 32 or more.
        train: rows of the train split. The first rows stay the same when this grows.
        validation: rows of the validation split. It shares no image with train.
        zeroshot: rows of the split whose (color, shape) pairs are in neither of the others.
        captions: number of different captions of each image, 1 to 8.
        seed: seed of scenes and captions.

    Raises:
        UserError: a split has no rows. `load` raises it for an `image_size` or a number of
            captions that is not supported.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int = 32,
        train: int = 40_000,
        validation: int = 1_000,
        zeroshot: int = 1_000,
        captions: int = 4,
        seed: int = 0,
    ) -> None:
        self.image_size, self.captions, self.seed = image_size, captions, seed
        self.rows = {"train": train, "validation": validation, "zeroshot": zeroshot}
        for split, rows in self.rows.items():
            if rows < 1:
                raise UserError(f"data.source.{split}={rows} is not possible: set 1 or more rows")
        key = f"{WORLD_VERSION} {image_size} {train} {validation} {zeroshot} {captions} {seed}"
        self.folder = Path(root) / "shapes" / hashlib.sha256(key.encode()).hexdigest()[:12]

    @property
    def checker(self) -> ShapesChecker:
        """Checker that detects the shapes in an image and compares them with a caption."""
        return ShapesChecker()

    def load(self) -> DatasetDict:
        """Loads the splits train, validation and zeroshot, and renders them on first use."""
        if not self.folder.exists():
            splits = self._render()
            with atomic_folder(self.folder) as folder:
                _save_quietly(splits, folder)
        return load_from_disk(self.folder)

    def row(self, split: str, index: int) -> dict[str, object]:
        """Renders one row: {"image": {"bytes": PNG, "path": None}, "caption": [str, ...]}."""
        scene = sample_scene(self.seed, split, index)
        png = io.BytesIO()
        PILImage.fromarray(render(scene, self.image_size)).save(png, "PNG")
        rng = random.Random(f"{self.seed}/{split}/{index}/captions")
        image = {"bytes": png.getvalue(), "path": None}
        return {"image": image, "caption": choose_captions(scene, rng, self.captions)}

    def _render(self) -> DatasetDict:
        console, splits = Console(stderr=True), DatasetDict()
        for split, count in self.rows.items():
            indices = track(
                range(count),
                f"Rendering shapes/{split}",
                console=console,
                transient=True,
                disable=not console.is_terminal,  # a log file would get empty lines
            )
            rows = [self.row(split, index) for index in indices]
            columns = {name: [row[name] for row in rows] for name in FEATURES}
            splits[split] = Dataset.from_dict(columns, features=FEATURES)
        return splits


def _save_quietly(splits: DatasetDict, folder: Path) -> None:
    """Saves the splits without the progress bars of `datasets`."""
    was_enabled = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        splits.save_to_disk(folder)
    finally:
        if was_enabled:
            enable_progress_bars()
