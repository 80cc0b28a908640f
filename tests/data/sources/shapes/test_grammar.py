"""Captions are true, varied, and read back exactly."""

import random
import re

import pytest

from tilewright.data.sources.shapes import (
    Claim,
    Description,
    Scene,
    Thing,
    alterations,
    captions,
    claims,
    kind,
    parse,
    sample_scene,
    say,
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
def test_parse_reads(caption: str, claim: Claim) -> None:
    assert parse(caption) == claim


def test_parse_is_the_inverse_of_every_phrasing() -> None:
    for scene in SCENES:
        for claim in claims(scene):
            for caption in say(claim):
                assert parse(caption) == claim
                assert kind(caption) == claim.kind


def test_no_two_claims_share_a_caption() -> None:
    for scene in SCENES:
        said = [caption for claim in claims(scene) for caption in say(claim)]
        assert len(set(said)) == len(said) >= 8


def test_captions_are_true_different_short_and_plain() -> None:
    for index, scene in enumerate(SCENES):
        drawn = captions(scene, random.Random(index), 4)
        assert len(set(drawn)) == 4
        for caption in drawn:
            assert parse(caption).holds(scene)
            assert re.fullmatch(r"[a-z]+( [a-z]+){2,15}", caption)


def test_captions_follow_from_the_generator() -> None:
    assert captions(SCENES[0], random.Random(5), 4) == captions(SCENES[0], random.Random(5), 4)
    assert captions(SCENES[0], random.Random(5), 4) != captions(SCENES[0], random.Random(6), 4)


def test_every_kind_place_and_relation_is_spoken_of() -> None:
    first = [parse(captions(scene, random.Random(i), 1)[0]) for i, scene in enumerate(SCENES)]
    assert {claim.kind for claim in first} == {"one object", "two objects", "relation"}
    assert len({claim.place for claim in first}) == 10  # nine, and none
    assert len({claim.relation for claim in first}) == 5


def test_alterations_change_one_attribute_and_are_false() -> None:
    for scene in SCENES:
        for claim in claims(scene):
            altered = alterations(claim)
            assert len({other for _, other in altered}) == len(altered)
            for attribute, other in altered:
                assert not other.holds(scene), (claim, attribute, other)
                assert all(parse(caption) == other for caption in say(other))


def test_alterations_reach_every_attribute() -> None:
    one, two = Description("large", "red", "circle"), Description("small", "blue", "star")
    with_place = [name for name, _ in alterations(Claim((one,), place=(1, 1)))]
    assert {n: with_place.count(n) for n in with_place} == {
        "color": 7, "shape": 5, "size": 1, "place": 8, "number": 1,
    }  # fmt: skip
    related = [name for name, _ in alterations(Claim((one, two), relation="left"))]
    assert {n: related.count(n) for n in related} == {
        "color": 14, "shape": 10, "size": 2, "relation": 3, "number": 2,
    }  # fmt: skip


def test_a_claim_speaks_of_all_things() -> None:
    circle, star = Thing("circle", "red", "large", 8, 16), Thing("star", "blue", "small", 26, 16)
    both, alone = Scene((circle, star)), Scene((circle,))
    assert parse("a small blue star is right of a large red circle").holds(both)
    assert not parse("a small blue star is left of a large red circle").holds(both)
    assert parse("a large red circle on the left").holds(alone)
    assert not parse("a large red circle on the right").holds(alone)
    assert not parse("a large red circle").holds(both)


def test_case_and_spaces_do_not_matter() -> None:
    assert parse("  A large  Red circle ") == parse("a large red circle")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a large red dog", '^shapes captions have no word "dog"'),
        ("a red large circle", '^"a red large circle" is no caption of shapes'),
        ("", "is no caption of shapes"),
    ],
)
def test_other_sentences_are_refused_in_one_line(caption: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse(caption)
    assert "\n" not in str(error.value)


def test_more_captions_than_phrasings_are_refused() -> None:
    one = next(scene for scene in SCENES if len(scene.things) == 1)
    assert len(captions(one, random.Random(0), 8)) == 8
    with pytest.raises(UserError, match="1 to 8 captions"):
        captions(one, random.Random(0), 9)
