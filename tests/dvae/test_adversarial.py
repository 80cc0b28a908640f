"""Adversarial training: gradients of both networks, the adaptive weight, the start."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.dvae import AdversarialLoss, DiscreteVAE, DiscreteVAEModule, PatchDiscriminator
from tilewright.errors import UserError
from tilewright.training.schedules import Constant


def make_module(**settings):
    torch.manual_seed(0)
    network = DiscreteVAE(
        image_size=16, grid=4, num_tokens=16, n_hid=16, n_init=16, blocks_per_group=1
    )
    adversarial = AdversarialLoss(PatchDiscriminator(width=8, layers=1), **settings)
    schedules = (Constant(1.0), Constant(1.0), Constant(1e-3))
    module = DiscreteVAEModule(network, *schedules, adversarial=adversarial)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def batch():
    return {"image": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def gradients(parameters):
    return torch.cat([p.grad.flatten() for p in parameters])


def training_gradients(module):
    """Returns the gradients of network and discriminator of a training step."""
    module.zero_grad()
    torch.manual_seed(2)  # noise of the relaxation
    module.training_step(batch(), 0).backward()
    return gradients(module.network.parameters()), gradients(module.adversarial.parameters())


def generator_and_discriminator_losses(module):
    """Returns loss, generator's loss and discriminator's loss, as with two optimizers."""
    images, network = batch()["image"], module.network
    torch.manual_seed(2)
    codes, penalties = network.quantizer(network.latents(images), 1.0)
    maps = network.maps(codes)
    discriminator = module.adversarial.discriminator
    fake = 2 * network.likelihood.image(maps) - 1
    generator = -discriminator(fake).mean()
    real_loss = F.relu(1 - discriminator(2 * images - 1)).mean()
    fake_loss = F.relu(1 + discriminator(fake.detach())).mean()
    return module.terms(images, maps, penalties), generator, (real_loss + fake_loss) / 2, maps


def test_one_backward_pass_gives_the_gradients_of_two_optimizers():
    module = make_module(weight=0.7, adaptive=False)
    actual = training_gradients(module)
    module.zero_grad()
    terms, generator, _, _ = generator_and_discriminator_losses(module)
    (terms["loss"] + 0.7 * generator).backward()
    torch.testing.assert_close(actual[0], gradients(module.network.parameters()))
    module.zero_grad()
    _, _, discriminator, _ = generator_and_discriminator_losses(module)
    discriminator.backward()
    torch.testing.assert_close(actual[1], gradients(module.adversarial.parameters()))


def test_the_adaptive_weight_balances_the_gradients_at_the_decoders_output():
    module = make_module(weight=0.7)
    actual, _ = training_gradients(module)
    module.zero_grad()
    terms, generator, _, maps = generator_and_discriminator_losses(module)
    norms = [
        torch.autograd.grad(loss, maps, retain_graph=True)[0].norm()
        for loss in (terms["loss"], generator)
    ]
    (terms["loss"] + 0.7 * norms[0] / norms[1] * generator).backward()
    torch.testing.assert_close(actual, gradients(module.network.parameters()))


def test_before_its_start_the_discriminator_changes_nothing():
    module = make_module(start=1)
    actual, discriminator = training_gradients(module)
    module.zero_grad()
    generator_and_discriminator_losses(module)[0]["loss"].backward()
    torch.testing.assert_close(actual, gradients(module.network.parameters()))
    assert (discriminator == 0).all()


def test_images_that_are_too_small_are_refused_before_the_training():
    network = DiscreteVAE(image_size=16, grid=4, num_tokens=16, n_hid=16, n_init=16)
    adversarial = AdversarialLoss(PatchDiscriminator(width=2, layers=4), start=1000)
    schedules = (Constant(1.0), Constant(1.0), Constant(1e-3))
    message = r"cannot read images of 16 pixels .*: lower loss\.adversarial\.discriminator\.layers"
    with pytest.raises(UserError, match=message):
        DiscreteVAEModule(network, *schedules, adversarial=adversarial)


def test_logits_of_an_image_do_not_depend_on_its_batch():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8, layers=2)
    images = batch()["image"]
    torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]))


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, patch):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=2, layers=layers)
    for module in discriminator:
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # its statistics see the whole image
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == patch


def test_the_discriminator_has_its_own_rate_and_its_gradients_are_clipped_apart():
    module = make_module(learning_rate_ratio=0.5)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5e-3]
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.9)
    for factor, group in zip((100.0, 0.001), optimizer.param_groups, strict=True):
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, factor)
    module.configure_gradient_clipping(optimizer, 1.0, "norm")
    norms = [gradients(group["params"]).norm() for group in optimizer.param_groups]
    assert norms[0] == pytest.approx(1.0, rel=1e-4)
    count = sum(p.numel() for p in optimizer.param_groups[1]["params"])
    assert norms[1] == pytest.approx(0.001 * count**0.5, rel=1e-4)


def test_another_ratio_of_learning_rates_takes_effect_on_a_resumed_run():
    def configured(ratio):
        module = make_module(learning_rate_ratio=ratio)
        values = module.configure_optimizers()
        return values["optimizer"], values["lr_scheduler"]["scheduler"]

    saved = [part.state_dict() for part in configured(1.0)]
    optimizer, scheduler = configured(0.25)
    for part, state in zip((optimizer, scheduler), saved, strict=True):
        part.load_state_dict(state)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.25e-3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1}, r"loss\.adversarial\.weight=-1"),
        ({"start": -1}, r"loss\.adversarial\.start=-1"),
        ({"adaptive": "maybe"}, r"loss\.adversarial\.adaptive=maybe"),
        ({"learning_rate_ratio": float("nan")}, r"loss\.adversarial\.learning_rate_ratio=nan"),
        ({"betas": [0.5, 1.0]}, r"loss\.adversarial\.betas=\[0.5, 1.0\] is not possible"),
    ],
)
def test_impossible_settings_are_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        AdversarialLoss(PatchDiscriminator(width=4), **arguments)


@pytest.mark.parametrize("arguments", [{"width": 0}, {"layers": 0}])
def test_impossible_sizes_are_errors(arguments):
    with pytest.raises(UserError, match=r"loss\.adversarial\.discriminator"):
        PatchDiscriminator(**arguments)
