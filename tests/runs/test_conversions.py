"""Converted checkpoints as models."""

import pytest
from safetensors.torch import load_file

from helpers import untrained
from tilewright import TextToImage, runs
from tilewright.configs import instantiate
from tilewright.conversion import Conversion
from tilewright.errors import UserError
from tilewright.prior import Sampling


def convert(stage, **parts):
    network = instantiate(untrained.NETWORKS[stage])
    return Conversion(stage, untrained.NETWORKS[stage], network.state_dict(), **parts)


def test_a_converted_prior_with_all_its_parts_generates(tmp_path):
    tokenizer = instantiate(untrained.TOKENIZER)
    tokenizer.train(untrained.CAPTIONS)
    tokenizer.save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text()
    conversion = convert(
        "prior",
        tokenizer=untrained.TOKENIZER,
        tokenizer_json=text,
        dvae=convert("dvae"),
        sampling={"top_k": 3, "guidance": 2.0},
        caption_dropout=0.1,
    )
    folder = tmp_path / "model"
    runs.save_conversion(folder, conversion, "some_family")
    weights = load_file(folder / runs.WEIGHTS)
    assert weights.keys() == conversion.weights.keys()
    config = runs.load_config(folder)
    assert config.choices == {"model": "some_family", "family": "some_family", "caption": "joint"}
    assert config.model.caption_dropout == 0.1
    assert config.model.image_dropout == 0
    assert runs.load_sampling(folder) == Sampling(top_k=3, guidance=2.0)
    model = TextToImage.from_pretrained(folder)
    assert model(["a red circle"])[0][0].size == (untrained.SIZE, untrained.SIZE)


@pytest.mark.parametrize("change", [{"grid": 2 * untrained.GRID}, {"num_tokens": 5}])
def test_parts_of_different_models_are_refused(change):
    network = {**untrained.NETWORKS["dvae"], **change}
    with pytest.raises(UserError, match="give the files of one model"):
        convert("prior", dvae=Conversion("dvae", network, {}))


def test_a_converted_dvae_has_no_parts_of_a_prior(tmp_path):
    runs.save_conversion(tmp_path / "model", convert("dvae"), "some_family")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        runs.MODEL_CONFIG,
        runs.WEIGHTS,
    }
    assert "caption_dropout" not in runs.load_config(tmp_path / "model").model
    assert runs.load_network(tmp_path / "model").num_tokens == untrained.CODES
