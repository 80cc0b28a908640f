"""Tests of the conversion of OpenAI's released dVAE."""

import subprocess
import sys
from pathlib import Path

import dall_e
import pytest
import torch

from tilewright import runs
from tilewright.dvae.pretrained import openai
from tilewright.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    sizes = {"n_hid": 64, "vocab_size": 512, "n_blk_per_group": 1}
    return dall_e.Encoder(**sizes), dall_e.Decoder(**sizes, n_init=16)


@pytest.fixture(scope="module")
def pickles(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    for name, module in zip(("encoder", "decoder"), modules, strict=True):
        torch.save(module, folder / f"{name}.pkl")
    return folder


def convert(folder, out, *arguments):
    return subprocess.run(
        [
            *(sys.executable, "src/convert.py", "family=openai_dvae", f"out={out}"),
            *(f"family.encoder={folder}/encoder.pkl", f"family.decoder={folder}/decoder.pkl"),
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_convert_writes_a_frozen_dvae_that_loads(modules, pickles, tmp_path):
    outcome = convert(pickles, tmp_path / "out", "family.image_size=64", "trust=true")
    assert outcome.returncode == 0, outcome.stderr
    run = runs.find(tmp_path, "dvae", str(tmp_path / "out"))
    network = runs.load_network(run)
    assert (network.image_size, network.grid, network.num_tokens) == (64, 8, 512)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = modules[0](dall_e.map_pixels(images)).argmax(dim=1)
    assert torch.equal(network.encode(images), expected)


@pytest.mark.parametrize("size", ["large", 0, 256.5])
def test_an_impossible_image_size_is_refused(size):
    with pytest.raises(UserError, match=rf"^family\.image_size={size} is not possible"):
        openai.OpenAI("encoder.pkl", "decoder.pkl", image_size=size)


def test_a_pickle_is_not_loaded_without_trust(pickles, tmp_path):
    outcome = convert(pickles, tmp_path / "out")
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: ")
    assert "trust=true" in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_files_with_other_contents_are_refused(pickles, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        openai.load_pickled_module(tmp_path / "nothing.pkl", "Encoder")
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(UserError, match="is not a pickled module") as caught:
        openai.load_pickled_module(tmp_path / "text.pkl", "Encoder")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="contains Decoder instead of Encoder"):
        openai.load_pickled_module(pickles / "decoder.pkl", "Encoder")


def test_modules_that_do_not_belong_together_are_refused(modules):
    other = dall_e.Decoder(n_hid=64, vocab_size=1024, n_blk_per_group=1, n_init=16)
    with pytest.raises(UserError, match="do not belong to the same dVAE"):
        openai.convert_modules(modules[0], other, 64)
