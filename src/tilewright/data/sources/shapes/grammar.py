"""Grammar of the shapes captions: phrases a claim about a scene, and parses a caption to its claim.

Each phrasing is one template that serves both directions. `phrasings` fills it in, and
`parse_caption` uses it as a pattern. Every caption that can be written can therefore be parsed.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

from tilewright.data.sources.shapes import world
from tilewright.data.sources.shapes.world import PALETTE, RADIUS, SHAPES, Scene, Thing
from tilewright.errors import UserError

PLACES: dict[str, tuple[int, int]] = {  # phrase -> (column, row), see world.place
    "in the top left": (0, 0),
    "at the top": (1, 0),
    "in the top right": (2, 0),
    "on the left": (0, 1),
    "in the middle": (1, 1),
    "on the right": (2, 1),
    "in the bottom left": (0, 2),
    "at the bottom": (1, 2),
    "in the bottom right": (2, 2),
}
RELATIONS: dict[str, tuple[str, ...]] = {  # relation (see world.relation) -> its phrases
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# Slots: a and b are the first and the second thing, p is a place, r is a relation.
TEMPLATES = {
    "one object": (
        "a {a}",
        "one {a}",
        "there is a {a}",
        "a picture of a {a}",
        "a {a} {p}",
        "{p} there is a {a}",
        "there is a {a} {p}",
        "a picture of a {a} {p}",
    ),
    "two objects": (
        "a {a} and a {b}",
        "there is a {a} and a {b}",
        "a picture of a {a} and a {b}",
        "a {a} with a {b}",
    ),
    "relation": (
        "a {a} {r} a {b}",
        "a {a} is {r} a {b}",
        "there is a {a} {r} a {b}",
        "{r} the {b} there is a {a}",
        "a picture of a {a} {r} a {b}",
    ),
}


@dataclass(frozen=True)
class Description:
    """Words of a caption for one thing."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"

    @classmethod
    def from_thing(cls, thing: Thing) -> "Description":
        return cls(thing.size, thing.color, thing.shape)


@dataclass(frozen=True)
class Claim:
    """Meaning of a caption: these things and no others, optionally with a place or a relation.

    Attributes:
        things: one or two descriptions.
        place: (column, row) of the thing; only for a single thing.
        relation: position of the first thing relative to the second; only for two things.
    """

    things: tuple[Description, ...]
    place: tuple[int, int] | None = None
    relation: str | None = None

    @property
    def kind(self) -> str:
        """Kind of the caption: "one object", "two objects" or "relation"."""
        if len(self.things) == 1:
            return "one object"
        return "two objects" if self.relation is None else "relation"

    def is_true_of(self, scene: Scene) -> bool:
        """Returns True if the claim is true of the scene."""
        return any(self._matches(things) for things in permutations(scene.things))

    def _matches(self, things: tuple[Thing, ...]) -> bool:
        return (
            tuple(map(Description.from_thing, things)) == self.things
            and self.place in (None, world.place(things[0]))
            and (self.relation is None or self.relation == world.relation(*things))
        )


def choose_captions(scene: Scene, rng: random.Random, count: int = 4) -> list[str]:
    """Returns `count` different true captions of a scene, chosen uniformly from all phrasings.

    Raises:
        UserError: the grammar has fewer captions for the scene (each scene has at least eight).
    """
    captions = [caption for claim in true_claims(scene) for caption in phrasings(claim)]
    if not 1 <= count <= len(captions):
        raise UserError(
            f"captions={count} is not possible: shapes has 1 to {len(captions)} captions for an "
            "image"
        )
    return rng.sample(captions, count)


def true_claims(scene: Scene) -> list[Claim]:
    """Returns all true claims about a scene, from the least to the most specific."""
    if len(scene.things) == 1:
        things = (Description.from_thing(scene.things[0]),)
        return [Claim(things), Claim(things, place=world.place(scene.things[0]))]
    orders = list(permutations(scene.things))
    described = [tuple(map(Description.from_thing, order)) for order in orders]
    return [Claim(things) for things in described] + [
        Claim(things, relation=world.relation(*order))
        for things, order in zip(described, orders, strict=True)
    ]


def phrasings(claim: Claim) -> list[str]:
    """Returns all captions that state a claim."""
    words: dict[str, tuple[str, ...]] = {
        "a": (str(claim.things[0]),),
        "b": tuple(map(str, claim.things[1:])),
        "p": tuple(phrase for phrase, place in PLACES.items() if place == claim.place),
        "r": RELATIONS[claim.relation] if claim.relation else (),
    }
    return [
        template.format(**dict(zip(slots, choice, strict=True)))
        for template in TEMPLATES[claim.kind]
        if ("p" in (slots := _slots(template))) == (claim.place is not None)
        for choice in product(*(words[slot] for slot in slots))
    ]


def parse_caption(caption: str) -> Claim:
    """Parses a caption to its claim; the inverse of `phrasings`. Ignores case and extra spaces.

    Raises:
        UserError: the caption is outside the grammar. The message names the first unknown word.
    """
    text = " ".join(caption.lower().split())
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            slots = match.groupdict()
            return Claim(
                tuple(Description(*slots[slot].split()) for slot in "ab" if slot in slots),
                place=PLACES[slots["p"]] if "p" in slots else None,
                relation=_PHRASE_TO_RELATION[slots["r"]] if "r" in slots else None,
            )
    for word in text.split():
        if word not in WORDS:
            raise UserError(
                f'"{text}" has the word "{word}", which shapes captions do not use: write it like '
                '"a large red circle"'
            )
    raise UserError(f'"{text}" is not a shapes caption: write it like "a large red circle"')


def caption_kind(caption: str) -> str:
    """Returns the kind of a caption: "one object", "two objects" or "relation"."""
    return parse_caption(caption).kind


def altered_claims(claim: Claim) -> list[tuple[str, Claim]]:
    """Returns all claims that differ in exactly one attribute, each with that attribute's name.

    If a claim is true of a scene, all altered claims are false. The attributes are color, shape,
    size, place, relation and number. A claim about one thing gets, as its second thing, the same
    one in the other size; the place is then left out.
    """
    altered = [
        (attribute, replace(claim, things=(*claim.things[:i], changed, *claim.things[i + 1 :])))
        for i, thing in enumerate(claim.things)
        for attribute, changed in _altered_descriptions(thing)
    ]
    if claim.place is not None:
        places = [place for place in PLACES.values() if place != claim.place]
        altered += [("place", replace(claim, place=place)) for place in places]
    if claim.relation is not None:
        relations = [relation for relation in RELATIONS if relation != claim.relation]
        altered += [("relation", replace(claim, relation=relation)) for relation in relations]
    if len(claim.things) == 2:
        return altered + [("number", Claim((thing,))) for thing in claim.things]
    descriptions = _altered_descriptions(claim.things[0])
    twin = next(changed for attribute, changed in descriptions if attribute == "size")
    return [*altered, ("number", Claim((*claim.things, twin)))]


def _altered_descriptions(thing: Description) -> Iterator[tuple[str, Description]]:
    for attribute, values in (("color", PALETTE), ("shape", SHAPES), ("size", RADIUS)):
        for value in values:
            if value != getattr(thing, attribute):
                yield attribute, replace(thing, **{attribute: value})


def _slots(template: str) -> list[str]:
    return re.findall(r"{(\w)}", template)


def _pattern(template: str) -> re.Pattern[str]:
    thing = " ".join(f"(?:{'|'.join(words)})" for words in (RADIUS, PALETTE, SHAPES))
    slots = {"a": thing, "b": thing, "p": "|".join(PLACES), "r": "|".join(_PHRASE_TO_RELATION)}
    return re.compile(template.format(**{s: f"(?P<{s}>{slots[s]})" for s in _slots(template)}))


_PHRASE_TO_RELATION = {
    phrase: relation for relation, phrases in RELATIONS.items() for phrase in phrases
}
_TEMPLATES = [template for templates in TEMPLATES.values() for template in templates]
_PATTERNS = [_pattern(template) for template in _TEMPLATES]
WORDS = frozenset(
    word
    for text in (*_TEMPLATES, *PLACES, *_PHRASE_TO_RELATION, *RADIUS, *PALETTE, *SHAPES)
    for word in re.sub(r"{\w}", "", text).split()
)
