"""The page in a headless Chromium, driven by Playwright."""

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

from helpers.gray_model import BrightnessRanker
from tilewright.cli import app
from tilewright.playground.session import Playground
from tilewright.viz.images import open_image

pytest.importorskip("gradio", reason="the page needs the extra demo")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser needs the extra dev")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
EXAMPLE = "picture number 7"
TIMEOUT = 120_000  # milliseconds; generous, for a busy machine


class PausableModel:
    """Model that waits after each row while `running` is not set."""

    def __init__(self, model):
        self.model = model
        self.running = threading.Event()
        self.running.set()

    def __getattr__(self, name):
        return getattr(self.model, name)

    def sample_tokens_by_row(self, *args, **kwargs):
        for tokens in self.model.sample_tokens_by_row(*args, **kwargs):
            yield tokens
            assert self.running.wait(TIMEOUT / 1000)


@pytest.fixture(scope="module")
def connections():
    """Addresses to which this process connects while it serves the page."""
    addresses, connect = [], socket.socket.connect

    def recorded(self, address):
        addresses.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", recorded)
        yield addresses


@pytest.fixture(scope="module")
def pausable(model):
    return PausableModel(model)


@pytest.fixture(scope="module")
def url(pausable, connections):
    """Address of the page, served with the tiny model and a ranker."""
    from tilewright.playground.page import build_page
    from tilewright.playground.server import launch

    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        settings = compose("demo", ["n=3", "sampling=paper"])
    playground = Playground(
        pausable,
        BrightnessRanker(),
        run_name="tiny",
        ranker_name="brightness",
        max_candidates=64,
        preview_fraction=1,
    )
    page = build_page(playground, settings, [EXAMPLE])
    launch(page, server_name="127.0.0.1")
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        sync_api.expect.set_options(timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture
def requested_urls():
    """URLs that the browser requests."""
    return []


@pytest.fixture
def page(browser, url, requested_urls):
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    page.on("request", lambda request: requested_urls.append(request.url))
    page.goto(url)
    page.get_by_label("Caption").wait_for()
    yield page
    page.close()


@pytest.fixture
def paused(pausable):
    """Pauses the model after its first row; set it to continue."""
    pausable.running.clear()
    yield pausable.running
    pausable.running.set()


def press(page, name):
    """Presses a button once it is enabled, and waits until the page sends the request."""
    with page.expect_request("**/queue/join*"):
        page.get_by_role("button", name=name, exact=True).click()


def generate(page, caption=EXAMPLE):
    page.get_by_label("Caption").fill(caption)
    press(page, "Generate")


def open_fields(page, name, label):
    """Opens a group of fields, of which `label` is one, and waits until its fields keep a value.

    Gradio adds the fields when the group is opened, and sets their values one frame later.
    """
    page.get_by_text(name, exact=True).click()
    page.get_by_label(label).wait_for()
    for _ in range(2):
        page.evaluate("() => new Promise(done => requestAnimationFrame(done))")


def upload(page, file):
    """Uploads a file as the image prompt and waits until the field shows it."""
    open_fields(page, "Start from an image", "number input for Rows kept")
    page.locator("input[type=file]").set_input_files(file)
    page.locator(".image-frame img").first.wait_for(state="attached")


def finished_images(page, count):
    """Waits for `count` images with links."""
    sync_api.expect(page.locator("figure a img")).to_have_count(count)
    return page.locator("figure a img")


def image_sources(page):
    return [image.get_attribute("src") for image in page.locator("figure img").all()]


def wait_for_other_images(page, old_source):
    """Waits for three finished images, of which the first one differs from `old_source`."""
    page.wait_for_function(
        "old => document.querySelectorAll('figure a img').length == 3"
        " && document.querySelector('figure a img').src != old",
        arg=old_source,
    )


def expect_text(page, text):
    sync_api.expect(page.get_by_text(text).first).to_be_visible(timeout=TIMEOUT)


def saved_metadata(page, link):
    """Clicks a link and returns the download's file name and its PNG metadata."""
    with page.expect_download() as download:
        link.click()
    with Image.open(download.value.path()) as saved:
        return download.value.suggested_filename, json.loads(saved.text["tilewright"])


def test_generate_shows_images_with_scores_best_first(page):
    generate(page)
    images = finished_images(page, 3)
    assert {image.get_attribute("alt") for image in images.all()} == {EXAMPLE}
    expect_text(page, "3 images, in ")
    captions = page.locator("figcaption").all_inner_texts()
    scores = [float(text.split("score")[1]) for text in captions]
    assert scores == sorted(scores, reverse=True)
    assert images.first.evaluate("image => image.naturalWidth") == 16


def test_the_enter_key_generates(page):
    page.get_by_label("Caption").fill(EXAMPLE)
    page.get_by_label("Caption").press("Enter")
    finished_images(page, 3)


def test_an_example_fills_the_caption(page):
    page.get_by_role("button", name=EXAMPLE).or_(page.get_by_text(EXAMPLE)).first.click()
    sync_api.expect(page.get_by_label("Caption")).to_have_value(EXAMPLE)


def test_rows_appear_as_they_are_sampled(page, paused):
    generate(page)
    page.locator("progress").wait_for()
    page.wait_for_function("document.querySelectorAll('figure img').length == 3")
    lower_rows = "image => { const canvas = document.createElement('canvas');"
    lower_rows += "canvas.width = canvas.height = 16; const context = canvas.getContext('2d');"
    lower_rows += "context.drawImage(image, 0, 0);"
    lower_rows += "return [...context.getImageData(0, 4, 16, 12).data] }"
    levels = page.locator("figure img").first.evaluate(lower_rows)
    assert set(levels) == {128, 255}  # gray, and opaque
    paused.set()
    finished_images(page, 3)


def test_stop_cancels_a_generation(page, paused):
    generate(page)
    page.locator("figure img").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    sync_api.expect(page.locator(".tw-status.stopped")).to_be_visible()
    paused.set()
    generate(page)
    finished_images(page, 3)


def test_stop_keeps_finished_images(page):
    generate(page)
    finished_images(page, 3)
    page.get_by_role("button", name="Stop").click()
    expect_text(page, "3 images, in ")


@pytest.mark.parametrize("name", ["Generate", "Next seed"])
def test_both_buttons_are_disabled_during_a_generation(page, paused, name):
    buttons = [
        page.get_by_role("button", name=label, exact=True) for label in ("Generate", "Next seed")
    ]
    page.get_by_label("Caption").fill(EXAMPLE)
    press(page, name)
    for button in buttons:
        sync_api.expect(button).to_be_disabled()
    paused.set()
    for button in buttons:
        sync_api.expect(button).to_be_enabled()


def test_best_of_samples_more_candidates(page):
    page.get_by_label("Best of").fill("20")
    generate(page)
    finished_images(page, 3)
    expect_text(page, "3 images, the best of 20, in ")


def test_next_seed_changes_the_images_and_the_old_seed_restores_them(page):
    generate(page)
    finished_images(page, 3)
    before = image_sources(page)
    press(page, "Next seed")
    sync_api.expect(page.get_by_label("Seed")).to_have_value("1")
    wait_for_other_images(page, before[0])
    page.get_by_label("Seed").fill("0")
    generate(page)
    page.wait_for_function(
        "before => document.querySelector('figure a img')?.src == before", arg=before[0]
    )


def test_images_start_from_an_uploaded_image(page, model, tmp_path):
    generate(page)
    finished_images(page, 3)
    free = image_sources(page)
    Image.radial_gradient("L").resize((40, 40)).save(tmp_path / "photo.png")
    upload(page, tmp_path / "photo.png")
    page.get_by_label("number input for Rows kept").fill("2")
    generate(page)
    wait_for_other_images(page, free[0])
    prompt = open_image(tmp_path / "photo.png")
    expected = model([EXAMPLE], 3, image_prompt=prompt, rows=2, ranker=BrightnessRanker())[0]
    shown = [Image.open(BytesIO(b64decode(source.split(",")[1]))) for source in image_sources(page)]
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in expected]
    _, metadata = saved_metadata(page, page.locator("figure a").first)
    assert (metadata["image_prompt"], metadata["rows"]) == ("photo.png", 2)


def test_the_grid_is_saved_with_its_settings(page):
    generate(page)
    finished_images(page, 3)
    link = page.get_by_role("link", name="Save all as one PNG")
    name, metadata = saved_metadata(page, link)
    assert name == "picture-number-7-seed0.png"
    assert metadata["run"] == "tiny"
    assert metadata["sampling"]["temperature"] == 1
    assert [picture["prompt"] for picture in metadata["pictures"]] == [EXAMPLE] * 3


def test_errors_are_shown_until_the_next_success(page):
    generate(page, caption="   ")
    expect_text(page, "the caption is empty: type what the images should show")
    page.get_by_label("Best of").fill("2")
    generate(page)
    expect_text(page, "best_of=2 is smaller than n=3: raise best_of or lower n")
    page.get_by_label("Best of").fill("65")
    generate(page)
    expect_text(page, "65 images are too many: ask for at most 64")
    page.get_by_label("Best of").fill("0")
    open_fields(page, "Sampling", "Top k")
    page.get_by_label("Top k").fill("-1")
    generate(page)
    expect_text(page, "top_k=")
    page.get_by_label("Top k").fill("0")
    generate(page)
    finished_images(page, 3)
    sync_api.expect(page.get_by_role("alert")).to_be_hidden()


def test_images_stay_after_an_invalid_request(page):
    generate(page)
    finished_images(page, 3)
    before = image_sources(page)
    generate(page, caption="")
    expect_text(page, "the caption is empty")
    assert image_sources(page) == before


def test_the_number_of_rows_is_clamped_to_the_grid(page):
    open_fields(page, "Start from an image", "number input for Rows kept")
    rows = page.get_by_label("number input for Rows kept")
    rows.fill("9")
    generate(page)
    sync_api.expect(rows).to_have_value("3")
    rows.fill("0")
    generate(page)
    sync_api.expect(rows).to_have_value("1")
    finished_images(page, 3)


def test_an_unreadable_upload_is_an_error(page, tmp_path):
    (tmp_path / "photo.png").write_text("no image")
    upload(page, tmp_path / "photo.png")
    generate(page)
    expect_text(page, "cannot read the image")


def test_no_request_leaves_this_machine(page, requested_urls, connections):
    generate(page)
    finished_images(page, 3)
    assert len(requested_urls) > 5
    remote = [url for url in requested_urls if not url.startswith(("data:", "blob:"))]
    assert {urlparse(url).hostname for url in remote} == {"127.0.0.1"}
    assert {address[0] for address in connections if isinstance(address, tuple)} <= {"127.0.0.1"}
