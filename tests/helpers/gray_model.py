"""Untrained text-to-image model whose image tokens are gray tiles."""

import torch

from tilewright.data import BytePairTokenizer
from tilewright.pipeline import TextToImage
from tilewright.prior import Stream, Transformer

CAPTIONS = ["a red circle", "a blue ring", "two stars"]


class GrayTiles:
    """Image tokenizer whose token k is a tile of gray k / 7."""

    image_size, grid, num_tokens = 16, 2, 8

    def encode(self, images):
        return (images.mean(dim=1)[:, 4::8, 4::8] * 7).round().long()

    def decode(self, tokens):
        tiles = tokens.float()[:, None] / 7
        return tiles.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


class BrightnessRanker:
    """Ranker that prefers bright images. Records the size of each batch."""

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, model, captions, tokens):
        self.batch_sizes.append(tokens.shape[0] * tokens.shape[1])
        return model.decode(tokens).mean(dim=(2, 3, 4))


def make_tokenizer():
    tokenizer = BytePairTokenizer(vocab_size=300, length=8, dropout=0.0)
    tokenizer.train(CAPTIONS)
    return tokenizer


def make_model():
    torch.manual_seed(0)
    stream = Stream(text_length=8, text_vocab=300, grid=2, image_vocab=8)
    prior = Transformer(stream, dim=16, depth=2, heads=2).eval()
    with torch.no_grad():  # at the initial scale, captions hardly change the samples
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return TextToImage(prior, GrayTiles(), make_tokenizer())
