"""Names of emoji as phrases, and concepts that group variants of the same emoji."""

import re
from typing import Any

TONES = {
    "\U0001f3fb": "light skin",
    "\U0001f3fc": "medium-light skin",
    "\U0001f3fd": "medium skin",
    "\U0001f3fe": "medium-dark skin",
    "\U0001f3ff": "dark skin",
}

# Characters that only distinguish variants are dropped, or replaced by a common one.
_VARIANT_CHARACTERS = str.maketrans(
    dict.fromkeys([*TONES, "\u200d", "\ufe0f"], "")  # skin tones; joiner; variation selector
    | dict.fromkeys("♀♂➡🦰🦱🦲🦳", "")  # gender, direction, hair
    | dict.fromkeys("⬛🟫🟩❄", "")  # an animal or a fruit in another color
    | dict.fromkeys("👨👩", "🧑")
    | dict.fromkeys("👦👧", "🧒")
    | dict.fromkeys("👴👵", "🧓")
    | dict.fromkeys("🤴👸", "🫅")
    | dict.fromkeys("🤰🫃", "🫄")
    | dict.fromkeys("👫👬👭", "🧑🤝🧑")
    | {"🎅": "🧑🎄", "🤶": "🧑🎄", "🕺": "💃"}
    | {chr(code): "🕐" for code in range(0x1F550, 0x1F568)}  # clock faces
    | {chr(code): "🌑" for code in range(0x1F311, 0x1F319)}  # phases of the moon
)
_SAME_CONCEPT = {
    "🧑❤🧑": "💑",
    "🧑❤💋🧑": "💏",
    "🧑🐰🧑": "👯",
    "🧑\U0001faef🧑": "🤼",
    "\U0001faf1\U0001faf2": "🤝",
}


def concept(emoji: str) -> str:
    """Returns the emoji that represents all variants of an emoji.

    A concept covers the skin tones, genders and hair of a person, or the members of a family.
    Others cover recolored animals, the hours of the clock, or the phases of the moon.
    """
    base = emoji.translate(_VARIANT_CHARACTERS)
    if len(base) > 1 and set(base) <= set("🧑🧒"):
        return "👪"
    return _SAME_CONCEPT.get(base, base) or emoji


def codepoints(emoji: str) -> str:
    """Returns the lower-case hexadecimal codepoints without the variation selector: "2764-1f525".

    The `emoji` package and the image packages disagree on the selector and on leading zeros.
    """
    return "-".join(f"{ord(character):x}" for character in emoji if character != "\ufe0f")


def phrase(emoji: str, names: dict[str, dict[str, Any]]) -> str | None:
    """Returns the name of an emoji in lower case with its article: "a green apple".

    Args:
        names: entries of `emoji.EMOJI_DATA` by `codepoints`.

    Returns:
        The phrase, or None if the emoji has no name.
    """
    tones = [TONES[character] for character in emoji if character in TONES and len(emoji) > 1]
    base = re.sub(f"[{''.join(TONES)}]", "", emoji) if tones else emoji
    entry = names.get(codepoints(base))
    if entry is None:
        return None
    name = entry["en"].strip(":").replace("_", " ").replace("’", "'")
    text = _with_article(name, is_flag=bool(re.match(r"[🇦-🇿]{2}|🏴\U000e0067", base)))
    return f"{text} with {' and '.join(dict.fromkeys(tones))}" if tones else text


# (pattern, replacement) for names that are not natural English.
_REWORD = [
    (r"^(man|woman|person) (bald)$", r"\2 \1"),
    (r"^(man|woman|person) ((?:red|white|curly|blond) hair|beard)$", r"\1 with \2"),
    (r"^(\w+ o'clock|\w+-thirty)$", r"clock at \1"),
    (r"^((?:no|children|passport|baggage|left|customs)\b.*)$", r"\1 sign"),
]
_MEMBERS = re.compile(
    r"^(family|couple with heart|kiss) ((?:(?:man|woman|boy|girl|adult|child|person)\b ?)+)$"
)
_TAKES_THE = re.compile(
    r"united |european |isle |(?:bahamas|gambia|maldives|philippines|seychelles)$|"
    r".*(?:islands|lands|republic|territory|territories)$"
)
_HEAD_ENDS = re.compile(
    r" (?:with|without|of|in|on|over|at|for|and|holding|blowing|showing|raising|lifting) |:"
)
_PLURAL = re.compile(r"^(?:men|women|people)\b(?!')|(?<![su'])s$")
_SINGULAR = re.compile(r"(?:ss|us|tennis|lens|rhinoceros)$")
# Uncountable things and activities, which take no article.
_UNCOUNTED = re.compile(
    r"\b(?:bacon|badminton|baseball|basketball|bowling|bread|broccoli|butter|camping|construction|"
    r"cooking|coral|cricket|fire|fog|foggy|food|football|garlic|hair|hockey|ice|lacrosse|luggage|"
    r"meat|money|rice|sake|salt|soap|softball|spaghetti|sushi|tea|tennis|volleyball|water|wood|"
    r"yarn)$"
)
_VOWEL = re.compile(r"(?!uni|eu|ew|one)[aeiou]|hour|x-|(?:sos|ng) ")


def _with_article(name: str, is_flag: bool) -> str:
    proper = name[0].isupper() and all(word[0].isupper() for word in name.split())
    name = name.lower().replace("&", "and")
    if is_flag:
        return f"the flag of {'the ' if _TAKES_THE.match(name) else ''}{name}"
    for pattern, replacement in _REWORD:
        name = re.sub(pattern, replacement, name)
    if match := _MEMBERS.match(name):
        name = f"{match[1]}: {', '.join(match[2].split())}"
    head = _HEAD_ENDS.split(name)[0]
    plural = _PLURAL.search(head) and not _SINGULAR.search(head)
    if proper or plural or name.startswith("keycap") or _UNCOUNTED.search(head):
        return name
    return f"{'an' if _VOWEL.match(name) else 'a'} {name}"
