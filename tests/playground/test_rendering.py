"""HTML of a snapshot, and the PNG files in its links."""

import json
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

from tilewright.playground.rendering import render_placeholders, render_snapshot
from tilewright.playground.session import Snapshot

CAPTION = 'a "red" <b>circle</b> / rot'
SETTINGS = {"run": "tiny", "seed": 3, "sampling": {"temperature": 1.0}}
RECORDS = [
    {"prompt": CAPTION, "candidate": 12, "score": 0.25},
    {"prompt": CAPTION, "candidate": 4, "score": -1.5},
]
IMAGES = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]


class Tags(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def open_data_url(url):
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(b64decode(data)))


def render_finished(**changes):
    values = {"images": IMAGES, "note": "done", "records": RECORDS, "settings": SETTINGS}
    return Tags(render_snapshot(Snapshot(CAPTION, **{**values, **changes})))


def test_an_unfinished_snapshot_has_progress_and_no_links():
    tags = Tags(render_snapshot(Snapshot(CAPTION, IMAGES, "Generating", 0.5)))
    images = [open_data_url(image["src"]) for image in tags.attributes("img")]
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]
    assert float(tags.attributes("progress")[0]["value"]) == 0.5
    assert not tags.attributes("a")


def test_the_caption_is_escaped():
    tags = render_finished()
    assert not tags.attributes("b")
    assert {image["alt"] for image in tags.attributes("img")} == {CAPTION}


def test_each_image_links_to_its_png_with_settings():
    _, *links = render_finished().attributes("a")
    for link, image, record in zip(links, IMAGES, RECORDS, strict=True):
        saved = open_data_url(link["href"])
        assert saved.convert("RGB").tobytes() == image.tobytes()
        assert json.loads(saved.text["tilewright"]) == {**SETTINGS, **record}
        assert link["download"] == f"a-red-b-circle-b-rot-seed3-{record['candidate']:03}.png"


def test_the_first_link_saves_all_images_as_one_grid():
    link, *_ = render_finished().attributes("a")
    saved = open_data_url(link["href"])
    assert json.loads(saved.text["tilewright"]) == {**SETTINGS, "pictures": RECORDS}
    assert link["download"] == "a-red-b-circle-b-rot-seed3.png"
    many = render_finished(images=IMAGES * 6, records=RECORDS * 6)
    assert open_data_url(many.attributes("a")[0]["href"]).size == (8 * 100 + 4, 2 * 100 + 4 + 24)


def test_scores_are_shown_if_there_are_any():
    text = " ".join(render_finished().text)
    assert "score 0.250" in text
    assert "score -1.500" in text
    unranked = [{"prompt": CAPTION, "candidate": index} for index in range(2)]
    assert "score" not in " ".join(render_finished(records=unranked).text)


def test_placeholders_are_one_empty_figure_per_image():
    assert len(Tags(render_placeholders(5)).attributes("figure")) == 5
