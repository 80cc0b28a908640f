"""Builds a folder of about 780 captioned images of 256x256: photographs and drawings.

The photographs come from a clone of CompVis/taming-transformers, which ships 200 of COCO, 200 of
Open Images and 28 landscapes. Captions list the annotated objects. The drawings are emoji.

    git clone https://github.com/CompVis/taming-transformers
    python benchmarks/photo_folder.py taming=taming-transformers out=my/images
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

import settings as command_line
from PIL import Image

from tilewright.cli.messages import one_line_errors
from tilewright.data import EmojiSource

DEFAULTS = {
    "taming": "taming-transformers",  # folder of the clone
    "out": "my/images",
    "drawings": 155,  # emoji, each in two styles
    "validation": 80,  # images
}
SIZE = 256  # pixels
OBJECTS = 3  # kinds of objects in a caption
COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}


def caption(names: Iterable[str]) -> str:
    """Returns a caption of the most frequent objects: "a photo of two dogs and a person"."""
    counts = Counter(re.sub(r"-(other|stuff)$", "", name.lower()) for name in names)
    phrases = [phrase(name, count) for name, count in counts.most_common(OBJECTS)]
    *first, last = phrases
    return "a photo of " + (f"{', '.join(first)} and {last}" if first else last)


def phrase(name: str, count: int) -> str:
    article = "an" if name[0] in "aeiou" and count == 1 else COUNTS.get(count, "many")
    return f"{article} {name}" if count == 1 else f"{article} {name}s"


def coco(root: Path) -> Iterator[tuple[Path, str]]:
    for split in ("train2017", "val2017"):
        names = defaultdict(list)
        for kind in ("instances", "stuff"):
            file = root / "annotations" / f"{kind}_{split}.json"
            if not file.exists():
                continue
            content = json.loads(file.read_text())
            labels = {category["id"]: category["name"] for category in content["categories"]}
            for entry in content["annotations"]:
                label = labels[entry["category_id"]]
                if label != "other":
                    names[entry["image_id"]].append(label)
        for image, found in sorted(names.items()):
            yield root / split / f"{image:012}.jpg", caption(found)


def open_images(root: Path) -> Iterator[tuple[Path, str]]:
    with (root / "class-descriptions-boxable.csv").open() as file:
        labels = dict(csv.reader(file))
    for split, table in (("train", "oidv6-train"), ("validation", "validation")):
        names = defaultdict(list)
        with (root / f"{table}-annotations-bbox.csv").open() as file:
            for row in csv.DictReader(file):
                names[row["ImageID"]].append(labels[row["LabelName"]])
        for path in sorted((root / split).glob("*.jpg")):
            if path.stem in names:
                yield path, caption(names[path.stem])


def photographs(taming: Path) -> Iterator[tuple[str, list[Image.Image], str]]:
    """Yields the name, the squares and the caption of each photograph."""
    data = taming / "data"
    for path, text in chain(
        coco(data / "coco_annotations_100"), open_images(data / "open_images_annotations_100")
    ):
        image = Image.open(path).convert("RGB")
        left, top = ((side - min(image.size)) // 2 for side in image.size)
        yield path.stem, [square(image, left, top, min(image.size))], text
    for path in sorted((data / "sflckr_images").glob("*/*.jpg")):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        offsets = [index * (image.width - side) // 2 for index in range(3)]
        place = path.parent.name.replace("_", " ")
        yield path.stem, [square(image, left, 0, side) for left in offsets], f"a photo of {place}"


def square(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    box = (left, top, left + side, top + side)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box)


def drawings(count: int, cache: Path) -> Iterator[tuple[str, list[Image.Image], str]]:
    """Yields the name, the image in both styles and the caption of each drawing."""
    source = EmojiSource(
        str(cache), image_size=SIZE, limit=count, validation_fraction=0.01, zeroshot_fraction=0
    )
    images = defaultdict(list)
    for rows in source.load().values():
        for row in rows:
            images[row["caption"].partition(" of ")[2]].append(row["image"])
    for name, styles in images.items():
        yield name, styles, f"a drawing of {name}"


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    out = Path(settings.out)
    entries = sorted(
        chain(
            photographs(Path(settings.taming)),
            drawings(settings.drawings, out.parent / "rendered"),
        ),
        key=lambda entry: sha256(entry[0].encode()).hexdigest(),
    )
    records: dict[str, list[dict[str, str]]] = {"validation": [], "train": []}
    for name, squares, text in entries:
        # All squares of a photograph and all styles of a drawing are in one split.
        split = "train" if len(records["validation"]) >= settings.validation else "validation"
        folder = out if split == "train" else out / split
        folder.mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(squares):
            file = f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}_{index}.png"
            image.save(folder / file)
            records[split].append({"file_name": file, "caption": text})
    for split, rows in records.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        ((out if split == "train" else out / split) / "metadata.jsonl").write_text(lines)
        print(f"{len(rows)} images for {split}")


if __name__ == "__main__":
    with one_line_errors():
        main()
