"""The prior's training step: that it learns, which captions it drops, which weights decay."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.prior import Stream, Transformer
from tilewright.prior.module import PriorModule
from tilewright.training.schedules import Constant, WarmUp

STREAM = Stream(text_length=4, text_vocab=6, grid=3, image_vocab=8)
RATE = Constant(3e-3)


def tiny(rate=RATE, **settings):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=32, depth=2, heads=2)
    return PriorModule(network, rate, **settings)


def batch(count=3):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(6, (count, 4), generator=generator)
    text[0, 2:] = -1
    image = torch.randint(8, (count, 3, 3), generator=generator)
    return {"text_tokens": text, "image_tokens": image}


def loader(batches):
    return DataLoader([batch()] * batches, batch_size=None)


class Record(pl.Callback):
    def __init__(self):
        self.metrics, self.rates = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def fit(module, steps, **settings):
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
        **settings,
    )
    trainer.fit(module, loader(steps), loader(1))
    return record, trainer


def test_the_loss_falls_on_one_batch():
    record, _ = fit(tiny(caption_dropout=0.0), 30)
    first, last = record.metrics[0], record.metrics[-1]
    for name in ("train/loss", "train/text", "train/image"):
        assert last[name] < 0.7 * first[name], name
    for metrics in record.metrics:
        total = metrics["train/text"] / 8 + metrics["train/image"] * 7 / 8
        assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_rate_warms_up_in_both_groups_and_validation_is_logged():
    rate = WarmUp(3, Constant(1e-3))
    module = tiny(rate)
    record, trainer = fit(module, 4)
    for step, rates in enumerate(record.rates):
        assert rates == pytest.approx([rate(step)] * 2)
    with torch.no_grad():
        terms = module.eval().terms(batch()["text_tokens"], batch()["image_tokens"])
    for name, value in terms.items():
        logged = trainer.callback_metrics[f"validation/{name}"].item()
        assert logged == pytest.approx(value.item(), rel=1e-5)


def shown(monkeypatch, module, given, step="training_step"):
    """What a step gives to the network: text, image and which image tokens are hidden."""
    seen, forward = [], module.network.forward

    def recorded(text, image, hidden=None):
        seen.append((text, image, hidden))
        return forward(text, image, hidden)

    monkeypatch.setattr(module.network, "forward", recorded)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: None)
    getattr(module, step)(given, 0)
    return seen[0]


def captions_seen(monkeypatch, caption_dropout, count=3):
    """The text that a training step gives to the network."""
    given = batch(count)
    before = given["text_tokens"].clone()
    text, _, _ = shown(monkeypatch, tiny(caption_dropout=caption_dropout), given)
    assert torch.equal(given["text_tokens"], before)
    return before, text


def test_a_dropout_of_one_leaves_only_padding(monkeypatch):
    _, seen = captions_seen(monkeypatch, 1.0)
    assert (seen < 0).all()


def test_a_dropout_of_zero_leaves_the_captions(monkeypatch):
    given, seen = captions_seen(monkeypatch, 0.0)
    assert torch.equal(seen, given)


def test_dropout_takes_whole_captions_at_its_share(monkeypatch):
    given, seen = captions_seen(monkeypatch, 0.3, count=1000)
    dropped = (seen < 0).all(dim=1)
    assert torch.equal(seen[~dropped], given[~dropped])
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_each_picture_hides_a_share_of_its_own(monkeypatch):
    torch.manual_seed(0)
    _, image, hidden = shown(monkeypatch, tiny(image_dropout=0.6), batch(2000))
    assert hidden.shape == image.shape
    shares = hidden.float().flatten(1).mean(dim=1)
    assert shares.mean().item() == pytest.approx(0.3, abs=0.02)  # from none to 0.6
    assert shares.std().item() > 0.6 / 12**0.5  # of the uniform shares, and of the draws


def test_nothing_is_hidden_without_dropout(monkeypatch):
    assert shown(monkeypatch, tiny(), batch())[2] is None


def test_validation_drops_nothing(monkeypatch):
    module = tiny(caption_dropout=1.0, image_dropout=1.0)
    text, image, hidden = shown(monkeypatch, module, batch(), "validation_step")
    assert torch.equal(text, batch()["text_tokens"])
    assert torch.equal(image, batch()["image_tokens"])
    assert hidden is None


def test_the_optimizer_is_the_papers():
    module = tiny()
    optimizer = module.configure_optimizers()["optimizer"]
    decaying, rest = optimizer.param_groups
    assert decaying["betas"] == rest["betas"] == (0.9, 0.96)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (4.5e-2, 0.0)
    assert sum(len(g["params"]) for g in (decaying, rest)) == len(list(module.parameters()))


def test_gradients_are_clipped_in_bf16(monkeypatch):
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *args: clipped.append(args[1]) or clip(*args)
    )
    module = tiny()
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, 2, precision="bf16-mixed", gradient_clip_val=0.5)
    assert clipped == [0.5, 0.5]
    assert any(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
