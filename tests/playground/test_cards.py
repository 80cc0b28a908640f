"""A view as HTML, and the files that its links hold."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

from tilewright.playground.cards import blank, to_html
from tilewright.playground.session import View

CAPTION = 'a "red" <b>circle</b> / rot'
SETTINGS = {"run": "tiny", "seed": 3, "sampling": {"temperature": 1.0}}
RECORDS = [
    {"prompt": CAPTION, "candidate": 12, "score": 0.25},
    {"prompt": CAPTION, "candidate": 4, "score": -1.5},
]
PICTURES = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def picture(address):
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(b64decode(data)))


def finished(**changes):
    view = {"pictures": PICTURES, "note": "done", "records": RECORDS, "settings": SETTINGS}
    return Tags(to_html(View(CAPTION, **{**view, **changes})))


def test_while_drawing_there_are_pictures_and_progress_and_nothing_to_save():
    tags = Tags(to_html(View(CAPTION, PICTURES, "Drawing", 0.5)))
    assert [picture(image["src"]).getpixel((0, 0)) for image in tags.all("img")] == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert float(tags.all("progress")[0]["value"]) == 0.5
    assert not tags.all("a")


def test_the_caption_is_text_and_no_tag():
    tags = finished()
    assert not tags.all("b")
    assert {image["alt"] for image in tags.all("img")} == {CAPTION}


def test_each_picture_can_be_saved_with_what_is_known_of_it():
    _, *links = finished().all("a")
    for link, image, record in zip(links, PICTURES, RECORDS, strict=True):
        saved = picture(link["href"])
        assert saved.convert("RGB").tobytes() == image.tobytes()
        assert json.loads(saved.text["tilewright"]) == {**SETTINGS, **record}
        assert link["download"] == f"a-red-b-circle-b-rot-seed3-{record['candidate']:03}.png"


def test_all_can_be_saved_as_one_grid():
    link, *_ = finished().all("a")
    saved = picture(link["href"])
    assert json.loads(saved.text["tilewright"]) == {**SETTINGS, "pictures": RECORDS}
    assert link["download"] == "a-red-b-circle-b-rot-seed3.png"
    many = finished(pictures=PICTURES * 6, records=RECORDS * 6)
    assert picture(many.all("a")[0]["href"]).size == (8 * 100 + 4, 2 * 100 + 4 + 24)


def test_scores_stand_under_the_pictures():
    text = " ".join(finished().text)
    assert "score 0.250" in text
    assert "score -1.500" in text
    unranked = [{"prompt": CAPTION, "candidate": number} for number in range(2)]
    assert "score" not in " ".join(finished(records=unranked).text)


def test_before_there_are_pictures_there_are_their_places():
    assert len(Tags(blank(5)).all("figure")) == 5
