"""A network that is not a Transformer works wherever a prior is used.

Its training with FSDP is in tests/distributed/test_fsdp.py (stage "recurrent").
"""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from helpers.recurrent import RecurrentBlock, RecurrentPrior
from tilewright.data import BytePairTokenizer
from tilewright.distributed.powersgd import block_parameters
from tilewright.pipeline import TextToImage
from tilewright.prior import (
    Prior,
    PriorModule,
    Sampling,
    Stream,
    complete,
    log_likelihood,
    sample,
    with_low_precision_weights,
)
from tilewright.reranking import LikelihoodRanker
from tilewright.training.schedules import Constant

STREAM = Stream(text_length=6, text_vocab=280, grid=3, image_vocab=8)
TEXT = torch.tensor([[1, 2, -1, -1, -1, -1], [4, 0, 3, 7, 5, 6]])


@pytest.fixture
def network() -> Prior:
    torch.manual_seed(0)
    return RecurrentPrior(STREAM).eval()


class GrayTokenizer:
    """Image tokenizer whose token k is a gray tile of level k / 7."""

    image_size, grid, num_tokens = 12, 3, 8

    def encode(self, images):
        return (images.mean(dim=1)[:, ::4, ::4] * 7).round().long()

    def decode(self, tokens):
        tiles = tokens.float()[:, None] / 7
        return tiles.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def test_prior_module_trains_it(network):
    image = torch.randint(8, (2, 3, 3), generator=torch.Generator().manual_seed(0))
    batch = {"text": TEXT, "image_tokens": image}
    module = PriorModule(network, Constant(1e-2), caption_dropout=0.1, image_dropout=0.1)
    with torch.no_grad():
        before = module.terms(TEXT, image)["loss"]
    trainer = pl.Trainer(
        max_steps=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([batch] * 20, batch_size=None)
    trainer.fit(module, loader, loader)
    with torch.no_grad():
        assert module.terms(TEXT, image)["loss"] < 0.8 * before


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_greedy_samples_equal_the_most_likely_tokens_of_the_forward_pass(network, guidance):
    tokens = sample(network, TEXT, 2, sampling=Sampling(temperature=0, guidance=guidance))
    assert torch.equal(tokens[:, 0], tokens[:, 1])
    image = tokens[:, 0]
    conditional = network(TEXT, image)[1]
    empty = network(STREAM.without_caption(TEXT), image)[1]
    logits = empty + guidance * (conditional - empty)
    assert torch.equal(logits.argmax(dim=-1), image.flatten(1))


def test_image_prompt_is_continued(network):
    free = sample(network, TEXT)
    assert torch.equal(sample(network, TEXT, image_prompt_tokens=free[:, 0, :1]), free)


@pytest.mark.slow
def test_compiled_steps_sample_the_same_images(network):
    compiled = sample(network, TEXT, sampling=Sampling(compile=True))
    assert torch.equal(compiled, sample(network, TEXT))


@torch.no_grad()
def test_completion_is_the_most_likely_text(network):
    completed = complete(network, TEXT, sampling=Sampling(temperature=0))
    assert torch.equal(completed[TEXT >= 0], TEXT[TEXT >= 0])
    text_logits, _ = network(completed, torch.zeros(2, 3, 3, dtype=torch.long))
    is_new = (TEXT < 0) & (completed >= 0)
    assert torch.equal(text_logits.argmax(dim=-1)[is_new], completed[is_new])


@torch.no_grad()
def test_log_likelihood_of_all_last_tokens_sums_to_one(network):
    image = torch.zeros(8, 3, 3, dtype=torch.long)
    image[:, 2, 2] = torch.arange(8)
    text = TEXT[:1].expand(8, -1)
    log_text, log_image = log_likelihood(network, text, image)
    assert (log_text < 0).all()
    _, image_logits = network(text[:1], image[:1])
    log_prefix = image_logits.log_softmax(dim=-1)[0, :8, 0].sum()
    torch.testing.assert_close(log_image.logsumexp(dim=0), log_prefix)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@torch.no_grad()
def test_low_precision_weights_give_nearly_the_same_logits(network, weights):
    converted = with_low_precision_weights(network, weights)
    assert not any(type(layer) is nn.Linear for layer in converted.modules())
    image = torch.zeros(2, 3, 3, dtype=torch.long)
    expected, actual = network(TEXT, image)[1], converted(TEXT, image)[1]
    assert 0 < (actual - expected).std() < 0.05 * expected.std()
    assert sample(network, TEXT, sampling=Sampling(weights=weights)).shape == (2, 1, 3, 3)


def test_text_to_image_generates_and_ranks_images(network):
    tokenizer = BytePairTokenizer(vocab_size=280, length=6, dropout=0.0)
    tokenizer.train(["a red circle"])
    model = TextToImage(network, GrayTokenizer(), tokenizer)
    ((image,),) = model(["a red circle"], best_of=3, ranker=LikelihoodRanker())
    assert image.size == (12, 12)
    assert model.complete(["a red"])[0].startswith("a red")
    log_text, log_image = model.log_likelihood(["a red circle"], torch.rand(1, 3, 12, 12))
    assert log_text < 0
    assert log_image < 0


def test_powersgd_compresses_its_blocks(network):
    blocks = [module for module in network.modules() if isinstance(module, RecurrentBlock)]
    expected = {parameter for block in blocks for parameter in block.parameters()}
    assert block_parameters(network) == expected
