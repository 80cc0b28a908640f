"""Public layouts of LlamaGen's and minDALL-E's priors, with random weights of any size.

Each layout is the state dict of the published checkpoint: names and shapes.
"""

import json

import torch

from tilewright.prior import CaptionStream, PlainStream
from tilewright.prior.pretrained import llamagen, mindalle
from tilewright.weight_files import Tensors

LLAMAGEN = {
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "text_length": 5,
    "features": 6,
    "image_vocab": 24,
    "grid": 4,
}
MINDALLE = {
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "text_length": 6,
    "text_vocab": 40,
    "image_vocab": 24,
    "grid": 4,
}


def llamagen_layout(dim, depth, text_length, features, image_vocab, **_):
    hidden = -(-int(8 * dim / 3) // 256) * 256
    layer = {
        "attention.wqkv.weight": (3 * dim, dim),
        "attention.wo.weight": (dim, dim),
        "feed_forward.w1.weight": (hidden, dim),
        "feed_forward.w3.weight": (hidden, dim),
        "feed_forward.w2.weight": (dim, hidden),
        "attention_norm.weight": (dim,),
        "ffn_norm.weight": (dim,),
    }
    return {
        "cls_embedding.uncond_embedding": (text_length, features),
        "cls_embedding.cap_proj.fc1.weight": (dim, features),
        "cls_embedding.cap_proj.fc2.weight": (dim, dim),
        "tok_embeddings.weight": (image_vocab, dim),
        "norm.weight": (dim,),
        "output.weight": (image_vocab, dim),
        **{f"layers.{i}.{name}": shape for i in range(depth) for name, shape in layer.items()},
    }


def mindalle_layout(dim, depth, text_length, text_vocab, image_vocab, grid, **_):
    layer = {
        **{f"{norm}.{kind}": (dim,) for norm in ("ln1", "ln2") for kind in ("weight", "bias")},
        **{f"attn.{name}.weight": (dim, dim) for name in ("key", "query", "value", "proj")},
        **{f"attn.{name}.bias": (dim,) for name in ("key", "query", "value", "proj")},
        "mlp.0.weight": (4 * dim, dim),
        "mlp.0.bias": (4 * dim,),
        "mlp.2.weight": (dim, 4 * dim),
        "mlp.2.bias": (dim,),
    }
    return {
        "tok_emb_img.weight": (image_vocab, dim),
        "tok_emb_txt.weight": (text_vocab, dim),
        "pos_emb_img.weight": (grid**2, dim),
        "pos_emb_txt.weight": (text_length, dim),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in layer.items()},
        "ln_f.weight": (dim,),
        "ln_f.bias": (dim,),
        "head_img.weight": (image_vocab, dim),
        "head_txt.weight": (text_vocab, dim),
    }


def random_weights(layout):
    """Returns a state dict of a layout, large enough that logits differ clearly."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in layout.items():
        values = torch.randn(shape, generator=generator)
        is_gain = len(shape) == 1 and name.endswith("weight")
        scale = 1.0 if "emb" in name else 0.1 if len(shape) == 1 else 1.5 * shape[-1] ** -0.5
        weights[name] = is_gain + scale * values
    return weights


def mindalle_config(dim, depth, heads, text_length, text_vocab, image_vocab, grid):
    """Returns the text of minDALL-E's `config.yaml`."""
    return f"""
stage2:
  vocab_size_txt: {text_vocab}
  vocab_size_img: {image_vocab}
  hparams:
    embed_dim: {dim}
    n_layers: {depth}
    n_heads: {heads}
    ctx_len_img: {grid**2}
    ctx_len_txt: {text_length}
"""


def write_llamagen(file, sizes):
    """Writes a checkpoint in the form of the published one."""
    torch.save({"model": random_weights(llamagen_layout(**sizes)), "steps": 3}, file)


def write_mindalle(folder, weights=None, config=None, sizes=None):
    """Writes a folder in the form of the published one, with a tokenizer of 22 tokens."""
    sizes = sizes or MINDALLE
    letters = [*"abcdefghij"]
    tokens = ["[UNK]", "a", "b", "[PAD]", *letters[2:], *(f"{letter}</w>" for letter in letters)]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "bpe-16k-vocab.json").write_text(json.dumps(vocab))
    (folder / "tokenizer" / "bpe-16k-merges.txt").write_text("#version: 0.2\n")
    (folder / "config.yaml").write_text(config or mindalle_config(**sizes))
    weights = weights or random_weights(mindalle_layout(**sizes))
    torch.save({"state_dict": weights}, folder / "stage2_last.ckpt")
    return folder


def make_llamagen(weights, sizes=None):
    """Returns our network with the weights of the public layout."""
    sizes = sizes or LLAMAGEN
    stream = CaptionStream(
        sizes["text_length"], sizes["features"], sizes["grid"], sizes["image_vocab"]
    )
    shape = {name: sizes[name] for name in ("dim", "depth", "heads")}
    network = llamagen.LlamaGenTransformer(stream, **shape).eval()
    converted = llamagen.convert_weights(
        Tensors(weights, "the checkpoint"), sizes["depth"], sizes["heads"]
    )
    network.load_state_dict(converted, assign=True)
    return network.requires_grad_()


def make_mindalle(weights, sizes=None, padding_token=3):
    """Returns our network with the weights of the public layout."""
    sizes = sizes or MINDALLE
    stream = PlainStream(
        sizes["text_length"],
        sizes["text_vocab"],
        sizes["grid"],
        sizes["image_vocab"],
        padding_token=padding_token,
    )
    shape = {name: sizes[name] for name in ("dim", "depth", "heads")}
    network = mindalle.MinDALLETransformer(stream, **shape).eval()
    names = {
        "embed_dim": "dim",
        "n_layers": "depth",
        "ctx_len_txt": "text_length",
        "vocab_size_txt": "text_vocab",
        "vocab_size_img": "image_vocab",
    }
    public = {name: sizes[ours] for name, ours in names.items()}
    converted = mindalle.convert_weights(
        Tensors(weights, "the checkpoint"), {**public, "ctx_len_img": sizes["grid"] ** 2}
    )
    network.load_state_dict(converted, assign=True)
    return network.requires_grad_()


def llamagen_text(lengths, sizes=None):
    """Returns random caption features, padded on the left."""
    sizes = sizes or LLAMAGEN
    length, width = sizes["text_length"], sizes["features"]
    text = torch.randn(len(lengths), length, width + 1, generator=torch.Generator().manual_seed(1))
    for row, tokens in enumerate(lengths):
        text[row, : length - tokens] = 0
        text[row, length - tokens :, -1] = 1
    return text


def mindalle_text(lengths, sizes=None):
    """Returns random text tokens without the padding token 3, negative after the caption's end."""
    sizes = sizes or MINDALLE
    generator = torch.Generator().manual_seed(1)
    shape = len(lengths), sizes["text_length"]
    text = torch.randint(4, sizes["text_vocab"], shape, generator=generator)
    for row, tokens in enumerate(lengths):
        text[row, tokens:] = -1
    return text
