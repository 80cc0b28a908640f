"""Captions of the shapes dataset: true, varied, and parsed back exactly."""

import random
import re

import pytest

from tilewright.data.sources.shapes import (
    Claim,
    Description,
    Scene,
    Thing,
    altered_claims,
    caption_kind,
    choose_captions,
    parse_caption,
    phrasings,
    sample_scene,
    true_claims,
)
from tilewright.errors import UserError

SCENES = [sample_scene(3, split, i) for split in ("train", "zeroshot") for i in range(100)]


@pytest.mark.parametrize(
    ("caption", "claim"),
    [
        ("a large red circle", Claim((Description("large", "red", "circle"),))),
        (
            "in the top left there is a small blue star",
            Claim((Description("small", "blue", "star"),), place=(0, 0)),
        ),
        (
            "a large red circle with a small blue square",
            Claim((Description("large", "red", "circle"), Description("small", "blue", "square"))),
        ),
        (
            "below the large red circle there is a small blue square",
            Claim(
                (Description("small", "blue", "square"), Description("large", "red", "circle")),
                relation="below",
            ),
        ),
    ],
)
def test_parses_to_claim(caption: str, claim: Claim) -> None:
    assert parse_caption(caption) == claim


def test_parsing_inverts_all_phrasings() -> None:
    for scene in SCENES:
        for claim in true_claims(scene):
            for caption in phrasings(claim):
                assert parse_caption(caption) == claim
                assert caption_kind(caption) == claim.kind


def test_no_two_claims_share_a_caption() -> None:
    for scene in SCENES:
        phrased = [caption for claim in true_claims(scene) for caption in phrasings(claim)]
        assert len(set(phrased)) == len(phrased) >= 8


def test_captions_are_true_distinct_and_short() -> None:
    for index, scene in enumerate(SCENES):
        chosen = choose_captions(scene, random.Random(index), 4)
        assert len(set(chosen)) == 4
        for caption in chosen:
            assert parse_caption(caption).is_true_of(scene)
            assert re.fullmatch(r"[a-z]+( [a-z]+){2,15}", caption)


def test_captions_depend_on_the_generator_only() -> None:
    assert choose_captions(SCENES[0], random.Random(5), 4) == choose_captions(
        SCENES[0], random.Random(5), 4
    )
    assert choose_captions(SCENES[0], random.Random(5), 4) != choose_captions(
        SCENES[0], random.Random(6), 4
    )


def test_captions_cover_all_kinds_places_and_relations() -> None:
    first = [
        parse_caption(choose_captions(scene, random.Random(i), 1)[0])
        for i, scene in enumerate(SCENES)
    ]
    assert {claim.kind for claim in first} == {"one object", "two objects", "relation"}
    assert len({claim.place for claim in first}) == 10  # nine places, and None
    assert len({claim.relation for claim in first}) == 5


def test_altered_claims_are_false() -> None:
    for scene in SCENES:
        for claim in true_claims(scene):
            altered = altered_claims(claim)
            assert len({other for _, other in altered}) == len(altered)
            for attribute, other in altered:
                assert not other.is_true_of(scene), (claim, attribute, other)
                assert all(parse_caption(caption) == other for caption in phrasings(other))


def test_altered_claims_cover_all_attributes() -> None:
    one, two = Description("large", "red", "circle"), Description("small", "blue", "star")
    with_place = [name for name, _ in altered_claims(Claim((one,), place=(1, 1)))]
    assert {n: with_place.count(n) for n in with_place} == {
        "color": 7, "shape": 5, "size": 1, "place": 8, "number": 1,
    }  # fmt: skip
    related = [name for name, _ in altered_claims(Claim((one, two), relation="left"))]
    assert {n: related.count(n) for n in related} == {
        "color": 14, "shape": 10, "size": 2, "relation": 3, "number": 2,
    }  # fmt: skip


def test_a_claim_must_describe_all_things() -> None:
    circle, star = Thing("circle", "red", "large", 8, 16), Thing("star", "blue", "small", 26, 16)
    both, alone = Scene((circle, star)), Scene((circle,))
    assert parse_caption("a small blue star is right of a large red circle").is_true_of(both)
    assert not parse_caption("a small blue star is left of a large red circle").is_true_of(both)
    assert parse_caption("a large red circle on the left").is_true_of(alone)
    assert not parse_caption("a large red circle on the right").is_true_of(alone)
    assert not parse_caption("a large red circle").is_true_of(both)


def test_case_and_extra_spaces_are_ignored() -> None:
    assert parse_caption("  A large  Red circle ") == parse_caption("a large red circle")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a large red dog", 'the word "dog", which shapes captions do not use'),
        ("a red large circle", '^"a red large circle" is not a shapes caption'),
        ("", "is not a shapes caption"),
    ],
)
def test_other_sentences_are_rejected_in_one_line(caption: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_caption(caption)
    assert "\n" not in str(error.value)


def test_more_captions_than_phrasings_are_rejected() -> None:
    scene = next(scene for scene in SCENES if len(scene.things) == 1)
    assert len(choose_captions(scene, random.Random(0), 8)) == 8
    with pytest.raises(UserError, match="captions=9 is not possible"):
        choose_captions(scene, random.Random(0), 9)
