"""minDALL-E's transformer against the equations of its code, in plain tensors.

The reference reads a state dict in the layout of the published checkpoint. It computes the whole
sequence at each step.
"""

import pytest
import torch
from tokenizers import CharBPETokenizer
from torch.nn import functional as F

from helpers.command import command
from helpers.public_priors import (
    MINDALLE,
    make_mindalle,
    mindalle_config,
    mindalle_layout,
    mindalle_text,
    random_weights,
    write_mindalle,
)
from tilewright import TextToImage
from tilewright.conversion import Conversion
from tilewright.errors import UserError
from tilewright.prior import PlainStream, Sampling, log_likelihood, sample
from tilewright.prior.pretrained import MinDALLE, MinDALLETransformer, mindalle
from tilewright.weight_files import Tensors

WEIGHTS = random_weights(mindalle_layout(**MINDALLE))
LENGTHS = (0, 2, 6)
GRID, VOCAB, HEADS, LENGTH = (MINDALLE[n] for n in ("grid", "image_vocab", "heads", "text_length"))
PADDING = 3
CONFIG = mindalle_config(**MINDALLE)


def layer_norm(x, w, name):
    x = x - x.mean(-1, keepdim=True)
    return (
        x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"]
        + w[name + ".bias"]
    )


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def reference(w, text, image):
    """Logits of the text [B, T - 1, V] and of image tokens 0 to n [B, n + 1, K].

    Args:
        text: text tokens [B, T], padded.
        image: the first n image tokens [B, n].
    """
    x = torch.cat(
        [
            w["tok_emb_txt.weight"][text] + w["pos_emb_txt.weight"],
            w["tok_emb_img.weight"][image] + w["pos_emb_img.weight"][: image.shape[1]],
        ],
        dim=1,
    )
    for block in (f"blocks.{i}." for i in range(MINDALLE["depth"])):
        y = layer_norm(x, w, block + "ln1")
        q, k, v = (
            linear(y, w, f"{block}attn.{name}").unflatten(-1, (HEADS, -1))
            for name in ("query", "key", "value")
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        causal = torch.ones(scores.shape[-2:]).tril().bool()
        attention = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", attention, v).flatten(2)
        x = x + linear(y, w, block + "attn.proj")
        y = linear(layer_norm(x, w, block + "ln2"), w, block + "mlp.0")
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = x + linear(y, w, block + "mlp.2")
    x = layer_norm(x, w, "ln_f")
    text_states, image_states = x[:, : LENGTH - 1], x[:, LENGTH - 1 :]
    return text_states @ w["head_txt.weight"].T, image_states @ w["head_img.weight"].T


def reference_of(text, image):
    return reference(WEIGHTS, torch.where(text < 0, PADDING, text), image)


@pytest.fixture(scope="module")
def network():
    return make_mindalle(dict(WEIGHTS), padding_token=PADDING)


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(VOCAB, (len(LENGTHS), GRID, GRID), generator=generator)


@torch.no_grad()
def test_logits_equal_the_reference_at_every_position(network, image):
    text = mindalle_text(LENGTHS)
    expected_text, expected = reference_of(text, image.flatten(1)[:, :-1])
    text_logits, logits = network(text, image)
    assert expected.std() > 0.5
    torch.testing.assert_close(text_logits, expected_text, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    for position in range(1, LENGTH):
        actual = network.next_text(text[:, :position])
        torch.testing.assert_close(actual, expected_text[:, position - 1], rtol=0, atol=1e-4)
    for candidates in (1, 2):
        steps, caches = network.prefill(text, candidates)
        for index in range(GRID**2):
            if index > 0:
                tokens = image.flatten(1)[:, index - 1].repeat_interleave(candidates)
                steps = network.step(tokens, index - 1, caches)
            rows = expected[:, index].repeat_interleave(candidates, dim=0)
            torch.testing.assert_close(steps, rows, rtol=0, atol=1e-4)


def most_likely(text):
    """Image tokens [B, N] at temperature 0."""
    tokens = torch.empty(len(text), 0, dtype=torch.long)
    for _ in range(GRID**2):
        logits = reference_of(text, tokens)[1][:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens


@torch.no_grad()
def test_tokens_at_temperature_zero_equal_the_reference(network):
    text = mindalle_text(LENGTHS)
    expected = most_likely(text)
    tokens = sample(network, text, 2, sampling=Sampling(temperature=0))
    assert torch.equal(tokens[:, 0].flatten(1), expected)
    assert len(expected.unique(dim=0)) == len(text)


@torch.no_grad()
def test_log_likelihood_equals_the_reference(network, image):
    text = mindalle_text(LENGTHS)
    log_text, log_image = log_likelihood(network, text, image)
    text_logits, logits = reference_of(text, image.flatten(1)[:, :-1])
    nats = F.cross_entropy(logits.transpose(1, 2), image.flatten(1), reduction="none")
    torch.testing.assert_close(log_image, -nats.sum(dim=1), rtol=0, atol=1e-3)
    assert log_text[0] == 0  # the first token is given, also if it is padding
    log_p = text_logits.log_softmax(dim=-1)[1]
    expected = log_p[0, text[1, 1]] + log_p[1, PADDING]  # the second token, and the caption's end
    torch.testing.assert_close(log_text[1], expected, rtol=0, atol=1e-4)


class TokenizerFamily:
    """Family in place of the image tokenizer's."""

    def convert(self, trust):
        return Conversion("dvae", {"grid": GRID, "num_tokens": MINDALLE["image_vocab"]}, {})


def test_a_published_folder_is_converted_with_its_tokenizer(network, tmp_path):
    folder = write_mindalle(tmp_path / "1.3B")
    conversion = MinDALLE(str(folder), TokenizerFamily()).convert(trust=True)
    assert conversion.network["stream"] == {
        "_target_": "tilewright.prior.PlainStream",
        **{name: MINDALLE[name] for name in ("text_length", "text_vocab", "grid", "image_vocab")},
        "padding_token": PADDING,
    }
    shape = {name: MINDALLE[name] for name in ("dim", "depth", "heads")}
    assert shape.items() <= conversion.network.items()
    ours = network.state_dict()
    assert conversion.weights.keys() == ours.keys()
    assert all(torch.equal(ours[name], value) for name, value in conversion.weights.items())
    assert conversion.caption_dropout == 0
    assert conversion.dvae.stage == "dvae"


def reference_tokenizer(folder):
    files = [str(folder / "tokenizer" / f"bpe-16k-{n}") for n in ("vocab.json", "merges.txt")]
    tokenizer = CharBPETokenizer.from_file(*files, unk_token="[UNK]", lowercase=True, dropout=None)
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.enable_padding(length=LENGTH, pad_id=tokenizer.token_to_id("[PAD]"))
    tokenizer.enable_truncation(max_length=LENGTH)
    return tokenizer


def test_a_published_folder_generates_the_reference_images(tmp_path):
    references = pytest.importorskip("parity.vq_references", exc_type=ImportError)
    folder, size = write_mindalle(tmp_path / "1.3B"), GRID * 8
    vqgan = references.randomize(references.TamingVQGAN(size, [GRID], codes=VOCAB))
    torch.save({"state_dict": vqgan.state_dict()}, folder / "stage1_last.ckpt")
    arguments = ["family=mindalle", f"family.folder={folder}", f"family.dvae.image_size={size}"]
    out = tmp_path / "model"
    assert command("convert", [*arguments, f"out={out}", "trust=true"]) is None
    model = TextToImage.from_pretrained(out)
    assert model.sampling == Sampling(top_k=256)
    captions = ["A bad  CAB", "", "zebra, face!", "Éa b\n[PAD] c", "aaaaaaaaaaaaaaa"]
    encodings = reference_tokenizer(folder).encode_batch(captions)
    text = torch.tensor([encoding.ids for encoding in encodings])
    assert torch.equal(model.prior.stream.pad(model.tokenizer.encode(captions)), text)
    with torch.no_grad():
        tokens = most_likely(text).view(-1, GRID, GRID)
        expected = ((vqgan.decode(tokens) + 1) / 2).clamp(0, 1)
    images = model.generate(captions, sampling=Sampling(temperature=0)).images[:, 0]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="needs a prior that has seen empty captions"):
        model.generate(captions, sampling=Sampling(guidance=2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": CONFIG.replace("n_heads: 4", "gelu_use_approx: true")}, "gelu_use_approx=True"),
        ({"config": CONFIG.replace("img: 16", "img: 15")}, "ctx_len_img=15, which is not a square"),
        ({"config": CONFIG.replace("n_heads: 4", "n_heads: 0")}, "n_heads=0 is not possible"),
        ({"config": "stage1: {}"}, "is not a configuration of minDALL-E"),
        ({"config": CONFIG.replace("txt: 40", "txt: 20")}, "has 22 tokens with [PAD], more than"),
        ({"weights": {**WEIGHTS, "sos": torch.zeros(1)}}, "1 tensors without a place"),
    ],
)
def test_folders_that_do_not_fit_are_refused_in_one_line(tmp_path, change, message):
    folder = write_mindalle(tmp_path / "1.3B", **change)
    with pytest.raises(UserError) as error:
        MinDALLE(str(folder), TokenizerFamily()).convert(trust=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer/bpe-16k-merges.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_mindalle(tmp_path / "1.3B")
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        MinDALLE(str(folder), TokenizerFamily()).convert(trust=True)


def test_the_published_size_has_1300_million_parameters_and_a_place_for_every_tensor():
    sizes = {"dim": 1536, "depth": 42, "text_length": 64, "text_vocab": 16384}
    layout = mindalle_layout(**sizes, image_vocab=16384, grid=16)
    with torch.device("meta"):
        public = {name: torch.empty(shape) for name, shape in layout.items()}
        ours = MinDALLETransformer(PlainStream()).state_dict()
    count = sum(value.numel() for value in public.values())
    assert round(count / 1e8) == 13
    published = {**mindalle.SIZES, "vocab_size_txt": 16384, "vocab_size_img": 16384}
    converted = mindalle.convert_weights(Tensors(public, "the checkpoint"), published)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}
    assert sum(value.numel() for value in ours.values()) == count
