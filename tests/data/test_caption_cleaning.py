"""Cleaning of captions. The expected captions are computed by hand from LlamaGen's rules."""

import builtins

import pytest

from tilewright.data import caption_cleaning
from tilewright.data.caption_cleaning import find_cleaning
from tilewright.errors import UserError


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Red Circle", "a red circle"),
        ("  spaces   and\ttabs ", "spaces and tabs"),
        ("a%20red+circle", "a red circle"),  # as in an address
        ("<PERSON> on a horse", "person on a horse"),
        ("see https://example.com/x?y=1 now", "see ?y=1 now"),
        ("from www.example.com/page here", "from here"),
        ("a <b>bold</b> dog<br>and <script>x()</script>cat", "a bold dogand cat"),
        ("caf&eacute; &#233;t&#xe9; &unknown;", "café été unknown"),
        ("<!-- hidden -->shown", "shown"),
        ("photo by @some_one, 2020", "photo by , 2020"),
        ("東京 tower ㏄", "tower"),
        ("one — two – three", "one - two - three"),
        ("«quoted» and ‘single’", "quoted\" and 'single"),
        ("host 192.168.1.10 down", "host down"),
        ("at the clock 12:34 ", "at the clock 12:34"),
        ("line\\nbreak", "line break"),
        ("#12 and #12345 and #1234", "and and 1234"),
        ("article 1234567 here", "article here"),
        ("img_001.jpg of a dog", "of a dog"),
        ("wow!!! ... '' end", 'wow!!! " end'),
        ("***SALE*** (new) [now] {or} a|b \\ c/d", "sale new now or a b c d"),
        ("this-is-my-cute-cat", "this is my cute cat"),
        ("a well-known cat", "a well-known cat"),
        ("ﬁne ｒｅｄ", "fine red"),  # ligatures and wide letters
        ("bag jc6640 and jc6640vc and 6640vc231", "bag and and"),
        ("worldwide free shipping on mugs", "on mugs"),
        ("free download of icons", "of icons"),
        ("click for details now", "now"),
        ("sunset png images", "sunset"),
        ("page 12 of a book", "of a book"),
        ("id j2d1a2a end", "id end"),
        ("poster 1920x1080 or 3.5×4", "poster or"),
        ("title : text,more", "title: text, more"),
        ("\"'quoted'\"", "quoted"),
        (":-start and end-", "start and end"),
        ("&amp;quot;hello&amp;quot;", "hello"),
        (".hidden", ""),
        ("", ""),
    ],
)
def test_captions_are_cleaned_like_those_of_llamagen(caption, expected):
    assert find_cleaning("llamagen")(caption) == expected


def test_cleaning_applies_twice():
    assert caption_cleaning._clean_once("red%2520dog") == "red%20dog"
    assert find_cleaning("llamagen")("red%2520dog") == "red dog"


def test_a_declaration_that_is_not_html_stays():
    assert "caption" in find_cleaning("llamagen")("<![x caption")


def test_no_cleaning_keeps_a_caption():
    assert find_cleaning("none")(" A <b>Dog</b> ") == " A <b>Dog</b> "


def test_an_unknown_cleaning_is_one_line():
    with pytest.raises(UserError, match="cleaning=clip is not possible: set none or llamagen"):
        find_cleaning("clip")


def test_a_missing_package_is_one_line(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "ftfy":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    caption_cleaning._ftfy.cache_clear()
    with pytest.raises(UserError, match=r"cleaning=llamagen needs ftfy.*tilewright\[pretrained\]"):
        find_cleaning("llamagen")
