"""Tests of the dVAE's networks: shapes, errors, receptive fields, initialization, compiling."""

import pytest
import torch

from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import Gaussian
from tilewright.dvae.networks import ResidualBlock
from tilewright.errors import UserError


def tiny(**changes):
    torch.manual_seed(0)
    settings = {
        "image_size": 32,
        "grid": 4,
        "num_tokens": 16,
        "n_hid": 8,
        "n_init": 8,
        "blocks_per_group": 1,
    }
    return DiscreteVAE(**{**settings, **changes}).eval()


def random_images(count=2, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("grid", "likelihood"), [(8, None), (2, Gaussian()), (16, Gaussian()), (32, None)]
)
def test_shapes_and_dtypes(grid, likelihood):
    network = tiny(grid=grid, likelihood=likelihood)
    logits = network.latents(random_images())
    assert (logits.shape, logits.dtype) == ((2, 16, grid, grid), torch.float32)
    tokens = network.encode(random_images())
    assert (tokens.shape, tokens.dtype) == ((2, grid, grid), torch.int64)
    assert torch.equal(tokens, logits.argmax(dim=1))
    images = network.decode(tokens)
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.float32)
    assert images.min() >= 0
    assert images.max() <= 1
    maps = network.decoder(network.quantizer.codes(tokens))
    assert maps.shape == (2, network.likelihood.num_maps, 32, 32)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_patches_leave_out_the_finest_blocks_and_keep_the_shapes(patch):
    network = tiny(patch=patch)
    tokens = network.encode(random_images())
    assert tokens.shape == (2, 4, 4)
    assert network.decode(tokens).shape == (2, 3, 32, 32)
    blocks = [name for name, _ in network.encoder.named_modules() if name.endswith("branch")]
    assert len(blocks) == {2: 3, 4: 2, 8: 1}[patch]


def test_branch_gain_is_the_papers():
    network = tiny()  # 32 pixels, a 4x4 grid: four groups of one block
    gains = {block.gain for block in network.modules() if isinstance(block, ResidualBlock)}
    assert gains == {1 / 16}


@pytest.mark.parametrize("patch", [3, 16])
def test_a_patch_that_does_not_fit_is_refused(patch):
    with pytest.raises(ValueError, match=f"must divide image_size / grid = 8, got {patch}"):
        tiny(patch=patch)


@pytest.mark.parametrize(
    "shape", [(2, 3, 16, 16), (2, 3, 32, 16), (2, 1, 32, 32), (3, 32, 32)], ids=str
)
def test_images_of_another_size_are_refused(shape):
    for call in (tiny().latents, tiny().encode):
        with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\]") as error:
            call(torch.rand(shape))
        assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(("side", "grid"), [(48, 4), (32, 5), (32, 64), (96, 32)])
def test_a_factor_that_is_not_a_power_of_two_is_refused(side, grid):
    with pytest.raises(ValueError, match=f"power of two, got {side} / {grid}"):
        tiny(image_size=side, grid=grid)


def test_encoding_is_deterministic_and_uses_no_random_numbers():
    network, images = tiny(), random_images()
    state = torch.get_rng_state()
    first = network.encode(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network.encode(images), first)


def change_outside(images, low, high):
    """Returns the images with new pixels except in rows and columns low..high-1."""
    changed = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))
    changed[..., low:high, low:high] = images[..., low:high, low:high]
    return changed


def test_with_kernel_1_a_token_sees_its_tile_and_three_pixels_around_it():
    network, images = tiny(encoder_kernel=1), random_images()
    before = network.latents(images)[:, :, 1, 1]  # tile 8..15, with the stem's reach 5..18
    same = network.latents(change_outside(images, 5, 19))[:, :, 1, 1]
    torch.testing.assert_close(same, before, rtol=0, atol=1e-6)
    less = network.latents(change_outside(images, 6, 18))[:, :, 1, 1]
    assert (less - before).abs().max() > 1e-4


def test_with_kernel_3_a_token_sees_farther():
    network, images = tiny(), random_images()
    before = network.latents(images)[:, :, 1, 1]
    after = network.latents(change_outside(images, 5, 19))[:, :, 1, 1]
    assert (after - before).abs().max() > 1e-4


def test_with_replicate_padding_the_border_looks_like_the_inside():
    images = torch.full((1, 3, 32, 32), 0.7)
    replicated = tiny(padding_mode="replicate").latents(images)
    torch.testing.assert_close(
        replicated, replicated[..., :1, :1].expand_as(replicated), rtol=0, atol=1e-5
    )
    zeros = tiny().latents(images)
    assert (zeros[..., 0, 0] - zeros[..., 1, 1]).abs().max() > 1e-3


def test_layers_next_to_the_relaxation_stay_in_fp32_under_autocast():
    network, images = tiny(), random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network.latents(images)
        codes, _ = network.quantizer(logits, 1.0)
        first = network.decoder[0](codes)
        inside = network.encoder[0](images)
    assert (logits.dtype, codes.dtype, first.dtype) == (torch.float32,) * 3
    assert inside.dtype == torch.bfloat16


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_number_of_parameters_at_the_papers_size():
    with torch.device("meta"):
        network = DiscreteVAE()
    assert count(network.encoder) == pytest.approx(53.8e6, rel=2e-3)
    assert count(network.decoder) == pytest.approx(43.8e6, rel=2e-3)


def test_initial_weights_have_the_papers_deviation_and_zero_bias():
    network = tiny(n_hid=32, num_tokens=64)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert not parameter.any(), name
        elif parameter.numel() > 2000:
            fan_in = parameter[0].numel()
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.1), name


def test_encoder_and_decoder_compile_to_one_graph_each():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network = tiny()
    network.compile(backend=count)
    network.decoder(network.latents(random_images()).softmax(dim=1))
    assert len(graphs) == 2


def test_a_compiled_network_has_the_same_loss_and_gradients():
    images, losses, gradients = random_images(), [], []
    for compiled in (False, True):
        network = tiny(padding_mode="replicate")
        if compiled:
            network.compile(backend="eager")  # traces without compiling
            assert network.encoder._compiled_call_impl is not None
        maps = network.decoder(network.latents(images).softmax(dim=1))
        losses.append(network.likelihood.nll(images, maps).mean())
        losses[-1].backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["encoder_kernel", "decoder_kernel", "stem_kernel"])
def test_an_even_kernel_is_refused_because_it_changes_the_size(name):
    with pytest.raises(UserError, match=rf"model\.network\.{name}=2 is even"):
        tiny(**{name: 2})
    with pytest.raises(UserError, match=rf"model\.network\.{name}=-1 is not possible"):
        tiny(**{name: -1})
