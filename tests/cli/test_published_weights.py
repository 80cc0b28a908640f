"""Tiny stand-ins of published weights through all commands, from convert to export."""

import pytest
import torch
from PIL import Image

from helpers import pretrained, public_priors, untrained
from helpers.command import results, run
from tilewright import TextToImage, runs
from tilewright.data.images import to_tensor

pytest.importorskip("peft")
pytest.importorskip("taming", reason="taming-transformers-rom1504 is the reference")

from parity import vq_references as references

pytestmark = pytest.mark.slow

SIZE, PROMPT = 64, "a red circle"
SIDE = SIZE // references.FACTOR  # of the grid
SHORT = [
    "trainer=cpu",
    "compile=false",
    "data.batch_size=4",
    "trainer.val_check_interval=10",
    "trainer.limit_val_batches=1",
    "callbacks.samples.count=1",
    "callbacks.samples.candidates=1",
    "~callbacks.frechet",
]


@pytest.fixture
def data(tmp_path):
    """Settings of a folder of images."""
    folder = untrained.write_images(tmp_path / "images", 20)
    return ["data=folder", f"data.source.path={folder}", "data.source.validation_fraction=0.3"]


def caches(home):
    """Files of image tokens, beside which are the features of captions."""
    files = (home.data / "image_tokens").rglob("*.npy")
    return {file for file in files if "captions" not in file.parts}


def check_sharing(home, base, data, tmp_path):
    """Fine-tunes a model with adapters. Checks that both exports generate the images of the run."""
    encoded = caches(home)
    assert encoded
    adapted = home.logs / "prior" / "adapted"
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    lora = ["lora=default", "lora.rank=2", "model.learning_rate.steps=1"]
    rate = ["model.learning_rate.then.start=0.05", "trainer.max_steps=10"]
    words = ["experiment=finetune", f"init={base}", "run_name=adapted", *lora, *rate]
    run(home, "train", *words, *SHORT, *data)
    assert caches(home) == encoded  # training encodes nothing again
    shown = tmp_path / "shown"
    run(
        home, "generate", f"run={adapted}", f"prompt={PROMPT}", "n=2", f"out={shown}",
        "compile=false",
    )  # fmt: skip
    for out, words in ((merged, []), (adapter, ["adapter=true"])):
        run(home, "export", f"run={adapted}", f"prompt={PROMPT}", "n=1", f"out={out}", *words)
    expected = generate(merged)
    assert torch.equal(generate(adapter), expected)
    assert not torch.equal(generate(base), expected)
    with Image.open(shown / "000-001.png") as image:
        pixels = to_tensor(image)
    torch.testing.assert_close(pixels, expected[0, 1], rtol=0, atol=0.6 / 255)


def generate(path):
    return TextToImage.from_pretrained(path).generate([PROMPT], n=2).images


def test_image_tokenizer_of_taming(home, data, tmp_path):
    references.randomize(references.TamingVQGAN(SIZE, [SIDE])).write(tmp_path)
    dvae, checkpoint = tmp_path / "vqgan", tmp_path / "last.ckpt"
    family = ["family=taming", f"family.checkpoint={checkpoint}", f"family.image_size={SIZE}"]
    run(home, "convert", *family, f"out={dvae}", "trust=true")
    run(home, "eval", "metric=reconstruction", f"run={dvae}", "images=4", *data)
    assert results(dvae, "reconstruction")
    run(home, "encode", f"dvae={dvae}", *data)
    network = ["model.network.dim=16", "model.network.depth=1", "model.network.heads=2"]
    run(
        home, "train", "stage=prior", f"dvae={dvae}", "run_name=base", *network, *SHORT, *data,
        "trainer.max_steps=2", "tokenizer.vocab_size=280",
    )  # fmt: skip
    assert runs.load_config(home.logs / "prior" / "base").image_tokens == {
        "grid": SIDE,
        "vocab": references.CODES,
    }
    check_sharing(home, home.logs / "prior" / "base", data, tmp_path)


def test_prior_of_llamagen(home, data, tmp_path):
    sizes = {"image_vocab": references.CODES, "grid": SIDE, "text_length": 12, "features": 16}
    encoder = tmp_path / "t5"
    encoder.mkdir()
    pretrained.save_t5(encoder, dim=16)
    checkpoint, vq, base = (tmp_path / name for name in ("t2i.pt", "vq.pt", "llamagen"))
    public_priors.write_llamagen(checkpoint, {"dim": 64, "depth": 1, "heads": 1, **sizes})
    references.randomize(references.LlamaGenVQ(SIZE)).write(vq)
    run(
        home, "convert", "family=llamagen", f"family.checkpoint={checkpoint}",
        f"family.dvae.checkpoint={vq}", f"family.dvae.image_size={SIZE}",
        f"family.text_encoder={encoder}", f"out={base}", "trust=true",
    )  # fmt: skip
    run(home, "encode", f"dvae={base / runs.DVAE}", *data)
    run(home, "eval", "metric=kid", f"run={base}", "images=4", *data)
    assert results(base, "kid")
    check_sharing(home, base, data, tmp_path)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "The prior was converted from a checkpoint of the family `llamagen`" in card
