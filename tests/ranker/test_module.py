"""Training of the ranker."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.ranker import DualEncoder
from tilewright.ranker.module import RankerModule
from tilewright.training.schedules import Constant

COLORS = torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)


def test_training_matches_captions_with_their_images():
    torch.manual_seed(0)
    network = DualEncoder(text_vocab=3, text_length=2, image_size=16, grid=4, dim=16, heads=2)
    module = RankerModule(network, learning_rate=Constant(1e-3))
    batch = {"text_tokens": torch.tensor([[0, -1], [1, -1], [2, -1]]), "image": COLORS}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=100,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * 100, batch_size=None))
    network.eval()
    with torch.no_grad():
        similarity = network.encode_text(batch["text_tokens"]) @ network.encode_images(COLORS).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2]
    assert float(trainer.callback_metrics["train/loss"]) < 0.3  # ln 3 without training


def test_only_matrices_have_weight_decay():
    network = DualEncoder(text_vocab=3, text_length=2, image_size=16, grid=4, dim=16, heads=2)
    optimizer = RankerModule(network, Constant(1.0)).configure_optimizers()["optimizer"]
    groups = [group for group in optimizer.param_groups if group["weight_decay"]]
    decayed = {id(parameter) for group in groups for parameter in group["params"]}
    assert id(network.image_out.weight) in decayed
    for parameter in (network.text.embedding.weight, network.text.position, network.log_scale):
        assert id(parameter) not in decayed
