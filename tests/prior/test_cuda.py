"""Code paths that only run on a GPU, against plain code on the same GPU."""

import pytest
import torch

from tilewright.prior import Sampling, Stream, Transformer, sample
from tilewright.prior.attention import attend, attention_mask
from tilewright.prior.patterns import PATTERNS, dense_mask

pytestmark = [
    pytest.mark.slow,  # FlexAttention and CUDA graphs compile first
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
STREAM = Stream(text_length=40, text_vocab=9, grid=12, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def make_network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=64, heads=2, depth=4, **parts)
    with torch.no_grad():  # larger weights, so that outputs depend on captions and earlier tokens
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.cuda()


def make_batch(size):
    torch.manual_seed(1)
    text, image = torch.randint(9, (size, 40)), torch.randint(16, (size, 12, 12))
    return text.cuda(), image.cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_flex_attention_equals_attention_with_the_dense_mask(pattern, dtype):
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 2, STREAM.length, 32, device="cuda", dtype=dtype)
    mask = dense_mask(pattern, STREAM).cuda()

    def dense(q, k, v):
        scores = (q @ k.mT / 32**0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1) @ v

    def flex(q, k, v):
        return attend(q, k, v, attention_mask(pattern, STREAM, q.device, q.dtype))

    def output_and_gradients(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in qkv]
        y = function(*inputs)
        return [y, *torch.autograd.grad(y.square().sum(), inputs)]

    actual, expected = output_and_gradients(flex, dtype), output_and_gradients(dense, torch.float64)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x.double(), y, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
def test_compiled_network_has_the_gradients_of_the_eager_one(parts, checkpointing):
    gradients = []
    for compiled in (False, True):
        network = make_network(checkpointing=checkpointing, **parts)
        if compiled:
            network.compile()
        text, image = make_batch(2)
        network.stream.loss(*network(text, image), text, image)["loss"].backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("candidates", [1, 3])
@torch.no_grad()
def test_cuda_graph_samples_the_images_of_eager_steps(captions, candidates):
    network, (text, _) = make_network(**MODERN).eval(), make_batch(captions)
    settings = {"guidance": 2.0, "temperature": 0.7}
    eager = sample(network, text, candidates, sampling=Sampling(**settings), seed=5)
    replayed = sample(
        network, text, candidates, sampling=Sampling(**settings, compile=True), seed=5
    )
    assert eager.unique().numel() > 4
    assert torch.equal(replayed, eager)


@torch.no_grad()
def test_cuda_graph_with_bf16_weights_starts_images_like_fp32():
    network, (text, _) = make_network(**MODERN).eval(), make_batch(2)
    tokens = {}
    for weights in ("float32", "bfloat16"):
        sampling = Sampling(temperature=0, weights=weights, compile=True)
        tokens[weights] = sample(network, text, 2, sampling=sampling)
    is_equal = tokens["bfloat16"] == tokens["float32"]
    # Only the first rows: after one different token, an image goes its own way.
    assert is_equal[:, :, :2].float().mean() > 0.8
