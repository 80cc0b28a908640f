"""PriorModule: learning, dropout of captions and image tokens, and the optimizer."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.errors import UserError
from tilewright.prior import CaptionStream, PriorModule, Stream, Transformer
from tilewright.training.schedules import Constant, WarmUp

STREAM = Stream(text_length=4, text_vocab=6, grid=3, image_vocab=8)
RATE = Constant(3e-3)


def make_module(rate=RATE, **settings):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=32, depth=2, heads=2)
    return PriorModule(network, rate, **settings)


def make_batch(size=3):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(6, (size, 4), generator=generator)
    text[0, 2:] = -1
    image = torch.randint(8, (size, 3, 3), generator=generator)
    return {"text": text, "image_tokens": image}


def make_loader(num_batches, batch=None):
    return DataLoader([batch or make_batch()] * num_batches, batch_size=None)


class Recorder(pl.Callback):
    """Records metrics and learning rates of each update."""

    def __init__(self):
        self.metrics, self.rates = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def fit(module, steps, batch=None, **settings):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[recorder],
        **settings,
    )
    trainer.fit(module, make_loader(steps, batch), make_loader(1, batch))
    return recorder, trainer


def test_loss_falls_on_one_batch():
    recorder, _ = fit(make_module(caption_dropout=0.0), 30)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    for name in ("train/loss", "train/text", "train/image"):
        assert last[name] < 0.7 * first[name], name
    for metrics in recorder.metrics:
        total = metrics["train/text"] / 8 + metrics["train/image"] * 7 / 8
        assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)


def test_learning_rate_warms_up_in_both_parameter_groups_and_validation_is_logged():
    rate = WarmUp(3, Constant(1e-3))
    module = make_module(rate)
    recorder, trainer = fit(module, 4)
    for step, rates in enumerate(recorder.rates):
        assert rates == pytest.approx([rate(step)] * 2)
    with torch.no_grad():
        terms = module.eval().terms(make_batch()["text"], make_batch()["image_tokens"])
    for name, value in terms.items():
        logged = trainer.callback_metrics[f"validation/{name}"].item()
        assert logged == pytest.approx(value.item(), rel=1e-5)


def network_inputs(monkeypatch, module, batch, step="training_step"):
    """Returns the text, image and image dropout mask that a step passes to the network."""
    calls, forward = [], module.network.forward

    def recorded_forward(text, image, image_dropout_mask=None):
        calls.append((text, image, image_dropout_mask))
        return forward(text, image, image_dropout_mask)

    monkeypatch.setattr(module.network, "forward", recorded_forward)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: None)
    getattr(module, step)(batch, 0)
    return calls[0]


def captions_before_and_after_dropout(monkeypatch, caption_dropout, size=3):
    batch = make_batch(size)
    before = batch["text"].clone()
    text, _, _ = network_inputs(monkeypatch, make_module(caption_dropout=caption_dropout), batch)
    assert torch.equal(batch["text"], before)
    return before, text


def test_caption_dropout_of_one_is_rejected():
    with pytest.raises(UserError, match=r"caption_dropout=1\.0 empties every caption"):
        make_module(caption_dropout=1.0)


def test_caption_dropout_of_zero_keeps_all_captions(monkeypatch):
    before, text = captions_before_and_after_dropout(monkeypatch, 0.0)
    assert torch.equal(text, before)


def test_caption_dropout_empties_its_fraction_of_captions(monkeypatch):
    before, text = captions_before_and_after_dropout(monkeypatch, 0.3, size=1000)
    is_empty = (text < 0).all(dim=1)
    assert torch.equal(text[~is_empty], before[~is_empty])
    assert is_empty.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_caption_dropout_of_features_keeps_their_padding():
    stream = CaptionStream(text_length=4, features=2, grid=3, image_vocab=8)
    network = Transformer(stream, dim=8, depth=1, heads=2)
    module = PriorModule(network, Constant(1e-3), caption_dropout=0.3)
    text = torch.cat([torch.rand(1000, 4, 2) + 1, torch.ones(1000, 4, 1)], dim=2)
    dropped = module._drop_captions(text)
    is_empty = (dropped[..., :2] == 0).all(dim=(1, 2))
    assert torch.equal(dropped[~is_empty], text[~is_empty])
    assert (dropped[..., 2] == 1).all()
    assert is_empty.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_features_are_trained_and_validated_on_the_image_alone():
    stream = CaptionStream(text_length=4, features=2, grid=3, image_vocab=8)
    module = PriorModule(Transformer(stream, dim=8, depth=1, heads=2), Constant(1e-2))
    text = torch.cat([torch.rand(4, 4, 2), torch.ones(4, 4, 1)], dim=2)
    batch = {"text": text, "image_tokens": torch.randint(8, (4, 3, 3))}
    metrics = fit(module, 2, batch)[1].callback_metrics
    assert {"train/loss", "train/image", "validation/loss"} <= metrics.keys()
    assert not {"train/text", "validation/text"} & metrics.keys()
    assert metrics["validation/loss"].isfinite()


def test_image_dropout_has_a_random_fraction_per_image(monkeypatch):
    torch.manual_seed(0)
    module = make_module(image_dropout=0.6)
    _, image, mask = network_inputs(monkeypatch, module, make_batch(2000))
    assert mask.shape == image.shape
    fractions = mask.float().flatten(1).mean(dim=1)
    assert fractions.mean().item() == pytest.approx(0.3, abs=0.02)  # uniform from 0 to 0.6
    assert fractions.std().item() > 0.6 / 12**0.5  # of a uniform fraction and binomial counts


def test_default_has_no_image_dropout(monkeypatch):
    assert network_inputs(monkeypatch, make_module(), make_batch())[2] is None


def test_validation_has_no_dropout(monkeypatch):
    module = make_module(caption_dropout=0.999, image_dropout=1.0)
    text, image, mask = network_inputs(monkeypatch, module, make_batch(), "validation_step")
    assert torch.equal(text, make_batch()["text"])
    assert torch.equal(image, make_batch()["image_tokens"])
    assert mask is None


def test_default_optimizer_is_the_one_of_the_paper():
    module = make_module()
    optimizer = module.configure_optimizers()["optimizer"]
    matrices, rest = optimizer.param_groups
    assert matrices["betas"] == rest["betas"] == (0.9, 0.96)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (4.5e-2, 0.0)
    assert sum(len(g["params"]) for g in (matrices, rest)) == len(list(module.parameters()))


def test_muon_with_a_variance_clip_is_rejected():
    with pytest.raises(UserError, match=r"variance_clip=5\.0 .* model\.muon=false"):
        make_module(muon=True, variance_clip=5.0)


def test_gradients_are_clipped_in_bf16(monkeypatch):
    clip_values = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *args: clip_values.append(args[1]) or clip(*args)
    )
    module = make_module()
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, 2, precision="bf16-mixed", gradient_clip_val=0.5)
    assert clip_values == [0.5, 0.5]
    assert any(not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_an_impossible_bound_of_the_variance_is_refused(clip):
    with pytest.raises(UserError, match=r"model\.variance_clip=.* set a number above 0"):
        make_module(variance_clip=clip)
