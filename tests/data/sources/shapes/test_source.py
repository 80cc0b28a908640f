"""The rendered shapes dataset: deterministic, and either complete or absent."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Image, load_from_disk
from PIL import Image as PILImage

from tilewright.data.sources.shapes import (
    HELD_OUT,
    ShapesSource,
    caption_is_true,
    parse_caption,
    read_scene,
    render,
    sample_scene,
)
from tilewright.data.sources.shapes import source as source_module
from tilewright.errors import UserError


def small(root: Path, **changes: int) -> ShapesSource:
    return ShapesSource(root=root, **{"train": 12, "validation": 6, "zeroshot": 6} | changes)


def raw(source: ShapesSource, split: str) -> list[dict]:
    return source.load()[split].cast_column("image", Image(decode=False))[:]["image"]


def test_splits_and_columns(tmp_path: Path) -> None:
    data = small(tmp_path).load()
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 12, "validation": 6, "zeroshot": 6,
    }  # fmt: skip
    assert set(data["train"].column_names) == {"image", "caption"}
    row = data["train"][0]
    assert isinstance(row["image"], PILImage.Image)
    assert row["image"].size == (32, 32)
    assert len(set(row["caption"])) == 4
    png = raw(small(tmp_path), "train")[0]["bytes"]
    assert PILImage.open(io.BytesIO(png)).format == "PNG"


def test_rows_match_sample_scene(tmp_path: Path) -> None:
    data = small(tmp_path, seed=5).load()
    for split in data:
        for index, row in enumerate(data[split]):
            scene = sample_scene(5, split, index)
            assert (np.asarray(row["image"]) == render(scene)).all()
            assert all(parse_caption(caption).is_true_of(scene) for caption in row["caption"])
            assert all(caption_is_true(row["image"], caption) for caption in row["caption"])


def test_held_out_pairs_are_only_in_zeroshot(tmp_path: Path) -> None:
    data = small(tmp_path, train=300).load()
    for split in data:
        scenes = [read_scene(image) for image in data[split]["image"]]
        held_out = [any((t.color, t.shape) in HELD_OUT for t in s.things) for s in scenes if s]
        assert len(held_out) == len(scenes)
        assert all(held_out) if split == "zeroshot" else not any(held_out)


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    first, second = small(tmp_path / "first"), small(tmp_path / "second")
    for split in ("train", "validation", "zeroshot"):
        assert raw(first, split) == raw(second, split)
        assert first.load()[split]["caption"][:] == second.load()[split]["caption"][:]


def test_more_rows_do_not_change_the_first_rows(tmp_path: Path) -> None:
    few, many = small(tmp_path), small(tmp_path, train=20, validation=9)
    for split in ("train", "validation", "zeroshot"):
        rows = len(few.load()[split])
        assert raw(many, split)[:rows] == raw(few, split)
        assert many.load()[split]["caption"][:rows] == few.load()[split]["caption"][:]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"image_size": 40}, {"captions": 2}, {"train": 13}, {"zeroshot": 7}],
    ids=str,
)
def test_other_arguments_use_another_folder(tmp_path: Path, change: dict[str, int]) -> None:
    assert small(tmp_path, **change).folder != small(tmp_path).folder
    assert small(tmp_path).folder.parent == tmp_path / "shapes"


def test_another_world_version_uses_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = small(tmp_path).folder
    monkeypatch.setattr(source_module, "WORLD_VERSION", -1)
    assert small(tmp_path).folder != before


def test_second_load_renders_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small(tmp_path).load()
    capfd.readouterr()
    monkeypatch.setattr(ShapesSource, "row", None)
    assert len(small(tmp_path).load()["train"]) == 12
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("step", ["render", "save"])
def test_an_interrupted_render_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "render":
            patch.setattr(source_module, "render", interrupt)
        else:
            patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path).load()
    assert not small(tmp_path).folder.exists()
    assert not list(tmp_path.glob("shapes/*"))
    assert len(small(tmp_path).load()["train"]) == 12


def test_a_killed_render_is_not_reused(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from tilewright.data.sources.shapes import ShapesSource\n"
        "Path.rename = lambda *_: os._exit(9)\n"
        f"ShapesSource(root={str(tmp_path)!r}, train=12, validation=6, zeroshot=6).load()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not small(tmp_path).folder.exists()
    assert len(small(tmp_path).load()["train"]) == 12


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = small(tmp_path)
    save = source_module._save_quietly

    def save_after_another_process(*arguments: object) -> None:
        save(*arguments)
        if not slow.folder.exists():
            monkeypatch.setattr(source_module, "_save_quietly", save)
            small(tmp_path).load()

    monkeypatch.setattr(source_module, "_save_quietly", save_after_another_process)
    assert len(slow.load()["train"]) == 12
    assert len(load_from_disk(slow.folder)["train"]) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 16}, "image_size=16 is too small for shapes: set 32 or more"),
        ({"captions": 9}, "captions=9 is not possible"),
        ({"validation": 0}, "data.source.validation=0 is not possible"),
    ],
)
def test_impossible_arguments_are_named(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        small(tmp_path, **change).load()


def test_the_first_rows_are_pinned(tmp_path: Path) -> None:
    """If this fails, images or captions changed: raise WORLD_VERSION and update the values."""
    rows = small(tmp_path).load()["train"]
    assert rows["caption"][0] == [
        "below the small blue diamond there is a small blue star",
        "under the small blue diamond there is a small blue star",
        "a small blue diamond is over a small blue star",
        "there is a small blue star under a small blue diamond",
    ]
    assert [int(np.asarray(image, dtype=int).sum()) for image in rows["image"][:3]] == [
        752220,
        762048,
        770412,
    ]
