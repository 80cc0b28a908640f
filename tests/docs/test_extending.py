"""Runs the examples of docs/extending.md and the classes of the README."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import pages, short
from helpers.command import command
from tilewright import TextToImage, runs
from tilewright.data import CaptionedImages, CenterCrop

pytestmark = pytest.mark.slow

BLOCKS = pages.blocks(pages.ROOT / "docs" / "extending.md")
FILES = [block for block in BLOCKS if block.file]
EXAMPLES = [block for block in BLOCKS if not block.language and block.commands[0][0] == "python"]
SOURCE, FILTER, TOKENIZER, PRIOR, RANKER, METRIC = EXAMPLES


@pytest.fixture
def home(home, monkeypatch):
    """Example project with the page's files and environment variables."""
    for block in FILES:
        path = home / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    rng = np.random.default_rng(0)
    digits = rng.integers(256, size=(40, 28, 28), dtype=np.uint8)
    np.savez(home / "digits.npz", images=digits, labels=rng.integers(10, size=40))
    monkeypatch.setenv("TILEWRIGHT_TRUST", "mine")
    monkeypatch.syspath_prepend(home)  # as PYTHONPATH=. does
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return home


def run(block):
    for words in block.commands:
        assert short.run(words) is None, " ".join(words)


def latest(home, stage):
    return runs.follow_latest(home / "logs" / stage / "latest")


def test_every_shown_file_is_listed():
    assert len(FILES) == 2 * len(EXAMPLES)
    (listing,) = (block.text for block in BLOCKS if block.language == "text")
    listed = {word for word in listing.split() if word.startswith("mine/")}
    assert listed == {block.file for block in FILES}


def test_data_source(home):
    run(SOURCE)
    data = runs.load_data(runs.load_config(latest(home, "prior")).data)
    (image, caption), *_ = data.examples("train", 36)
    assert image.shape == (3, 32, 32)
    assert caption.startswith("a handwritten ")
    assert command("train", ["--config-dir", "mine/conf", "stage=dvae", "data=arrays"]).endswith(
        "set it on the command line, data.source.path=…"
    )


def test_filter(home):
    run(FILTER)
    (no_digits,) = runs.load_data(runs.load_config(latest(home, "dvae")).data).filters
    assert no_digits.keeps_caption("a red circle")
    assert not no_digits.keeps_caption("2 red circles")


def test_image_tokenizer(home):
    run(TOKENIZER)
    dvae = runs.load_network(latest(home, "dvae"))
    assert type(dvae).__name__ == "PatchBits"
    images = torch.rand(2, 3, 32, 32)
    tokens = dvae.encode(images)
    assert tokens.shape == (2, 8, 8)
    assert 0 <= tokens.min() < tokens.max() < 256
    assert torch.allclose(dvae.decode(tokens), dvae(images), atol=1e-5)
    assert type(TextToImage.from_run(latest(home, "prior")).image_tokenizer) is type(dvae)


def test_prior(home):
    run(PRIOR)
    model = TextToImage.from_run(latest(home, "prior"))
    assert type(model.prior).__name__ == "ParallelTransformer"
    assert {type(block).__name__ for block in model.prior.blocks} == {"ParallelBlock"}
    with torch.no_grad():  # with the initial weights, captions hardly matter
        for parameter in model.prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    text = model.tokenizer.encode(["a large red circle"])
    image = torch.randint(model.prior.stream.image_vocab, (1, 8, 8))
    _, expected = model.prior(text, image)
    logits, caches = model.prior.prefill(text, 1)
    steps = [logits]
    for index in range(63):
        steps.append(model.prior.step(image.flatten()[index, None], index, caches))
    assert torch.allclose(torch.stack(steps, dim=1), expected, atol=1e-4)


def test_ranker(home):
    run(RANKER)
    samples = sorted((latest(home, "prior") / "samples").glob("000-*.png"))
    first, second = (np.asarray(Image.open(path)).std() for path in samples)
    assert first >= second


def test_metric(home):
    run(METRIC)
    path = latest(home, "prior") / "eval" / "variety" / "results.json"
    _, result = json.loads(path.read_text())  # one record for each temperature
    assert (result["metric"], result["temperature"], result["n"]) == ("variety", 1, 4)
    assert 0 < result["value"] < 1
    assert (path.parent / "samples.png").is_file()
    assert "metric=variety" in command("eval", ["--config-dir", "mine/conf"])


def test_loading_an_untrusted_class_is_refused(home, monkeypatch):
    monkeypatch.delenv("TILEWRIGHT_TRUST")
    train, evaluate, _ = TOKENIZER.commands
    assert short.run(train) is None
    assert "TILEWRIGHT_TRUST=mine" in short.run(evaluate)


def test_classes_of_the_readme(home):
    names = {}
    for block in pages.blocks(pages.ROOT / "README.md"):
        if block.language == "python":
            exec(block.text, names)
    (home / "pairs.csv").write_text("image,caption\n" + 10 * "top.png,a red circle\n")
    splits = names["CsvSource"]("pairs.csv").load()
    assert (len(splits["train"]), len(splits["validation"])) == (9, 1)
    assert splits["train"][0]["caption"] == "a red circle"
    image_tokenizer = names["GrayTiles"]()
    images = torch.rand(2, 3, 64, 64)
    tokens = image_tokenizer.encode(images)
    assert tokens.shape == (2, 16, 16)
    assert image_tokenizer.decode(tokens).shape == images.shape
    data = CaptionedImages(
        names["CsvSource"]("pairs.csv"),
        image_size=64,
        batch_size=2,
        train_transform=CenterCrop(64),
        eval_transform=CenterCrop(64),
        image_tokenizer=image_tokenizer,
        cache=home / "image_tokens",
    )
    batch = next(iter(data.train_dataloader()))
    image, _ = data.examples("train", 1)[0]
    assert torch.equal(batch["image_tokens"], image_tokenizer.encode(image[None]).expand(2, -1, -1))
    prior = latest(home, "prior")
    data = runs.load_data(runs.load_config(prior).data)
    (result,) = names["Brightness"]()(prior, data, seed=0, device="cpu", folder=home)
    assert 0 < result.value < 1
