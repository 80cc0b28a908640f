"""Tests of the dVAE's training step: loss, logged values, learning, precision."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import categorical_kl
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.errors import UserError
from tilewright.training.schedules import Constant, Cosine

ONE, RATE = Constant(1.0), Constant(5e-3)


def tiny(beta=ONE, rate=RATE, temperature=ONE):
    torch.manual_seed(0)
    network = DiscreteVAE(
        image_size=16, grid=4, num_tokens=16, n_hid=16, n_init=16, blocks_per_group=1
    )
    return DiscreteVAEModule(network, temperature=temperature, beta=beta, learning_rate=rate)


def batch(count=4):
    flat = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    return {"image": flat.expand(count, 3, 16, 16).clone(), "caption": ["a square"] * count}


def loader(batches):
    return DataLoader([batch()] * batches, batch_size=None)


class Record(pl.Callback):
    def __init__(self):
        self.metrics, self.rates, self.outputs = [], [], None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.outputs = outputs


def fit(module, steps):
    record = Record()
    trainer = pl.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[record],
    )
    trainer.fit(module, loader(steps), loader(1))
    return record


@pytest.mark.parametrize("count", [1, 4])
def test_the_whole_loss_is_divided_by_the_number_of_pixel_values(count):
    module, images = tiny(beta=Constant(6.6)), batch(count)["image"]
    network = module.network
    latents = 10 * network.latents(images)
    codes = network.quantizer.codes(network.quantizer.tokens(latents))
    _, penalties = network.quantizer(latents, 1.0)
    terms = module.terms(images, network.maps(codes), penalties)
    nll = network.likelihood.nll(images, network.decoder(codes))
    per_token = categorical_kl(latents)
    pixel_values, tokens = 16 * 16 * 3, 4 * 4
    # The paper: (sum over pixels + beta * sum over the grid) / pixel values, for each image.
    expected = (nll.sum((1, 2, 3)) + 6.6 * per_token.sum((1, 2))).mean() / pixel_values
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["reconstruction"], nll.mean())
    torch.testing.assert_close(terms["kl"], per_token.mean() * tokens / pixel_values)


def test_the_loss_falls_on_one_batch():
    record = fit(tiny(), 30)
    losses = [metrics["train/loss"] for metrics in record.metrics]
    assert len(losses) == 30
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2


def test_schedules_are_applied_at_each_update_and_logged():
    beta, temperature = Cosine(0.0, 6.6, 4), Cosine(1.0, 1 / 16, 4)
    rate = Cosine(1e-3, 1e-5, 4)
    record = fit(tiny(beta, rate, temperature), 5)
    for step, metrics in enumerate(record.metrics):
        assert metrics["schedule/beta"] == pytest.approx(beta(step), abs=1e-6)
        assert metrics["schedule/temperature"] == pytest.approx(temperature(step), abs=1e-6)
        total = metrics["train/reconstruction"] + beta(step) * metrics["train/kl"]
        assert metrics["train/loss"] == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert record.rates == pytest.approx([rate(step) for step in range(5)])


def test_validation_gives_tokens_and_reconstructions_to_callbacks():
    module = tiny()
    outputs = fit(module, 1).outputs
    module.network.eval()
    tokens = module.network.encode(batch()["image"])
    assert torch.equal(outputs["tokens"], tokens)
    torch.testing.assert_close(outputs["reconstructions"], module.network.decode(tokens))


def gradients(module, images, fast):
    """Returns loss and gradients of a training step in fp32, or in bf16 and channels_last."""
    layout = torch.channels_last if fast else torch.contiguous_format
    module.network.to(memory_format=layout)
    module.zero_grad()
    torch.manual_seed(3)  # the same noise
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
        codes, penalties = module.network.quantizer(module.network.latents(images), 0.5)
        loss = module.terms(images, module.network.maps(codes), penalties)["loss"]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in module.parameters()])


def test_bf16_and_channels_last_agree_with_fp32():
    """The loss agrees within 1 %, and the gradient within 3 % of its norm."""
    torch.manual_seed(0)
    network = DiscreteVAE(
        image_size=32, grid=4, num_tokens=64, n_hid=16, n_init=16, blocks_per_group=2
    )
    module = DiscreteVAEModule(network, temperature=ONE, beta=ONE, learning_rate=RATE)
    images = torch.rand(8, 3, 32, 32)
    loss, gradient = gradients(module, images, fast=False)
    fast_loss, fast_gradient = gradients(module, images, fast=True)
    assert fast_loss.item() == pytest.approx(loss.item(), rel=1e-2)
    assert (fast_gradient - gradient).norm() < 0.03 * gradient.norm()


@pytest.mark.parametrize("pixel", [0.0, 1.0])
@pytest.mark.parametrize("fast", [False, True])
def test_black_and_white_images_and_extreme_logits_give_finite_gradients(pixel, fast):
    module = tiny(temperature=Constant(1 / 16))
    with torch.no_grad():
        module.network.encoder[-1].layer.weight.mul_(1e4)
    loss, gradient = gradients(module, torch.full((2, 3, 16, 16), pixel), fast)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": Constant(-1.0)}, r"model\.beta\.value=-1"),
        ({"beta": Cosine(0.0, float("nan"), 4)}, r"model\.beta\.end=nan"),
        ({"temperature": Constant(0.0)}, r"model\.temperature\.value=0"),
        ({"temperature": Cosine(1.0, 0.0, 4)}, r"model\.temperature\.end=0"),
    ],
)
def test_impossible_schedules_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)
