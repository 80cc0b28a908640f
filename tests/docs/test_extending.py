"""The examples of docs/extending.md, as they stand there."""

import json
import sys

import numpy as np
import pytest
import torch

from helpers import pages, short
from helpers.command import command
from tilewright import TextToImage, runs

pytestmark = pytest.mark.slow

BLOCKS = pages.blocks(pages.ROOT / "docs" / "extending.md")
FILES = [block for block in BLOCKS if block.file]
COMMANDS = [block for block in BLOCKS if not block.language and block.commands[0][0] == "python"]


@pytest.fixture
def home(home, monkeypatch):
    """With the page's files, and with the two variables that it names."""
    for block in FILES:
        path = home / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    numbers = np.random.default_rng(0)
    digits = numbers.integers(256, size=(40, 28, 28), dtype=np.uint8)
    np.savez(home / "digits.npz", images=digits, labels=numbers.integers(10, size=40))
    monkeypatch.setenv("TILEWRIGHT_TRUST", "mine")
    monkeypatch.syspath_prepend(home)  # as PYTHONPATH=. does
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return home


def run(block):
    for words in block.commands:
        assert short.run(words) is None, " ".join(words)


def latest(home, stage):
    return home / "logs" / stage / "latest"


def test_the_page_lists_the_files_that_it_shows():
    assert len(COMMANDS) == len(FILES) / 2 == 4
    (listed,) = (block.text for block in BLOCKS if block.language == "text")
    named = {word for word in listed.split() if word.startswith("mine/")}
    assert named == {block.file for block in FILES}


def test_a_data_source(home):
    run(COMMANDS[0])
    data = runs.load_data(runs.load_config(latest(home, "prior")).data)
    (image, caption), *_ = data.examples("train", 36)
    assert image.shape == (3, 32, 32)
    assert caption.startswith("a handwritten ")
    assert command("train", ["--config-dir", "mine/conf", "stage=dvae", "data=arrays"]).endswith(
        "set it on the command line, data.source.path=…"
    )


def test_an_image_tokenizer(home):
    run(COMMANDS[1])
    dvae = runs.load_network(latest(home, "dvae"))
    assert type(dvae).__name__ == "PatchBits"
    images = torch.rand(2, 3, 32, 32)
    tokens = dvae.encode(images)
    assert tokens.shape == (2, 8, 8)
    assert 0 <= tokens.min() < tokens.max() < 256
    assert torch.allclose(dvae.decode(tokens), dvae(images), atol=1e-5)
    assert type(TextToImage.from_run(latest(home, "prior")).image_tokenizer) is type(dvae)


def test_a_prior(home):
    run(COMMANDS[2])
    model = TextToImage.from_run(latest(home, "prior"))
    assert type(model.prior).__name__ == "ParallelTransformer"
    assert {type(block).__name__ for block in model.prior.blocks} == {"ParallelBlock"}
    with torch.no_grad():  # as they are drawn, captions hardly matter
        for parameter in model.prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    text = model.tokenizer.encode(["a large red circle"])
    image = torch.randint(model.prior.stream.image_vocab, (1, 8, 8))
    _, whole = model.prior(text, image)
    logits, caches = model.prior.prefill(text, 1)
    steps = [logits]
    for number in range(63):
        steps.append(model.prior.step(image.flatten()[number, None], number, caches))
    assert torch.allclose(torch.stack(steps, dim=1), whole, atol=1e-4)


def test_a_metric(home):
    run(COMMANDS[3])
    path = latest(home, "prior") / "eval" / "variety" / "results.json"
    (result,) = json.loads(path.read_text())
    assert (result["metric"], result["temperature"], result["n"]) == ("variety", 1, 4)
    assert 0 < result["value"] < 1
    assert (path.parent / "samples.png").is_file()
    assert "metric=variety" in command("eval", ["--config-dir", "mine/conf"])


def test_what_is_not_trusted_is_refused_where_it_is_loaded(home, monkeypatch):
    monkeypatch.delenv("TILEWRIGHT_TRUST")
    train, evaluate, _ = COMMANDS[1].commands
    assert short.run(train) is None
    assert "TILEWRIGHT_TRUST=mine" in short.run(evaluate)
