"""Training of the ranker."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.ranker import DualEncoder
from tilewright.ranker.module import RankerModule
from tilewright.ranker.networks import contrastive_loss
from tilewright.training.schedules import Constant

COLORS = torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)


def test_training_matches_captions_with_their_images():
    network = make_network()
    module = RankerModule(network, learning_rate=Constant(1e-3))
    batch = {"text": torch.tensor([[0, -1], [1, -1], [2, -1]]), "image": COLORS}
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
        similarity = network.encode_text(batch["text"]) @ network.encode_images(COLORS).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2]
    assert float(trainer.callback_metrics["train/loss"]) < 0.3  # ln 3 without training


def make_network():
    torch.manual_seed(0)
    return DualEncoder(text_vocab=3, text_length=2, image_size=16, grid=4, dim=16, heads=2)


@pytest.mark.parametrize("muon", [False, True])
def test_all_matrices_but_embeddings_have_weight_decay_and_muon(muon):
    network = make_network()
    optimizer = RankerModule(network, Constant(1.0), muon=muon).configure_optimizers()["optimizer"]
    matrices, others = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    embeddings = {network.text.embedding.weight, network.text.position, network.image.position}
    assert set(matrices) == {p for p in network.parameters() if p.ndim == 2} - embeddings
    assert set(matrices) | set(others) == set(network.parameters())


def test_a_scale_above_its_bound_returns_to_it_and_can_fall():
    network = make_network()
    module = RankerModule(network, Constant(1.0))
    optimizer = module.configure_optimizers()["optimizer"]
    optimizer.param_groups[1]["lr"] = 0.1
    with torch.no_grad():
        network.log_scale.fill_(9.0)
    scales = []
    for _ in range(3):
        optimizer.zero_grad()
        network.scale.backward()
        optimizer.step()
        scales.append(float(network.scale))
    assert scales[0] == pytest.approx(100)
    assert scales[2] < scales[1] < 95


def training_loss(module, images):
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module.log = lambda *_, **__: None
    return module.training_step({"text": torch.tensor([[0, -1], [1, -1]]), "image": images}, 0)


def test_a_cutmix_negative_that_equals_its_image_does_not_count(monkeypatch):
    def change_second(images):
        return torch.stack([images[0], 1 - images[1]])

    monkeypatch.setattr("tilewright.ranker.module.make_cutmix_negatives", change_second)
    network, images = make_network(), torch.rand(2, 3, 16, 16)
    loss = training_loss(RankerModule(network, Constant(1.0)), images)
    vectors = network.encode_images(torch.cat([images, 1 - images[1:]]))
    text = network.encode_text(torch.tensor([[0, -1], [1, -1]]))
    expected = contrastive_loss(text, vectors[:2], network.scale, vectors[2:])
    torch.testing.assert_close(loss, expected)


def test_training_compiles_both_encoders():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    network, images = make_network(), torch.rand(2, 3, 16, 16)
    expected = training_loss(RankerModule(network, Constant(1.0), cutmix_negatives=False), images)
    network.compile(backend=backend)
    compiled = training_loss(RankerModule(network, Constant(1.0), cutmix_negatives=False), images)
    assert len(graphs) == 2
    torch.testing.assert_close(compiled, expected)


def test_logits_are_fp32_under_autocast():
    network, images = make_network(), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = network.encode_images(images)
        loss = contrastive_loss(vectors, vectors.flip(0), torch.tensor(30.0))
    assert (vectors == vectors.bfloat16()).float().mean() < 0.1
    expected = contrastive_loss(vectors, vectors.flip(0), torch.tensor(30.0))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
