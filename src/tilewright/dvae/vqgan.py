"""VQGAN (Esser et al. 2021), the network of most image tokenizers that others have trained.

One class covers its relatives: LlamaGen, Janus, Chameleon, aMUSEd and MoVQ. They differ in widths,
in the levels with attention, and in their codebooks.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.checks import check_option, check_whole
from tilewright.dvae.losses import Laplace, Likelihood
from tilewright.dvae.quantizers.base import GumbelSoftmax, Quantizer
from tilewright.dvae.vqgan_layers import (
    Attention,
    Downsample,
    Level,
    Middle,
    NormFactory,
    ResidualBlock,
    Upsample,
)
from tilewright.errors import UserError

COMMITMENT = 0.25  # VQGAN's weight of the commitment, relative to that of the codebook
SCORES = 2**26  # scores of codes that are in memory at once: 256 MiB

Pixels = Literal["signed", "unit"]
CodebookKind = Literal["nearest", "cosine", "gumbel"]


class Codebook(Quantizer):
    """Codebook whose tokens are the indices of the nearest codes, which gradients train.

    The penalties are the squared distance that moves a code to its latents, `codebook`, and a
    quarter of the one that moves a latent to its code, `commitment`.

    Args:
        num_tokens: K, the number of codes.
        channels: D, their dimension.
        is_cosine: scale latents and codes to length 1 before the comparison, and codes also for the
            decoder.
    """

    penalties: tuple[str, ...] = ("codebook", "commitment")

    def __init__(self, num_tokens: int, channels: int, is_cosine: bool):
        super().__init__()
        self.num_tokens = num_tokens
        self.channels = channels
        self.vectors = nn.Parameter(torch.empty(num_tokens, channels))
        nn.init.normal_(self.vectors)
        self.is_cosine = is_cosine

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.normalize(latents, dim=1) if self.is_cosine else latents
            codes = self.codes(self.tokens(latents))
            penalties = {
                "codebook": _squared_distance(codes, latents.detach()),
                "commitment": COMMITMENT * _squared_distance(latents, codes.detach()),
            }
            return latents + (codes - latents).detach(), penalties

    def tokens(self, latents: Tensor) -> Tensor:
        """Returns the image tokens [B, h, w] of latents [B, D, h, w]."""
        with torch.autocast(latents.device.type, enabled=False):  # tokens must not depend on it
            queries, vectors = (
                self._scale(latents.float().movedim(1, -1)),
                self._scale(self.vectors),
            )
            offsets = vectors.square().sum(dim=1) / 2
            # |latent - code|^2 / 2 without the term of the latent, which all codes share.
            parts = queries.flatten(0, -2).split(max(1, SCORES // len(vectors)))
            indices = [torch.addmm(offsets, part, vectors.T, alpha=-1).argmin(1) for part in parts]
            return torch.cat(indices).view(queries.shape[:-1])

    def codes(self, tokens: Tensor) -> Tensor:
        """Returns the codes [B, D, h, w] of image tokens [B, h, w]."""
        # In channels_last, the group normalization of CPUs is several times less precise.
        return self._scale(self.vectors)[tokens].movedim(-1, 1).contiguous()

    def _scale(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.is_cosine else vectors


def _squared_distance(codes: Tensor, latents: Tensor) -> Tensor:
    return (codes - latents).square().sum(dim=1).mean()


class LogitCodebook(Codebook):
    """Codebook whose tokens are the indices of the largest logits, trained by Gumbel-softmax."""

    penalties = ("kl",)

    def __init__(self, num_tokens: int, channels: int):
        super().__init__(num_tokens, channels, is_cosine=False)
        self.logits = nn.Conv2d(channels, num_tokens, 1)
        self.relaxation = GumbelSoftmax(num_tokens)

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            weights, penalties = self.relaxation(self.logits(latents), temperature)
            return torch.einsum("bkhw,kd->bdhw", weights, self.vectors), penalties

    def tokens(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.logits(latents.float()).argmax(dim=1)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, channels, h, w]. See `VQGAN` for the arguments."""

    def __init__(
        self,
        *,
        channels: int,
        stem_width: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle_attention: bool,
        norm: NormFactory,
    ):
        super().__init__()
        self.stem = nn.Conv2d(3, stem_width, 3, padding=1)
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            Level(
                n_in,
                n_out,
                blocks,
                norm,
                level in attention,
                None if level == last else Downsample(n_out),
            )
            for level, (n_in, n_out) in enumerate(itertools.pairwise([stem_width, *widths]))
        )
        self.middle = Middle(widths[-1], norm, middle_attention)
        self.norm = norm(widths[-1])
        self.head = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for level in self.levels:
            x = level(x, None)
        return self.head(F.silu(self.norm(self.middle(x, None), None)))


class Decoder(nn.Module):
    """Projected codes [B, channels, h, w] to maps [B, num_maps, H, W] of a likelihood.

    See `VQGAN` for the other arguments.

    Its levels run from the coarsest to the finest.
    """

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        middle_attention: bool,
        norm: NormFactory,
        num_maps: int,
    ):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], norm, middle_attention)
        reversed_widths = [widths[-1], *widths[::-1]]
        levels = reversed(range(len(widths)))
        self.levels = nn.ModuleList(
            Level(
                n_in,
                n_out,
                blocks + 1,
                norm,
                level in attention,
                Upsample(n_out) if level else None,
            )
            for level, (n_in, n_out) in zip(
                levels, itertools.pairwise(reversed_widths), strict=True
            )
        )
        self.norm = norm(widths[0])
        self.head = nn.Conv2d(widths[0], num_maps, 3, padding=1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        x = self.middle(self.stem(x), codes)
        for level in self.levels:
            x = level(x, codes)
        return self.head(F.silu(self.norm(x, codes)))


class VQGAN(nn.Module):
    """Image tokenizer with a convolutional encoder, a codebook and a convolutional decoder.

    The defaults are those of taming-transformers with 16x16 pixels for each of 16384 tokens.

    Args:
        image_size: side of the images in pixels, any multiple of image_size / grid.
        grid: side of the grid of image tokens.
        num_tokens: K, the size of the codebook.
        code_dim: dimension of the codes.
        channels: channels of the encoder's output and of the decoder's input.
        widths: widths of the levels, from the finest resolution to the grid's.
        stem_width: width of the encoder's first convolution; None is that of the first level.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: indices of the levels with attention; 0 is the finest.
        middle_attention: use attention between encoder and codebook, and between codebook and
            decoder.
        groups: groups of the normalizations.
        codebook: choice of tokens: by the "nearest" code, the code of largest "cosine", or by
            logits ("gumbel").
        spatial_norm: the decoder's normalizations depend on the codes, as in MoVQ.
        pixels: range that the encoder reads: "signed" is [-1, 1], "unit" is [0, 1].
        likelihood: likelihood of pixel values. None is `Laplace` with maps of this range, as
            published decoders return.
        quantizer: quantizer of the latents, which replaces the `codebook`.

    Raises:
        UserError: a number is not possible, or the numbers do not fit together.
    """

    block_types = (ResidualBlock, Attention)
    shards_in_fp32 = True  # `encode` and `decode` run without autocast

    def __init__(
        self,
        *,
        image_size: int = 256,
        grid: int = 16,
        num_tokens: int = 16384,
        code_dim: int = 256,
        channels: int = 256,
        widths: Sequence[int] = (128, 128, 256, 256, 512),
        stem_width: int | None = None,
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        middle_attention: bool = True,
        groups: int = 32,
        codebook: CodebookKind = "nearest",
        spatial_norm: bool = False,
        pixels: Pixels = "signed",
        likelihood: Likelihood | None = None,
        quantizer: Quantizer | None = None,
    ):
        super().__init__()
        widths = list(widths)
        if not widths or not set(attention) <= set(range(len(widths))):
            raise UserError(
                f"model.network.widths={widths} with attention={list(attention)} is not possible: "
                "set a width for each level, and attention to some of their indices from 0"
            )
        stem_width = widths[0] if stem_width is None else stem_width
        sizes = {"image_size": image_size, "grid": grid, "num_tokens": num_tokens}
        sizes |= {"code_dim": code_dim, "channels": channels, "blocks": blocks, "groups": groups}
        sizes |= {f"widths.{level}": width for level, width in enumerate(widths)}
        for name, size in {**sizes, "stem_width": stem_width}.items():
            check_whole(f"model.network.{name}", size)
        check_option("model.network.codebook", codebook, get_args(CodebookKind))
        check_option("model.network.pixels", pixels, get_args(Pixels))
        _check_widths([stem_width, *widths], groups)
        factor = 2 ** (len(widths) - 1)
        if image_size != grid * factor:
            raise UserError(
                f"image_size={image_size} is not {factor} times the grid={grid}, as {len(widths)} "
                f"levels need: set a multiple of {factor}, such as image_size={grid * factor}"
            )
        if spatial_norm and code_dim != channels:
            raise UserError(
                f"model.network.spatial_norm=true needs code_dim={code_dim} and "
                f"channels={channels} to be equal: make them equal"
            )
        self.image_size = image_size
        self.grid = grid
        self.num_tokens = num_tokens
        self.pixels = pixels
        self.likelihood = likelihood or Laplace(maps=pixels)
        self.encoder = Encoder(
            channels=channels,
            stem_width=stem_width,
            widths=widths,
            blocks=blocks,
            attention=attention,
            middle_attention=middle_attention,
            norm=NormFactory(groups),
        )
        self.decoder = Decoder(
            channels=channels,
            widths=widths,
            blocks=blocks,
            attention=attention,
            middle_attention=middle_attention,
            norm=NormFactory(groups, code_dim if spatial_norm else None),
            num_maps=self.likelihood.num_maps,
        )
        self.to_latents = nn.Conv2d(channels, code_dim, 1)
        self.from_codes = nn.Conv2d(code_dim, channels, 1)
        self.codebook: Quantizer
        if quantizer is not None:
            self.codebook = quantizer
        elif codebook == "gumbel":
            self.codebook = LogitCodebook(num_tokens, code_dim)
        else:
            self.codebook = Codebook(num_tokens, code_dim, is_cosine=codebook == "cosine")
        if (self.codebook.num_tokens, self.codebook.channels) != (num_tokens, code_dim):
            raise UserError(
                f"model.network.num_tokens={num_tokens} or code_dim={code_dim} differs from the "
                f"quantizer's {self.codebook.num_tokens} and {self.codebook.channels}: make them "
                "equal"
            )

    @property
    def quantizer(self) -> Quantizer:
        """The codebook, under the name that it has in every image tokenizer."""
        return self.codebook

    def extra_repr(self) -> str:
        """Returns the settings that change the tokens and are not in the weights."""
        cosine = isinstance(self.codebook, Codebook) and self.codebook.is_cosine
        return f"pixels={self.pixels}, cosine={cosine}, groups={self.encoder.norm.num_groups}"

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the encoder and the decoder, because training calls each of them directly."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def latents(self, images: Tensor) -> Tensor:
        """Returns the codebook's input [B, code_dim, h, w], in fp32, for images in [0, 1].

        Raises:
            ValueError: the images are not [B, 3, image_size, image_size].
        """
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"expected images [B, 3, {side}, {side}], got {list(images.shape)}")
        hidden = self.encoder(2 * images - 1 if self.pixels == "signed" else images)
        with torch.autocast(images.device.type, enabled=False):
            return self.to_latents(hidden.float())

    def maps(self, codes: Tensor) -> Tensor:
        """Returns the likelihood's maps [B, num_maps, H, W] for the codebook's codes."""
        return self.decoder(self.from_codes(codes), codes)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the image tokens [B, h, w] of images [B, 3, H, W] in [0, 1].

        Raises:
            ValueError: the images are not [B, 3, image_size, image_size].
        """
        with torch.autocast(images.device.type, enabled=False):  # tokens must not depend on it
            return self.codebook.tokens(self.latents(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Returns the images [B, 3, H, W] in [0, 1] of image tokens [B, h, w]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.likelihood.image(self.maps(self.codebook.codes(tokens)))


def _check_widths(widths: Iterable[int], groups: int) -> None:
    for width in widths:
        if width % groups:
            raise UserError(
                f"model.network.groups={groups} does not divide a width of {width}: set a divisor"
            )
