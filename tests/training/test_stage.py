"""Losses of the stages are means over the rows of an update."""

import pytest
import torch

from helpers import tiny
from helpers.broken_images import BrokenImages
from tilewright.ranker.networks import contrastive_loss


def trained_weights(stage, folder, **arguments):
    source = BrokenImages([True] * 4)
    tiny.train(
        stage, folder, steps=6, noise=False, source=source, val_check_interval=20, **arguments
    )
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["current_model_state"]


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_an_update_of_two_batches_with_skipped_rows_equals_one_of_a_large_batch(stage, tmp_path):
    expected = trained_weights(stage, tmp_path / "large", batch_size=8)
    arguments = {"batch_size": 4, "accumulate_grad_batches": 2}
    actual = trained_weights(stage, tmp_path / "small", **arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "weight"), [([2, 1], 4 / 3), ([2, 0], 2.0), ([2], 1.0)])
def test_a_ranker_weighs_batches_by_their_rows(rows, weight, tmp_path):
    module, _, _ = tiny.make("ranker", tmp_path, noise=False)
    module.log = lambda *_, **__: None
    batch = {"text": torch.tensor([[1, 2], [3, -1]]), "image": torch.rand(2, 3, 16, 16)}
    network = module.network
    text, images = network.encode_text(batch["text"]), network.encode_images(batch["image"])
    expected = weight * contrastive_loss(text, images, network.scale)
    actual = module.training_step(batch | {"rows": 2, "update_rows": rows}, 0)
    torch.testing.assert_close(actual, expected)


def test_padding_does_not_count(tmp_path):
    module, _, _ = tiny.make("dvae", tmp_path)
    padding = {"image": torch.rand(1, 3, 16, 16), "rows": 0}
    assert module.row_weight(padding) == module.row_weight(padding | {"update_rows": [2, 0]}) == 0
