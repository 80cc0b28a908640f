"""Tests of the quantizers' common interface and of each quantizer."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks.ema import AveragedWeights
from tilewright.data.image_tokenizer import weights_digest
from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import Gaussian, categorical_kl
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.dvae.quantizers.base import GumbelSoftmax
from tilewright.dvae.quantizers.fsq import FiniteScalarQuantizer
from tilewright.dvae.quantizers.vq import VectorQuantizer
from tilewright.training.schedules import Constant
from tilewright.training.trainer import Trainer

KINDS = {
    "gumbel": lambda: GumbelSoftmax(12),
    "vq": lambda: VectorQuantizer(12, channels=5),
    "fsq": lambda: FiniteScalarQuantizer([4, 3]),
}


@pytest.fixture(params=KINDS)
def quantizer(request):
    torch.manual_seed(0)
    quantizer = KINDS[request.param]()
    quantizer(latents(quantizer, seed=9), 1.0)  # a VQ initializes its vectors from a batch
    return quantizer


def latents(quantizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, quantizer.channels, 4, 4, generator=generator)


def test_shapes_and_dtypes_of_tokens_and_codes(quantizer):
    tokens = quantizer.tokens(latents(quantizer))
    assert (tokens.shape, tokens.dtype) == ((2, 4, 4), torch.int64)
    assert tokens.min() >= 0
    assert tokens.max() < quantizer.num_tokens == 12
    all_tokens = torch.arange(12).view(1, 3, 4)
    codes = quantizer.codes(all_tokens)
    assert (codes.shape, codes.dtype) == ((1, quantizer.channels, 3, 4), torch.float32)
    assert len(codes.flatten(2)[0].unique(dim=1).T) == 12


@pytest.mark.parametrize("kind", ["gumbel", "vq"])  # an FSQ bounds its latents first
def test_a_code_quantizes_to_its_own_token(kind):
    torch.manual_seed(0)
    quantizer = KINDS[kind]()
    quantizer(latents(quantizer, seed=9), 1.0)
    all_tokens = torch.arange(12).view(1, 3, 4)
    assert torch.equal(quantizer.tokens(quantizer.codes(all_tokens)), all_tokens)


def test_training_codes_pass_gradients_to_the_encoder(quantizer):
    inputs = latents(quantizer).requires_grad_()
    codes, _ = quantizer(inputs, 0.5)
    (codes * torch.randn_like(codes)).sum().backward()
    assert inputs.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_training_codes_are_the_codes_of_the_tokens(kind):
    torch.manual_seed(0)
    quantizer = KINDS[kind]().train()
    inputs = latents(quantizer)
    quantizer(inputs, 1.0)
    quantizer.eval()
    codes, _ = quantizer(inputs, 1.0)
    torch.testing.assert_close(codes, quantizer.codes(quantizer.tokens(inputs)))


def test_autocast_does_not_change_tokens_and_codes(quantizer):
    inputs = torch.randn(64, quantizer.channels, 8, 8)
    quantizer.eval()
    tokens, (codes, _) = quantizer.tokens(inputs), quantizer(inputs, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.tokens(inputs), tokens)
        if not isinstance(quantizer, GumbelSoftmax):  # whose codes have noise
            assert torch.equal(quantizer(inputs, 1.0)[0], codes)


def test_encoding_tokens_does_not_change_the_codebook(quantizer):
    quantizer.train()
    before = weights_digest(quantizer)
    for seed in range(5):
        quantizer.tokens(latents(quantizer, seed))
    assert weights_digest(quantizer) == before


def test_a_vq_token_is_the_nearest_vector():
    torch.manual_seed(0)
    quantizer = KINDS["vq"]()
    quantizer(latents(quantizer, 1), 1.0)
    inputs = latents(quantizer)
    vectors = quantizer.codes(torch.arange(12).view(1, 1, 12))[0, :, 0].T
    distances = torch.cdist(inputs.movedim(1, -1).reshape(-1, 5), vectors)
    assert torch.equal(quantizer.tokens(inputs).flatten(), distances.argmin(dim=1))
    _, penalties = quantizer.eval()(inputs, 1.0)
    expected = distances.amin(dim=1).square().mean()
    torch.testing.assert_close(penalties["commitment"], expected)


def test_a_vq_follows_the_latents_and_replaces_dead_vectors():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(64, channels=4, decay=0.5).train()
    quantizer(torch.zeros(1, 4, 8, 8), 1.0)  # all vectors start equal
    for _ in range(30):
        quantizer(torch.randn(8, 4, 8, 8), 1.0)
    tokens = quantizer.tokens(torch.randn(8, 4, 8, 8))
    assert len(tokens.unique()) > 56


def test_fsq_codes_have_the_given_levels():
    quantizer = FiniteScalarQuantizer([8, 6, 5])
    assert (quantizer.num_tokens, quantizer.channels) == (240, 3)
    codes = quantizer.codes(torch.arange(240).view(1, 12, 20)).flatten(2)[0]
    assert [len(channel.unique()) for channel in codes] == [8, 6, 5]
    assert codes.abs().max() <= 1


@pytest.mark.parametrize("levels", [[], [8, 2]])
def test_fsq_with_too_few_levels_is_an_error(levels):
    with pytest.raises(ValueError, match="must be 3 or more each"):
        FiniteScalarQuantizer(levels)


def test_a_vq_learns_in_training_only():
    quantizer = KINDS["vq"]().eval()
    before = weights_digest(quantizer)
    assert not quantizer.tokens(latents(quantizer)).any()
    quantizer(latents(quantizer), 1.0)
    assert weights_digest(quantizer) == before


def test_gumbel_softmax_codes_are_soft_when_warm_and_hard_when_cold():
    quantizer = GumbelSoftmax(12)
    inputs = latents(quantizer)
    warm, penalties = quantizer(inputs, 1.0)
    torch.testing.assert_close(warm.sum(dim=1), torch.ones(2, 4, 4))
    cold, _ = quantizer(inputs, 1e-3)
    assert cold.amax(dim=1).mean() > 0.99
    torch.testing.assert_close(penalties["kl"], categorical_kl(inputs).mean())
    hard = quantizer.codes(quantizer.tokens(inputs))
    torch.testing.assert_close(hard.sum(dim=1), torch.ones(2, 4, 4))
    assert torch.equal(hard.argmax(dim=1), inputs.argmax(dim=1))


def test_gumbel_softmax_samples_from_the_posterior():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    samples = GumbelSoftmax(3)(logits, 0.1)[0].argmax(dim=1)
    shares = torch.bincount(samples.flatten(), minlength=3) / samples.numel()
    torch.testing.assert_close(shares, logits[0, :, 0, 0].softmax(0), rtol=0, atol=0.01)


def module(quantizer):
    torch.manual_seed(0)
    network = DiscreteVAE(
        image_size=16,
        grid=4,
        num_tokens=12,
        n_hid=16,
        n_init=16,
        blocks_per_group=1,
        likelihood=Gaussian(0.1),
        quantizer=quantizer,
    )
    one = Constant(1.0)
    return DiscreteVAEModule(network, temperature=one, beta=one, learning_rate=Constant(3e-3))


def fit(trained, steps=40):
    generator = torch.Generator().manual_seed(1)
    flat = torch.rand(32, 3, 1, 1, generator=generator).expand(32, 3, 16, 16).contiguous()
    batch = {"image": flat, "caption": ["a square"] * 32}
    trainer = Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[AveragedWeights(0.9)],
    )
    trainer.fit(trained, DataLoader([batch] * steps, batch_size=None))
    return flat


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_with_each_quantizer_and_reloads(kind):
    trained = module(KINDS[kind]())
    images = fit(trained)
    network = trained.network.eval()
    tokens = network.encode(images)
    assert (tokens.shape, len(tokens.unique()) > 2) == ((32, 4, 4), True)
    error = (network.decode(tokens) - images).square().mean()
    assert error < 0.6 * images.var()
    # The state dict is complete: a new network with it encodes and decodes equally.
    reloaded = module(KINDS[kind]()).network.eval()
    reloaded.load_state_dict(network.state_dict())
    assert torch.equal(reloaded.encode(images), tokens)
    torch.testing.assert_close(reloaded.decode(tokens), network.decode(tokens))


def test_a_quantizer_with_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="num_tokens=8192 differs from the quantizer's 12"):
        DiscreteVAE(quantizer=KINDS["fsq"]())


def test_penalties_are_weighted_as_the_papers_kl():
    trained = module(GumbelSoftmax(12))
    images = torch.rand(2, 3, 16, 16)
    logits = torch.zeros(2, 12, 4, 4)
    logits[:, 3] = 1000
    codes, penalties = trained.network.quantizer(logits, 1.0)
    terms = trained.terms(images, trained.network.maps(codes), penalties)
    assert terms["kl"].item() == pytest.approx(math.log(12) * 16 / 768, rel=1e-6)
