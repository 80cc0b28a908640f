"""Commands on an image tokenizer that diffusers saved."""

import pytest
import torch

from helpers.command import SMALL, fail, results, run, step
from tilewright import TextToImage, runs

diffusers = pytest.importorskip("diffusers")

TOKENS = 70_000  # more than uint16 holds
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@pytest.fixture
def folder(tmp_path):
    """Folder of a `VQModel` whose codebook is large."""
    torch.manual_seed(0)
    network = diffusers.VQModel(
        block_out_channels=(8,) * 6,
        down_block_types=(DOWN,) * 6,
        up_block_types=(UP,) * 6,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=TOKENS,
    )
    torch.nn.init.normal_(network.quantize.embedding.weight)
    network.save_pretrained(tmp_path / "vqvae")
    return tmp_path / "vqvae"


@pytest.mark.slow
def test_a_prior_is_trained_on_a_public_tokenizer_of_many_tokens(home, folder):
    few = ["data.source.train=16", "data.source.validation=8", "data.source.zeroshot=8"]
    data = ["data=shapes", "data.image_size=256", *few]
    dvae = f"dvae={folder}"
    run(home, "encode", dvae, *data, "splits=[train]")
    caches = set(home.data.rglob("*.npy"))
    assert caches
    small = [word for word in SMALL if not word.startswith("data.source")]
    network = ["model.network.dim=16", "model.network.depth=1", "model.network.heads=2"]
    run(
        home, "train", "stage=prior", "run_name=first", dvae, *data, *small, *network,
        "trainer.max_steps=2", "trainer.val_check_interval=2", "~callbacks.frechet",
        "callbacks.samples.count=1", "callbacks.samples.candidates=1",
    )  # fmt: skip
    config = runs.load_config(home.prior)
    assert config.model.network.stream.image_vocab == TOKENS
    assert caches < set(home.data.rglob("*.npy"))  # and those of the validation split
    model = TextToImage.from_run(home.prior)
    assert model(["a red circle"])[0][0].size == (256, 256)
    run(home, "eval", "metric=reconstruction", f"run={folder}", *data, "images=4")
    assert results(folder, "reconstruction")


def test_another_image_size_is_refused_with_the_right_one(home, folder):
    line = fail(home, "train", "stage=prior", f"dvae={folder}", *SMALL, "data.image_size=64")
    assert "data.image_size=64 does not match the dVAE, which encodes images of 256x256" in line


@pytest.mark.slow
def test_a_public_tokenizer_is_trained_on(home, folder):
    small = [word for word in SMALL if not word.startswith("data.source")]
    few = ["data.source.train=16", "data.source.validation=8", "data.source.zeroshot=8"]
    settings = ["trainer.max_steps=2", "trainer.val_check_interval=2", "~callbacks.frechet"]
    loss = ["loss=adversarial", "loss.adversarial.start=0"]
    words = ["stage=dvae", "model=dvae_vqgan", "run_name=first", f"init={folder}"]
    run(home, "train", *words, *loss, *few, *small, *settings)
    before, after = runs.load_weights(folder), runs.load_weights(home.dvae)
    assert before.keys() == after.keys()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert {"encoder.stem.weight", "decoder.head.weight", "codebook.vectors"} <= changed
    run(home, "train", "stage=dvae", "resume=true", "trainer.max_steps=3")
    assert step(home.dvae / "checkpoints" / "last.ckpt") == 3
