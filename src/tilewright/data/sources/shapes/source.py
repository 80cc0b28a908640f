"""The shapes world as a data source: rendered on first use, kept as a Hugging Face dataset."""

import hashlib
import io
import random
import tempfile
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
from tilewright.data.sources.shapes.grammar import captions
from tilewright.data.sources.shapes.world import WORLD_VERSION, render, sample_scene
from tilewright.errors import UserError

FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


class ShapesSource:
    """Captioned pictures of colored shapes that every machine can have.

    Args:
        root: folder for data; the pictures go to `<root>/shapes/<key of these arguments>/`.
        image_size: side of the pictures in pixels, 32 or more.
        train: rows of the train split. More rows leave the first ones as they are.
        validation: rows of the validation split; none of its pictures is in train.
        zeroshot: rows of the split whose (color, shape) pairs are in neither of the others.
        captions: different captions for each picture, 1 to 8.
        seed: another seed, other pictures.

    Raises:
        UserError: for a split without rows; in `load`, for an image_size or a number of captions
            that the world does not have.
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
                raise UserError(f"shapes needs {split} of 1 row or more, not {rows}")
        key = f"{WORLD_VERSION} {image_size} {train} {validation} {zeroshot} {captions} {seed}"
        self.folder = Path(root) / "shapes" / hashlib.sha256(key.encode()).hexdigest()[:12]

    @property
    def checker(self) -> ShapesChecker:
        """Program that reads shapes off the pixels and compares them with a caption."""
        return ShapesChecker()

    def load(self) -> DatasetDict:
        """Splits train, validation and zeroshot with columns image (PNG) and caption (list)."""
        if not self.folder.exists():
            self._render_to_disk()
        return load_from_disk(self.folder)

    def row(self, split: str, index: int) -> dict[str, object]:
        """One row, made afresh: {"image": {"bytes": PNG, "path": None}, "caption": [str, ...]}."""
        scene = sample_scene(self.seed, split, index)
        png = io.BytesIO()
        PILImage.fromarray(render(scene, self.image_size)).save(png, "PNG")
        rng = random.Random(f"{self.seed}/{split}/{index}/captions")
        image = {"bytes": png.getvalue(), "path": None}
        return {"image": image, "caption": captions(scene, rng, self.captions)}

    def _render_to_disk(self) -> None:
        console, splits = Console(stderr=True), DatasetDict()
        for split, rows in self.rows.items():
            indices = track(
                range(rows),
                f"Rendering shapes/{split}",
                console=console,
                transient=True,
                disable=not console.is_terminal,  # a log would only get empty lines
            )
            made = [self.row(split, index) for index in indices]
            columns = {name: [row[name] for row in made] for name in FEATURES}
            splits[split] = Dataset.from_dict(columns, features=FEATURES)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its final place and moved there whole: neither an interrupted render nor
        # one that another process is busy with is ever taken for the data set.
        with tempfile.TemporaryDirectory(prefix=".render-", dir=self.folder.parent) as beside:
            whole = Path(beside) / "whole"
            _save_quietly(splits, whole)
            try:
                whole.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # else another process was first, with the same rows
                    raise


def _save_quietly(splits: DatasetDict, folder: Path) -> None:
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        splits.save_to_disk(folder)
    finally:
        if shown:
            enable_progress_bars()
