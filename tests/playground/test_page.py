"""The page in a browser: Chromium without a screen, driven by Playwright."""

import json
import shutil
import socket
import threading
from base64 import b64decode
from io import BytesIO
from urllib.parse import urlparse

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from tilewright.cli import app
from tilewright.playground.session import Playground
from tilewright.viz.images import open_picture

pytest.importorskip("gradio", reason="the page needs the extra demo")
sync_api = pytest.importorskip("playwright.sync_api", reason="a browser needs the extra dev")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
EXAMPLE = "picture number 7"
WAIT = 120_000  # milliseconds: nothing takes so long, but a machine may be busy


class Gate:
    """The model, whose drawing waits after each row while the gate is shut."""

    def __init__(self, model):
        self.model = model
        self.open = threading.Event()
        self.open.set()

    def __getattr__(self, name):
        return getattr(self.model, name)

    def drawing(self, *captions, **how):
        for tokens in self.model.drawing(*captions, **how):
            yield tokens
            assert self.open.wait(WAIT / 1000)


def settings():
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("demo", ["n=3"])


@pytest.fixture(scope="module")
def addresses():
    """Whom this process talks to while there is a page."""
    met, connect = [], socket.socket.connect

    def noted(self, address):
        met.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noted)
        yield met


@pytest.fixture(scope="module")
def gate(model):
    return Gate(model)


@pytest.fixture(scope="module")
def address(gate, addresses):
    """Where the page is served, with the tiny model and a ranker."""
    from tilewright.playground.page import build
    from tilewright.playground.server import start

    names = {"run": "tiny", "ranker": "brightest"}
    playground = Playground(gate, brightest, names=names, most=64, looking=1)
    page = build(playground, settings(), [EXAMPLE])
    start(page, server_name="127.0.0.1")
    yield page.local_url
    page.close()


def brightest(model, captions, tokens):
    return model.decode(tokens).mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        sync_api.expect.set_options(timeout=WAIT)
        yield browser
        browser.close()


@pytest.fixture
def requests():
    """What the browser asked for."""
    return []


@pytest.fixture
def page(browser, address, requests):
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_label("Caption").wait_for()
    yield page
    page.close()


def press(page, name):
    """Presses a button as soon as that can be, and waits until the page asks for pictures."""
    with page.expect_request("**/queue/join*"):
        page.get_by_role("button", name=name, exact=True).click()


def draw(page, caption=EXAMPLE):
    page.get_by_label("Caption").fill(caption)
    press(page, "Draw")


def upload(page, file):
    """Gives the page a picture, and waits until the field has it, be it one or not."""
    page.locator("input[type=file]").set_input_files(file)
    page.locator(".image-frame img").first.wait_for(state="attached")


def finished(page, count):
    """Waits for the pictures that one can save."""
    sync_api.expect(page.locator("figure a img")).to_have_count(count)
    return page.locator("figure a img")


def sources(page):
    return [image.get_attribute("src") for image in page.locator("figure img").all()]


def says(page, words):
    sync_api.expect(page.get_by_text(words).first).to_be_visible(timeout=WAIT)


def test_a_caption_a_press_and_pictures_with_scores(page):
    draw(page)
    assert {image.get_attribute("alt") for image in finished(page, 3).all()} == {EXAMPLE}
    says(page, "3 pictures, in ")
    captions = page.locator("figcaption").all_inner_texts()
    scores = [float(text.split("score")[1]) for text in captions]
    assert scores == sorted(scores, reverse=True)
    drawn = page.locator("figure img").first.evaluate("image => image.naturalWidth")
    assert drawn == 16


def test_return_draws_as_well(page):
    page.get_by_label("Caption").fill(EXAMPLE)
    page.get_by_label("Caption").press("Enter")
    finished(page, 3)


def test_an_example_fills_the_field(page):
    page.get_by_role("button", name=EXAMPLE).or_(page.get_by_text(EXAMPLE)).first.click()
    sync_api.expect(page.get_by_label("Caption")).to_have_value(EXAMPLE)


def test_rows_appear_as_they_are_drawn(page, gate):
    gate.open.clear()
    try:
        draw(page)
        page.locator("progress").wait_for()
        half_drawn = "image => { const canvas = document.createElement('canvas');"
        half_drawn += "canvas.width = canvas.height = 16; const to = canvas.getContext('2d');"
        half_drawn += "to.drawImage(image, 0, 0); return [...to.getImageData(0, 4, 16, 12).data] }"
        page.wait_for_function("document.querySelectorAll('figure img').length == 3")
        levels = page.locator("figure img").first.evaluate(half_drawn)
        assert set(levels) == {128, 255}  # gray, and opaque
    finally:
        gate.open.set()
    finished(page, 3)


def test_stop_ends_a_drawing(page, gate):
    gate.open.clear()
    try:
        draw(page)
        page.locator("figure img").first.wait_for()
        page.get_by_role("button", name="Stop").click()
        sync_api.expect(page.locator(".view-bar.stopped")).to_be_visible()
    finally:
        gate.open.set()
    draw(page)
    finished(page, 3)
    page.get_by_role("button", name="Stop").click()  # there is nothing to stop
    says(page, "3 pictures, in ")


@pytest.mark.parametrize("name", ["Draw", "Draw others"])
def test_one_drawing_at_a_time(page, gate, name):
    buttons = [page.get_by_role("button", name=one, exact=True) for one in ("Draw", "Draw others")]
    gate.open.clear()
    try:
        page.get_by_label("Caption").fill(EXAMPLE)
        press(page, name)
        for button in buttons:
            sync_api.expect(button).to_be_disabled()
    finally:
        gate.open.set()
    for button in buttons:
        sync_api.expect(button).to_be_enabled()


def test_the_best_of_many(page):
    page.get_by_label("Best of").fill("20")
    draw(page)
    finished(page, 3)
    says(page, "3 pictures, the best of 20, in ")


def test_draw_others_takes_the_next_seed(page):
    draw(page)
    finished(page, 3)
    before = sources(page)
    press(page, "Draw others")
    sync_api.expect(page.get_by_label("Seed")).to_have_value("1")
    page.wait_for_function(
        "before => document.querySelectorAll('figure a img').length == 3"
        " && document.querySelector('figure a img').src != before",
        arg=before[0],
    )
    page.get_by_label("Seed").fill("0")
    draw(page)
    page.wait_for_function(
        "before => document.querySelector('figure a img')?.src == before", arg=before[0]
    )


def test_pictures_begin_with_an_uploaded_one(page, model, tmp_path):
    draw(page)
    finished(page, 3)
    free = sources(page)
    Image.radial_gradient("L").resize((40, 40)).save(tmp_path / "photo.png")
    page.get_by_text("Begin with a picture").click()
    upload(page, tmp_path / "photo.png")
    page.get_by_label("number input for Rows kept").fill("2")
    draw(page)
    page.wait_for_function(
        "free => document.querySelectorAll('figure a img').length == 3"
        " && document.querySelector('figure a img').src != free",
        arg=free[0],
    )
    how = {"image_prompt": open_picture(tmp_path / "photo.png"), "rows": 2, "ranker": brightest}
    shown = [Image.open(BytesIO(b64decode(source.split(",")[1]))) for source in sources(page)]
    for picture, wanted in zip(shown, model([EXAMPLE], 3, **how)[0], strict=True):
        assert picture.tobytes() == wanted.tobytes()
    with page.expect_download() as download:
        page.locator("figure a").first.click()
    with Image.open(download.value.path()) as saved:
        told = json.loads(saved.text["tilewright"])
    assert told["image_prompt"] == "photo.png"
    assert told["rows"] == 2


def test_the_grid_is_saved_with_its_settings(page):
    draw(page)
    finished(page, 3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Save all as one PNG").click()
    assert download.value.suggested_filename == "picture-number-7-seed0.png"
    with Image.open(download.value.path()) as saved:
        told = json.loads(saved.text["tilewright"])
        assert saved.size == (480, 24 + 104)
    assert told["run"] == "tiny"
    assert told["sampling"]["temperature"] == 1
    assert [picture["prompt"] for picture in told["pictures"]] == [EXAMPLE] * 3


def test_mistakes_are_told_on_the_page(page):
    draw(page, caption="   ")
    says(page, "type a caption: what should the pictures show?")
    page.get_by_label("Best of").fill("2")
    draw(page)
    says(page, "the best 3 of 2 cannot be had: raise best_of, or lower n")
    page.get_by_label("Best of").fill("65")
    draw(page)
    says(page, "65 pictures are too many: ask for up to 64")
    page.get_by_label("Best of").fill("0")
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Top k").fill("-1")
    draw(page)
    says(page, "top_k must be 1 or more, got -1")
    page.get_by_label("Top k").fill("0")
    draw(page)
    finished(page, 3)
    sync_api.expect(page.get_by_role("alert")).to_be_hidden()


def test_pictures_stay_when_the_next_request_is_a_mistake(page):
    draw(page)
    finished(page, 3)
    before = sources(page)
    draw(page, caption="")
    says(page, "type a caption")
    assert sources(page) == before


def test_rows_are_kept_in_their_range(page):
    page.get_by_text("Begin with a picture").click()
    rows = page.get_by_label("number input for Rows kept")
    rows.fill("9")
    draw(page)
    sync_api.expect(rows).to_have_value("3")
    rows.fill("0")
    draw(page)
    sync_api.expect(rows).to_have_value("1")
    finished(page, 3)


def test_a_file_that_is_no_picture_is_told_on_the_page(page, tmp_path):
    (tmp_path / "photo.png").write_text("no picture")
    page.get_by_text("Begin with a picture").click()
    upload(page, tmp_path / "photo.png")
    draw(page)
    says(page, "no picture can be read")


def test_nothing_is_fetched_from_the_internet(page, requests, addresses):
    draw(page)
    finished(page, 3)
    assert len(requests) > 5
    fetched = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert {urlparse(url).hostname for url in fetched} == {"127.0.0.1"}
    assert {address[0] for address in addresses if isinstance(address, tuple)} <= {"127.0.0.1"}
