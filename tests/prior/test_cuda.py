"""What runs on a GPU alone, against the plain way on the same GPU; skipped where there is none."""

import pytest
import torch

from tilewright.prior import Sampling, Stream, Transformer, sample
from tilewright.prior.attention import attend, mask_on
from tilewright.prior.patterns import PATTERNS, dense_mask

pytestmark = [
    pytest.mark.slow,  # FlexAttention and graphs are compiled first
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
STREAM = Stream(text_length=40, text_vocab=9, grid=12, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=64, heads=2, depth=4, **parts)
    with torch.no_grad():  # as at 0.02 captions and earlier tokens hardly matter
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.cuda()


def pairs(count):
    torch.manual_seed(1)
    text, image = torch.randint(9, (count, 40)), torch.randint(16, (count, 12, 12))
    return text.cuda(), image.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_attention_is_attention_under_the_dense_mask(pattern, dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, STREAM.length, 32, device="cuda", dtype=dtype)
    mask = dense_mask(pattern, STREAM).cuda()

    def dense(q, k, v):
        scores = (q @ k.mT / 32**0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1) @ v

    def flex(q, k, v):
        return attend(q, k, v, mask_on(pattern, STREAM, q.device, q.dtype))

    found, expected = [], []
    for way, outputs, kind in ((flex, found, dtype), (dense, expected, torch.float64)):
        inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
        y = way(*inputs)
        outputs += [y, *torch.autograd.grad(y.square().sum(), inputs)]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
def test_a_compiled_network_has_the_gradients_of_the_plain_one(parts, checkpointing):
    gradients = []
    for compiled in (False, True):
        prior = network(checkpointing=checkpointing, **parts)
        if compiled:
            prior.compile()
        text, image = pairs(2)
        prior.stream.loss(*prior(text, image), text, image)["loss"].backward()
        gradients.append({name: p.grad for name, p in prior.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("candidates", [1, 3])
@torch.no_grad()
def test_a_replayed_graph_draws_the_plain_steps_pictures(captions, candidates):
    prior, (text, _) = network(**MODERN).eval(), pairs(captions)
    how = {"guidance": 2.0, "temperature": 0.7}
    plain = sample(prior, text, candidates, sampling=Sampling(**how), seed=5)
    replayed = sample(prior, text, candidates, sampling=Sampling(**how, compile=True), seed=5)
    assert plain.unique().numel() > 4
    assert torch.equal(replayed, plain)


@torch.no_grad()
def test_bf16_weights_draw_likely_pictures_by_a_graph():
    prior, (text, _) = network(**MODERN).eval(), pairs(2)
    drawn = {}
    for weights in ("float32", "bfloat16"):
        how = Sampling(temperature=0, weights=weights, compile=True)
        drawn[weights] = sample(prior, text, 2, sampling=how)
    rows = drawn["bfloat16"] == drawn["float32"]
    assert rows[:, :, :2].float().mean() > 0.8  # later ones follow from the first that differs
