"""Mixed precision in fp16: gradients beside fp32, reaction to overflow, and resume."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tilewright.errors import UserError
from tilewright.prior import PriorModule, Stream, Transformer
from tilewright.training import Constant, Trainer
from tilewright.training.gradient_scaling import BlockScaler, Float16Precision

STREAM = Stream(text_length=4, text_vocab=6, grid=3, image_vocab=8)
SCALINGS = ("global", "per_block")


def make_network(**settings):
    torch.manual_seed(0)
    return Transformer(STREAM, dim=32, depth=3, heads=2, **settings)


def make_batch():
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(6, (3, 4), generator=generator)
    text[0, 2:] = -1
    image = torch.randint(8, (3, 3, 3), generator=generator)
    return {"text": text, "image_tokens": image}


def gradients(network, factor=1.0, scaler=None, fp16=False):
    """Returns the gradients of a training loss times `factor`."""
    batch = make_batch()
    optimizer = torch.optim.SGD(network.parameters())
    network.zero_grad()
    with torch.autocast("cpu", torch.half, enabled=fp16):
        logits = network(batch["text"], batch["image_tokens"])
        loss = STREAM.loss(*logits, batch["text"], batch["image_tokens"])["loss"]
    (factor * loss).backward()
    if scaler is not None:
        scaler.unscale_(optimizer)
    return {name: p.grad / factor for name, p in network.named_parameters()}


def attached(network):
    scaler = BlockScaler()
    scaler.attach(network, network.block_types)
    return scaler


def relative_error(result, expected):
    difference = torch.cat([(result[name] - expected[name]).flatten() for name in expected])
    return difference.norm() / torch.cat([g.flatten() for g in expected.values()]).norm()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_scales_do_not_change_fp32_gradients(checkpointing):
    expected = gradients(make_network())
    network = make_network(checkpointing=checkpointing)
    result = gradients(network, scaler=attached(network))
    assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("factor", [1.0, 1e-5])
def test_fp16_gradients_are_near_those_of_fp32(factor):
    # With a factor of 1e-5 the gradients of activations are those of a far deeper network.
    expected = gradients(make_network())
    network = make_network()
    scaler = attached(network)
    scaler.scales /= factor
    assert relative_error(gradients(network, factor, scaler, fp16=True), expected) < 5e-3


def test_fp16_without_a_scale_loses_small_gradients():
    lost = relative_error(gradients(make_network(), 1e-5, fp16=True), gradients(make_network()))
    assert lost > 0.1


def test_a_block_that_overflows_lowers_its_scale_alone_and_skips_the_update():
    network = make_network()
    scaler = attached(network)
    scaler.scales[1] = 2.0**24
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    gradients(network, scaler=scaler, fp16=True)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    grown = 2.0**13 * 2 ** (1 / 1000)
    expected = torch.tensor([grown, 2.0**23.5, grown])
    torch.testing.assert_close(scaler.scales, expected)


def test_scales_recover_and_training_goes_on():
    network = make_network()
    scaler = attached(network)
    scaler.scales[:] = 2.0**24
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = copy.deepcopy(network.state_dict())
    updates = 0
    for _ in range(40):
        gradients(network, scaler=scaler, fp16=True)
        scaler.step(optimizer)
        updates += all(scaler._is_finite)
        scaler.update()
    assert 0 < updates < 40
    assert any(not torch.equal(v, before[name]) for name, v in network.state_dict().items())
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_scales_stay_within_their_bounds():
    scaler = attached(make_network())
    scaler.scales = torch.tensor([2.0**7, 2.0**24, 2.0**13])
    scaler._is_finite = [False, True, True, True]
    scaler.update()
    assert scaler.scales[:2].tolist() == [2.0**7, 2.0**24]


def test_gradients_that_overflow_outside_the_blocks_skip_the_update():
    network = make_network()
    scaler = attached(network)
    gradients(network, scaler=scaler)
    network.image_head.weight.grad[0, 0] = torch.inf
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = network.text_head.weight.clone()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert torch.equal(network.text_head.weight, before)


class Observer(pl.Callback):
    """Records losses and the dtype of matrix products, and can spoil the gradients of an update."""

    def __init__(self, spoiled=None):
        self.spoiled, self.losses, self.dtypes = spoiled, [], set()

    def on_train_start(self, trainer, module):
        layer = next(m for m in module.network.modules() if type(m) in (nn.Linear, nn.Conv2d))
        layer.register_forward_hook(lambda _, __, output: self.dtypes.add(output.dtype))

    def on_after_backward(self, trainer, module):
        if trainer.global_step == self.spoiled:
            next(module.network.parameters()).grad.fill_(torch.nan)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def fit(folder, scaling, steps, module=None, checkpoint=None, **settings):
    if module is None:
        module = PriorModule(make_network(), Constant(3e-3), caption_dropout=0.0)
    observer = Observer(settings.pop("spoiled", None))
    trainer = Trainer(
        gradient_scaling=scaling,
        precision="16-mixed",
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=100,
        default_root_dir=folder,
        callbacks=[observer],
        **settings,
    )
    loader = torch.utils.data.DataLoader([make_batch()] * 20, batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return trainer, observer


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("muon", [False, True])
def test_a_prior_learns_in_fp16(scaling, muon, tmp_path):
    module = PriorModule(make_network(), Constant(3e-3), caption_dropout=0.0, muon=muon)
    trainer, observer = fit(tmp_path, scaling, 12, module, gradient_clip_val=4.0)
    assert observer.dtypes == {torch.float16}
    assert observer.losses[-1] < observer.losses[0] - 0.1
    assert trainer.callback_metrics["schedule/gradient_scale"] > 0


@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_update_with_nan_is_skipped_and_counted(scaling, tmp_path):
    module = PriorModule(make_network(), Constant(3e-3), variance_clip=5.0)
    trainer, _ = fit(tmp_path, scaling, 6, module, spoiled=3)
    assert trainer.precision_plugin.skipped_updates == 1
    assert trainer.callback_metrics["schedule/skipped_updates"] == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scales_resume_exactly(scaling, tmp_path):
    uninterrupted, expected = fit(tmp_path, scaling, 10, spoiled=2)
    first, _ = fit(tmp_path, scaling, 5, spoiled=2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second, resumed = fit(tmp_path, scaling, 10, checkpoint=tmp_path / "half.ckpt")
    assert resumed.losses == expected.losses[5:]
    assert second.precision_plugin.skipped_updates == 1
    assert second.precision_plugin.gradient_scale == uninterrupted.precision_plugin.gradient_scale


@pytest.mark.parametrize(("before", "after"), [SCALINGS, SCALINGS[::-1]])
def test_a_resumed_run_may_have_another_scaling(before, after, tmp_path):
    first, _ = fit(tmp_path, before, 3, spoiled=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second, resumed = fit(tmp_path, after, 5, checkpoint=tmp_path / "half.ckpt")
    assert len(resumed.losses) == 2
    assert second.precision_plugin.skipped_updates == 1


def test_a_scale_per_block_needs_a_prior(tmp_path):
    module = nn.Module()
    module.network = nn.Linear(2, 2)
    with pytest.raises(UserError, match="per_block is for priors"):
        Float16Precision("cpu", "per_block").convert_module(module)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(UserError, match=r"gradient_scaling=local .* global or per_block"):
        Float16Precision("cpu", "local")
