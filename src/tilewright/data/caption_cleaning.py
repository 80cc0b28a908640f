"""Cleaning of captions before a text encoder reads them, as in the training of other priors."""

import html
import re
from collections.abc import Callable
from functools import cache
from html.entities import html5
from html.parser import HTMLParser
from typing import Literal
from urllib.parse import unquote_plus

from tilewright.errors import UserError

Cleaning = Literal["none", "llamagen"]

HIDDEN_TAGS = frozenset(("rp", "rt", "script", "style", "template"))  # their content is no text

FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DOMAIN = r"[a-z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"

# Patterns and their replacements, in the order in which they apply. Captions are in lower case.
BEFORE_HTML = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
)
AFTER_HTML = (
    (r"@\w+\b", ""),  # names of accounts
    *((f"[{block}]+", "") for block in ("\u31c0-\u31ef", "\u31f0-\u31ff", "\u3200-\u4dff")),
    ("[\u4e00-\u9fff]+", ""),  # Chinese characters
    (  # dashes
        "[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        "\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\][}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
AFTER_REPAIR = (
    # Names of products and parts
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    # Phrases of shops and of stock photos
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILE_TYPES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
    # Punctuation
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def find_cleaning(name: str) -> Callable[[str], str]:
    """Returns the function that cleans a caption.

    Raises:
        UserError: there is no such cleaning, or it needs a package that is not installed.
    """
    if name == "none":
        return str
    if name == "llamagen":
        _repair("")  # raises now, not in a dataloader worker
        return clean_like_llamagen
    raise UserError(f"cleaning={name} is not possible: set none or llamagen")


def clean_like_llamagen(caption: str) -> str:
    """Returns a caption in lower case, without markup, addresses, file names and phrases of shops.

    LlamaGen cleans each caption twice, in its training and in sampling.
    """
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    text = _substitute(unquote_plus(caption).strip().lower(), BEFORE_HTML)
    text = _substitute(_html_text(text), AFTER_HTML)
    if len(re.findall("[-_]", text)) > 3:  # words-joined-by-dashes
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(_repair(text))).strip()
    return _substitute(text, AFTER_REPAIR).strip()


def _substitute(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


@cache
def _ftfy() -> Callable[[str], str]:
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise UserError(
            "cleaning=llamagen needs ftfy, which is not installed: pip install "
            "'tilewright[pretrained]'"
        ) from error
    return fix_text


def _repair(text: str) -> str:
    """Repairs characters that were decoded from the wrong encoding."""
    return _ftfy()(text)


def _html_text(markup: str) -> str:
    """Returns the text between the tags of HTML, with character references replaced."""
    parser = _TextParser()
    try:
        parser.feed(markup)
        parser.close()
    except AssertionError:  # a declaration that the parser rejects
        return markup
    return "".join(parser.text)


class _TextParser(HTMLParser):
    """Collects the text of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not HIDDEN_TAGS.intersection(self._open):
            self.text.append(data)

    def handle_charref(self, name: str) -> None:
        self.handle_data(html.unescape(f"&#{name};"))

    def handle_entityref(self, name: str) -> None:
        self.handle_data(html5.get(f"{name};", f"&{name}"))

    def unknown_decl(self, data: str) -> None:
        if data.upper().startswith("CDATA["):
            self.text.append(data[len("CDATA[") :])
