"""Scenes and rendered images of the shapes dataset."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from tilewright.data.sources.shapes import (
    HELD_OUT,
    PALETTE,
    RADIUS,
    SHAPES,
    Scene,
    Thing,
    render,
    sample_scene,
)
from tilewright.data.sources.shapes.world import BACKGROUND, place, relation
from tilewright.errors import UserError

SPLITS = ("train", "validation", "zeroshot")
SCENES = {split: [sample_scene(0, split, i) for i in range(2000)] for split in SPLITS}
ALL = [scene for split in SPLITS for scene in SCENES[split]]


def pairs(scene: Scene) -> list[tuple[str, str]]:
    return [(thing.color, thing.shape) for thing in scene.things]


def test_held_out_pairs_are_spread_evenly() -> None:
    assert len(HELD_OUT) == 8
    assert Counter(color for color, _ in HELD_OUT) == dict.fromkeys(PALETTE, 1)
    shapes = Counter(shape for _, shape in HELD_OUT)
    assert set(shapes) == set(SHAPES)
    assert max(shapes.values()) <= 2


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_pairs_are_not_in_train_or_validation(split: str) -> None:
    assert not HELD_OUT & {pair for scene in SCENES[split] for pair in pairs(scene)}


def test_zeroshot_has_a_held_out_pair_in_every_scene() -> None:
    assert all(HELD_OUT & set(pairs(scene)) for scene in SCENES["zeroshot"])
    assert {pair for scene in SCENES["zeroshot"] for pair in pairs(scene)} >= HELD_OUT


def test_train_has_all_other_pairs_and_both_numbers() -> None:
    present = {pair for scene in SCENES["train"] for pair in pairs(scene)}
    assert len(present) == len(PALETTE) * len(SHAPES) - len(HELD_OUT)
    two = np.mean([len(scene.things) == 2 for scene in SCENES["train"]])
    assert 0.45 < two < 0.55


def test_train_and_validation_share_no_scene() -> None:
    assert not set(SCENES["train"]) & set(SCENES["validation"])


def test_scenes_depend_on_seed_split_and_index_only() -> None:
    assert sample_scene(0, "train", 17) == SCENES["train"][17]
    assert sample_scene(1, "train", 17) != SCENES["train"][17]
    # Pinned: a change here must come with a new WORLD_VERSION.
    assert sample_scene(0, "train", 0) == Scene(
        things=(
            Thing(shape="diamond", color="blue", size="small", x=16, y=8),
            Thing(shape="star", color="blue", size="small", x=8, y=26),
        )
    )


def test_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match='no split "test"'):
        sample_scene(0, "test", 0)


def test_things_are_inside_the_image() -> None:
    for scene in ALL:
        for thing in scene.things:
            reach = RADIUS[thing.size] + 1
            assert reach <= thing.x <= 32 - reach
            assert reach <= thing.y <= 32 - reach


def test_two_things_are_apart_with_a_clear_relation() -> None:
    for scene in ALL:
        for first, second in combinations(scene.things, 2):
            dx, dy = abs(first.x - second.x), abs(first.y - second.y)
            reach = RADIUS[first.size] + RADIUS[second.size]
            assert max(dx, dy) >= reach + 2
            assert max(dx, dy) >= 2 * min(dx, dy)
            descriptions = {(t.size, t.color, t.shape) for t in (first, second)}
            assert len(descriptions) == 2


def test_single_things_are_not_between_two_places() -> None:
    singles = [scene.things[0] for scene in ALL if len(scene.things) == 1]
    assert all(
        abs(center - edge) >= 2 for t in singles for center in (t.x, t.y) for edge in (12, 20)
    )
    assert len({place(thing) for thing in singles}) == 9


def test_relation_follows_the_longer_axis() -> None:
    middle = Thing("circle", "red", "small", 16, 16)
    for x, y, expected in [(6, 18, "left"), (26, 14, "right"), (18, 6, "above"), (14, 26, "below")]:
        assert relation(Thing("ring", "blue", "small", x, y), middle) == expected


@pytest.mark.parametrize("image_size", [32, 40, 64])
def test_images_have_a_clean_border_and_full_color_inside(image_size: int) -> None:
    for scene in ALL[::60]:
        image = render(scene, image_size)
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == BACKGROUND).all()
        for thing in scene.things:
            assert (image == PALETTE[thing.color]).all(-1).any()


def test_edges_are_smooth() -> None:
    image = render(Scene((Thing("circle", "black", "large", 16, 16),)))
    assert len(np.unique(image[..., 0])) > 4


def test_image_size_changes_the_resolution_only() -> None:
    for scene in ALL[:30]:
        small = render(scene, 32).astype(float)
        large = render(scene, 64).reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert abs(small - large).max() < 20


def test_colors_are_far_from_each_other_and_the_background() -> None:
    colors = np.array([*PALETTE.values(), BACKGROUND]) / 255
    assert min(np.linalg.norm(a - b) for a, b in combinations(colors, 2)) > 0.45


def test_a_too_small_image_size_is_rejected() -> None:
    with pytest.raises(UserError, match="image_size=16 is too small"):
        render(ALL[0], 16)
