"""LlamaGen's text-to-image transformer against the equations of its code, in plain tensors.

The reference reads a state dict in the layout of the published checkpoints. It computes the whole
sequence at each step, and has the mask of the project's sampling script.
"""

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from helpers.command import command
from helpers.pretrained import save_t5
from helpers.public_priors import (
    LLAMAGEN,
    llamagen_layout,
    llamagen_text,
    make_llamagen,
    random_weights,
)
from tilewright import TextToImage
from tilewright.conversion import Conversion
from tilewright.errors import UserError
from tilewright.prior import CaptionStream, Sampling, log_likelihood, sample
from tilewright.prior.pretrained import LlamaGen, LlamaGenTransformer, llamagen
from tilewright.weight_files import Tensors

WEIGHTS = random_weights(llamagen_layout(**LLAMAGEN))
LENGTHS = (1, 3, 5, 2)  # an empty caption is its end token alone
GRID, VOCAB, HEADS = LLAMAGEN["grid"], LLAMAGEN["image_vocab"], LLAMAGEN["heads"]


def rms_norm(x, gain):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain


def rotations(text_length, width):
    """Complex numbers [L, width / 2] that rotate pairs of neighboring channels."""
    frequencies = 1 / 10000 ** (torch.arange(0, width // 2, 2) / (width // 2))
    table = [torch.zeros(width // 2, dtype=torch.complex64)] * text_length
    for row in range(GRID):
        for column in range(GRID):
            angles = torch.cat([row * frequencies, column * frequencies])
            table.append(torch.polar(torch.ones_like(angles), angles))
    return torch.stack(table)


def reference(weights, features, caption_mask, image):
    """Logits [B, n + 1, K] of image tokens 0 to n, from the features and the first n tokens [B, n].

    Args:
        features: [B, T, C].
        caption_mask: booleans [B, T], True for tokens of the caption.
    """
    w, length = weights, features.shape[1]
    hidden = F.gelu(features @ w["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    x = hidden @ w["cls_embedding.cap_proj.fc2.weight"].T
    x = torch.cat([x, w["tok_embeddings.weight"][image]], dim=1)
    positions = x.shape[1]
    visible = torch.ones(len(x), positions, positions).tril()
    visible[:, :, :length] *= caption_mask[:, None].float()
    visible = torch.maximum(visible, torch.eye(positions)).bool()[:, None]
    width = x.shape[-1] // HEADS
    table = rotations(length, width)[:positions, None]
    for layer in (f"layers.{i}." for i in range(LLAMAGEN["depth"])):
        y = rms_norm(x, w[layer + "attention_norm.weight"]) @ w[layer + "attention.wqkv.weight"].T
        q, k, v = y.unflatten(-1, (3, HEADS, width)).unbind(2)
        q, k = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (q, k))
        q, k = (torch.view_as_real(part * table).flatten(3) for part in (q, k))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / width**0.5
        attention = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", attention, v).flatten(2)
        x = x + y @ w[layer + "attention.wo.weight"].T
        y = rms_norm(x, w[layer + "ffn_norm.weight"])
        gate, up = (y @ w[f"{layer}feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w[layer + "feed_forward.w2.weight"].T
    return rms_norm(x, w["norm.weight"])[:, length - 1 :] @ w["output.weight"].T


def reference_of(text, image, with_caption=True, weights=WEIGHTS):
    features, mask = text[..., :-1], text[..., -1].bool()
    if not with_caption:  # the null caption keeps the mask of its caption
        features = torch.zeros_like(features) + weights["cls_embedding.uncond_embedding"]
    return reference(weights, features, mask, image)


def most_likely(text, guidance, weights=WEIGHTS):
    """Image tokens [B, N] at temperature 0."""
    tokens = torch.empty(len(text), 0, dtype=torch.long)
    for _ in range(GRID**2):
        logits = reference_of(text, tokens, weights=weights)[:, -1]
        if guidance != 1:
            empty = reference_of(text, tokens, with_caption=False, weights=weights)[:, -1]
            logits = empty + (logits - empty) * guidance
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens


@pytest.fixture(scope="module")
def network():
    return make_llamagen(dict(WEIGHTS))


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(VOCAB, (len(LENGTHS), GRID, GRID), generator=generator)


@pytest.mark.parametrize("with_caption", [True, False])
@torch.no_grad()
def test_logits_equal_the_reference_at_every_position(network, image, with_caption):
    text = llamagen_text(LENGTHS)
    expected = reference_of(text, image.flatten(1)[:, :-1], with_caption)
    if not with_caption:
        text = network.stream.without_caption(text)
    text_logits, logits = network(text, image)
    assert text_logits.numel() == 0
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for candidates in (1, 2):
        steps, caches = network.prefill(text, candidates)
        for index in range(GRID**2):
            if index > 0:
                tokens = image.flatten(1)[:, index - 1].repeat_interleave(candidates)
                steps = network.step(tokens, index - 1, caches)
            rows = expected[:, index].repeat_interleave(candidates, dim=0)
            torch.testing.assert_close(steps, rows, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@torch.no_grad()
def test_tokens_at_temperature_zero_equal_the_reference(network, guidance):
    text = llamagen_text(LENGTHS)
    expected = most_likely(text, guidance)
    tokens = sample(network, text, 2, sampling=Sampling(temperature=0, guidance=guidance))
    assert torch.equal(tokens[:, 0].flatten(1), expected)
    assert torch.equal(tokens[:, 0], tokens[:, 1])
    assert len(expected.unique(dim=0)) > 2


@torch.no_grad()
def test_log_likelihood_equals_the_reference(network, image):
    text = llamagen_text(LENGTHS)
    log_text, log_image = log_likelihood(network, text, image)
    logits = reference_of(text, image.flatten(1)[:, :-1])
    nats = F.cross_entropy(logits.transpose(1, 2), image.flatten(1), reduction="none")
    torch.testing.assert_close(log_image, -nats.sum(dim=1), rtol=0, atol=1e-3)
    assert log_text.isnan().all()


class TokenizerFamily:
    """Family in place of the image tokenizer's."""

    def convert(self, trust):
        return Conversion("dvae", {"grid": GRID, "num_tokens": LLAMAGEN["image_vocab"]}, {})


@pytest.mark.parametrize("entry", ["model", "module", "state_dict"])
def test_a_published_file_is_converted_with_its_sizes(network, tmp_path, entry):
    path = tmp_path / "t2i.pt"
    table = torch.zeros(21, 8, 2)  # some files have the rotary table
    torch.save({entry: {**WEIGHTS, "freqs_cis": table}, "steps": 7}, path)
    conversion = LlamaGen(str(path), TokenizerFamily(), heads=HEADS).convert(trust=True)
    assert conversion.network["stream"] == {
        "_target_": "tilewright.prior.CaptionStream",
        **{name: LLAMAGEN[name] for name in ("text_length", "features", "grid", "image_vocab")},
    }
    shape = {name: LLAMAGEN[name] for name in ("dim", "depth", "heads")}
    assert shape.items() <= conversion.network.items()
    ours = network.state_dict()
    assert conversion.weights.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in conversion.weights.items())
    assert conversion.dvae.stage == "dvae"
    assert conversion.sampling == {"guidance": 7.5, "top_k": 1000}
    assert conversion.tokenizer["length"] == LLAMAGEN["text_length"]


def reference_features(folder, captions, length):
    """Features of a T5 encoder in bf16, moved to the right as in the project's sampling script."""
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=length)
    tokenizer.enable_truncation(length)
    encoded = tokenizer.encode_batch(captions)
    ids = torch.tensor([encoding.ids for encoding in encoded])
    mask = torch.tensor([encoding.attention_mask for encoding in encoded])
    encoder = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    features = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    counts = mask.sum(dim=1).tolist()
    rows = [torch.cat([row[n:], row[:n]]) for row, n in zip(features, counts, strict=True)]
    mask = mask.flip(1)[..., None]
    return torch.cat([torch.stack(rows) * mask, mask], dim=2)


@torch.no_grad()
def test_published_files_generate_the_reference_images(tmp_path):
    references = pytest.importorskip("parity.vq_references", exc_type=ImportError)
    encoder = save_t5(tmp_path / "t5")
    sizes = {**LLAMAGEN, "features": 16, "text_length": 8}
    weights = random_weights(llamagen_layout(**sizes))
    torch.save({"model": weights}, tmp_path / "t2i.pt")
    vq, size = references.randomize(references.LlamaGenVQ(GRID * 8, codes=VOCAB)), GRID * 8
    vq.write(tmp_path / "vq.pt")
    arguments = {
        "family": "llamagen",
        "family.checkpoint": tmp_path / "t2i.pt",
        "family.text_encoder": encoder,
        "family.heads": HEADS,
        "family.dvae.checkpoint": tmp_path / "vq.pt",
        "family.dvae.image_size": size,
        "out": tmp_path / "model",
        "trust": "true",
    }
    assert command("convert", [f"{key}={value}" for key, value in arguments.items()]) is None
    model = TextToImage.from_pretrained(tmp_path / "model")
    assert model.sampling == Sampling(top_k=1000, guidance=7.5)
    captions = ["A Red circle", "", "two large stars on the left of a gold ring"]
    text = model.tokenizer.encode(captions)
    expected = reference_features(encoder, [c.lower() for c in captions], sizes["text_length"])
    assert text[..., -1].sum(dim=1).tolist()[1:] == [1, 8]
    torch.testing.assert_close(text, expected, rtol=0.02, atol=0.02)
    tokens = most_likely(text, 7.5, weights).view(-1, GRID, GRID)
    pixels = ((vq.decode(tokens) + 1) / 2).clamp(0, 1)
    images = model.generate(captions, sampling=Sampling(temperature=0, guidance=7.5)).images
    torch.testing.assert_close(images[:, 0], pixels, rtol=0, atol=1e-4)


def test_a_folder_of_a_text_encoder_is_named_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t5").mkdir()
    assert llamagen.resolve_encoder("t5") == str(tmp_path / "t5")
    assert llamagen.resolve_encoder("google/flan-t5-xl") == "google/flan-t5-xl"
    for missing in ("./t6", str(tmp_path / "t6")):
        with pytest.raises(UserError, match="does not exist"):
            llamagen.resolve_encoder(missing)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    def refusal(weights, heads=HEADS):
        path = tmp_path / "t2i.pt"
        torch.save({"model": weights}, path)
        with pytest.raises(UserError) as error:
            LlamaGen(str(path), TokenizerFamily(), heads=heads).convert(trust=True)
        assert "\n" not in str(error.value)
        return str(error.value)

    grouped = {**WEIGHTS, "layers.0.attention.wqkv.weight": torch.zeros(64, 32)}
    assert "wqkv.weight of shape [64, 32] instead of [96, 32]" in refusal(grouped)
    classes = {k: v for k, v in WEIGHTS.items() if "uncond" not in k}
    assert "has no tensor cls_embedding.uncond_embedding" in refusal(classes)
    assert "heads=3 does not divide" in refusal(WEIGHTS, heads=3)
    assert "heads=0 is not possible" in refusal(WEIGHTS, heads=None)  # 32 channels


def test_the_published_size_has_775_million_parameters_and_a_place_for_every_tensor():
    sizes = {"dim": 1280, "depth": 36, "text_length": 120, "features": 2048, "image_vocab": 16384}
    layout = llamagen_layout(**sizes)
    with torch.device("meta"):
        public = {name: torch.empty(shape) for name, shape in layout.items()}
        ours = LlamaGenTransformer(CaptionStream()).state_dict()
    count = sum(value.numel() for value in public.values())
    class_conditional = count - 120 * 2048 - 2048 * 1280 - 1280**2 + 1001 * 1280
    assert round(class_conditional / 1e6) == 775
    converted = llamagen.convert_weights(Tensors(public, "the checkpoint"), depth=36, heads=20)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    assert sum(value.numel() for value in ours.values()) == count
