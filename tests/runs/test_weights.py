"""Loading of weights that were saved by earlier versions."""

import pytest
import torch

from helpers import untrained
from tilewright import runs
from tilewright.errors import UserError
from tilewright.training import AtomicCheckpointIO

EMBEDDING = "network.image_embedding.weight"


@pytest.fixture
def prior(tmp_path):
    return untrained.all_stages(tmp_path) / "prior" / "untrained"


def drop_rows(run, count):
    """Removes the last rows of the image embedding from a run's checkpoint."""
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = runs.load_checkpoint(file)
    checkpoint["state_dict"][EMBEDDING] = checkpoint["state_dict"][EMBEDDING][:-count].clone()
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)


@torch.no_grad()
def test_a_prior_that_was_saved_without_the_hidden_token_computes_the_same(prior, tmp_path):
    network = runs.load_network(prior)
    text = torch.full((2, network.stream.text_length), -1)
    image = torch.randint(untrained.CODES, (2, untrained.GRID, untrained.GRID))
    drop_rows(prior, 1)
    runs.save_model(tmp_path / "model", prior)
    for folder in (prior, tmp_path / "model"):
        older = runs.load_network(folder)
        assert older.image_embedding.weight[-1].std().item() == pytest.approx(0.02, rel=0.7)
        for expected, actual in zip(network(text, image), older(text, image), strict=True):
            assert torch.equal(actual, expected)


def test_a_prior_with_fewer_embeddings_is_refused(prior):
    drop_rows(prior, 2)
    with pytest.raises(UserError, match=r"do not fit .* size mismatch for image_embedding"):
        runs.load_network(prior)
