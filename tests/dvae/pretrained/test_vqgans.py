"""Impossible settings and files of the families of VQGANs. tests/parity has their conversions."""

import pytest
import torch

from tilewright.dvae.pretrained import Chameleon, Diffusers, Janus, LlamaGen, Taming
from tilewright.errors import UserError


@pytest.mark.parametrize("family", [Taming, LlamaGen, Diffusers, Janus, Chameleon])
@pytest.mark.parametrize("size", [0, -8, 2.5, "large"])
def test_an_impossible_image_size_is_named(family, size):
    with pytest.raises(UserError, match=r"family\.image_size="):
        family("path", image_size=size)


@pytest.mark.parametrize("family", [Taming, LlamaGen])
def test_weights_of_another_network_are_refused_in_one_line(family, tmp_path):
    path = tmp_path / "weights.pt"
    table = {"quantize.embedding.weight": torch.zeros(4, 2)}
    stem = {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}
    projection = {"post_quant_conv.weight": torch.zeros(8, 2, 1, 1)}
    for weights in (
        {"layer.weight": torch.zeros(2)},
        {"quantize.embedding.weight": torch.zeros(4)},
        table,
        {**table, **stem},
        {**table, **stem, **projection},
        {**table, **stem, **projection, "encoder.down.0.block.0.conv1.weight": torch.zeros(3)},
    ):
        torch.save(weights, path)
        with pytest.raises(UserError, match=r"weights\.pt has ") as caught:
            family(str(path)).convert(trust=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [Diffusers, Janus, Chameleon])
def test_a_folder_without_a_configuration_is_refused(family, tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        family(str(tmp_path)).convert(trust=False)
