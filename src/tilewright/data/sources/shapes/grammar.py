"""Captions of the shapes world: written from a scene, read back into the claim that they make.

Every phrasing is one template, used in both directions: `say` fills it in and `parse` turns it
into a pattern, so what can be said can be read, exactly.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

from tilewright.data.sources.shapes import world
from tilewright.data.sources.shapes.world import PALETTE, RADIUS, SHAPES, Scene, Thing
from tilewright.errors import UserError

PLACES: dict[str, tuple[int, int]] = {  # phrase: (column, row), see world.place
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
RELATIONS: dict[str, tuple[str, ...]] = {  # see world.relation; ways to say it
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# a, b: the first and the second thing, without article; p: a place; r: a relation.
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
    """What a caption calls one object."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"

    @classmethod
    def of(cls, thing: Thing) -> "Description":
        return cls(thing.size, thing.color, thing.shape)


@dataclass(frozen=True)
class Claim:
    """What a caption says: these things, no others, and perhaps where.

    `place` (column, row) goes with one thing; `relation` with two: where the first is, seen from
    the second.
    """

    things: tuple[Description, ...]
    place: tuple[int, int] | None = None
    relation: str | None = None

    @property
    def kind(self) -> str:
        """ "one object", "two objects" or "relation"."""
        if len(self.things) == 1:
            return "one object"
        return "two objects" if self.relation is None else "relation"

    def holds(self, scene: Scene) -> bool:
        """Whether the claim is true of the scene."""
        return any(self._holds(things) for things in permutations(scene.things))

    def _holds(self, things: tuple[Thing, ...]) -> bool:
        return (
            tuple(map(Description.of, things)) == self.things
            and self.place in (None, world.place(things[0]))
            and (self.relation is None or self.relation == world.relation(*things))
        )


def captions(scene: Scene, rng: random.Random, count: int = 4) -> list[str]:
    """Different true captions of a scene, drawn evenly from all its phrasings.

    Raises:
        UserError: if the grammar has not that many (every scene has eight).
    """
    all_true = [caption for claim in claims(scene) for caption in say(claim)]
    if not 1 <= count <= len(all_true):
        raise UserError(f"shapes has 1 to {len(all_true)} captions for a picture, not {count}")
    return rng.sample(all_true, count)


def claims(scene: Scene) -> list[Claim]:
    """All that the grammar can truly say of a scene, from its vaguest claim to its sharpest."""
    if len(scene.things) == 1:
        things = (Description.of(scene.things[0]),)
        return [Claim(things), Claim(things, place=world.place(scene.things[0]))]
    orders = list(permutations(scene.things))
    described = [tuple(map(Description.of, order)) for order in orders]
    return [Claim(things) for things in described] + [
        Claim(things, relation=world.relation(*order))
        for things, order in zip(described, orders, strict=True)
    ]


def say(claim: Claim) -> list[str]:
    """Every phrasing of a claim."""
    words: dict[str, tuple[str, ...]] = {
        "a": (str(claim.things[0]),),
        "b": tuple(map(str, claim.things[1:])),
        "p": tuple(phrase for phrase, where in PLACES.items() if where == claim.place),
        "r": RELATIONS[claim.relation] if claim.relation else (),
    }
    return [
        template.format(**dict(zip(slots, choice, strict=True)))
        for template in TEMPLATES[claim.kind]
        if ("p" in (slots := _slots(template))) == (claim.place is not None)
        for choice in product(*(words[slot] for slot in slots))
    ]


def parse(caption: str) -> Claim:
    """Read a caption: the inverse of `say`. Case and spaces do not matter.

    Raises:
        UserError: if the caption is outside the grammar; the message names the word, if one is.
    """
    text = " ".join(caption.lower().split())
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            return Claim(
                tuple(Description(*found[slot].split()) for slot in "ab" if slot in found),
                place=PLACES[found["p"]] if "p" in found else None,
                relation=_RELATION_OF[found["r"]] if "r" in found else None,
            )
    for word in text.split():
        if word not in WORDS:
            raise UserError(f'shapes captions have no word "{word}" (in "{text}")')
    raise UserError(f'"{text}" is no caption of shapes; say it like "a large red circle"')


def kind(caption: str) -> str:
    """What a caption speaks of: "one object", "two objects" or "relation"."""
    return parse(caption).kind


def alterations(claim: Claim) -> list[tuple[str, Claim]]:
    """All claims that differ in exactly one attribute, each with the name of the attribute.

    Where a claim is true of a scene, none of these is. The attributes: color, shape, size, place,
    relation, number. One more thing is the first again in the other size; then no place is claimed.
    """
    changed = [
        (attribute, replace(claim, things=(*claim.things[:i], other, *claim.things[i + 1 :])))
        for i, thing in enumerate(claim.things)
        for attribute, other in _changed(thing)
    ]
    if claim.place is not None:
        others = [where for where in PLACES.values() if where != claim.place]
        changed += [("place", replace(claim, place=where)) for where in others]
    if claim.relation is not None:
        others_ = [name for name in RELATIONS if name != claim.relation]
        changed += [("relation", replace(claim, relation=name)) for name in others_]
    if len(claim.things) == 2:
        return changed + [("number", Claim((thing,))) for thing in claim.things]
    twin = next(other for attribute, other in _changed(claim.things[0]) if attribute == "size")
    return [*changed, ("number", Claim((*claim.things, twin)))]


def _changed(thing: Description) -> Iterator[tuple[str, Description]]:
    for attribute, values in (("color", PALETTE), ("shape", SHAPES), ("size", RADIUS)):
        for value in values:
            if value != getattr(thing, attribute):
                yield attribute, replace(thing, **{attribute: value})


def _slots(template: str) -> list[str]:
    return re.findall(r"{(\w)}", template)


def _pattern(template: str) -> re.Pattern[str]:
    described = " ".join(f"(?:{'|'.join(words)})" for words in (RADIUS, PALETTE, SHAPES))
    slots = {"a": described, "b": described, "p": "|".join(PLACES), "r": "|".join(_RELATION_OF)}
    return re.compile(template.format(**{s: f"(?P<{s}>{slots[s]})" for s in _slots(template)}))


_RELATION_OF = {wording: name for name, wordings in RELATIONS.items() for wording in wordings}
_TEMPLATES = [template for templates in TEMPLATES.values() for template in templates]
_PATTERNS = [_pattern(template) for template in _TEMPLATES]
WORDS = frozenset(
    word
    for text in (*_TEMPLATES, *PLACES, *_RELATION_OF, *RADIUS, *PALETTE, *SHAPES)
    for word in re.sub(r"{\w}", "", text).split()
)
