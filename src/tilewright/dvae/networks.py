"""Encoder and decoder of the discrete VAE, and the model that joins them.

The architecture is that of the modules that OpenAI released (section 2.1, appendix A). The
convolutions next to the relaxation are 1x1. Residual branches are scaled by 1 / layers^2. The
encoder downsamples by max-pooling, the decoder upsamples by nearest neighbors.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilewright.checks import check_whole
from tilewright.dvae.losses import Likelihood, LogitLaplace, map_pixels
from tilewright.dvae.quantizers.base import GumbelSoftmax, Quantizer
from tilewright.errors import UserError

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def conv(n_in: int, n_out: int, kernel: int, padding_mode: PaddingMode = "zeros") -> nn.Conv2d:
    """Returns a convolution that keeps height and width, initialized as in the released modules."""
    if kernel == 1:
        padding_mode = "zeros"  # other modes copy the input even if nothing is padded
    layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, padding_mode=padding_mode)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(n_in * kernel**2))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Four convolutions on a shortcut: [B, n_in, H, W] to [B, n_out, H, W].

    The shortcut is the identity, or a 1x1 convolution if the width changes.

    Args:
        n_in, n_out: widths of input and output; the hidden width is n_out / 4.
        kernels: kernel sizes of the four convolutions.
        gain: factor of the convolutions' output.
        padding_mode: padding of the convolutions.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernels: tuple[int, int, int, int],
        gain: float,
        padding_mode: PaddingMode = "zeros",
    ):
        super().__init__()
        widths = [n_in, n_out // 4, n_out // 4, n_out // 4, n_out]
        layers: list[nn.Module] = []
        for kernel, w_in, w_out in zip(kernels, widths, widths[1:], strict=False):
            layers += [nn.ReLU(), conv(w_in, w_out, kernel, padding_mode)]
        self.shortcut = nn.Identity() if n_in == n_out else conv(n_in, n_out, 1)
        self.branch = nn.Sequential(*layers)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.gain * self.branch(x)


class InFloat32(nn.Module):
    """Wrapper that runs a layer in fp32 under autocast, as layers next to the relaxation need."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def group_widths(factor: int, n_hid: int) -> list[int]:
    """Returns the width of each group of blocks, from the finest resolution to the grid's.

    The width doubles each time the resolution halves. The paper's factor 8 gives four groups:
    n_hid, 2 n_hid, 4 n_hid, 8 n_hid.

    Args:
        factor: finest resolution divided by the grid's, a power of two.
    """
    return [2**i * n_hid for i in range(int(math.log2(factor)) + 1)]


def branch_gain(groups: int, blocks_per_group: int) -> float:
    """Returns the gain of residual branches, 1 / layers^2, which keeps deep stacks stable."""
    return 1 / (groups * blocks_per_group) ** 2


class Encoder(nn.Sequential):
    """Mapped pixels [B, 3, H, W] to latents [B, channels, h, w]: logits over the codebook.

    See `DiscreteVAE` for the arguments.
    """

    def __init__(
        self,
        *,
        factor: int,
        channels: int,
        n_hid: int,
        blocks_per_group: int,
        kernel: int,
        stem_kernel: int,
        padding_mode: PaddingMode,
        patch: int,
    ):
        widths = group_widths(factor // patch, n_hid)
        gain = branch_gain(len(widths), blocks_per_group)
        kernels = (kernel, kernel, kernel, 1)
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch)] if patch > 1 else []
        layers.append(conv(3 * patch**2, n_hid, stem_kernel, padding_mode))
        n_in = n_hid
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(blocks_per_group):
                layers.append(ResidualBlock(n_in, width, kernels, gain, padding_mode))
                n_in = width
        super().__init__(*layers, nn.ReLU(), InFloat32(conv(n_in, channels, 1)))

    # torch.compile skips the forward of torch's own modules and would compile block by block.
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)


class Decoder(nn.Sequential):
    """Codes [B, channels, h, w] to the maps of a likelihood [B, num_maps, H, W].

    See `DiscreteVAE` for the arguments.
    """

    def __init__(
        self,
        *,
        factor: int,
        channels: int,
        n_hid: int,
        n_init: int,
        blocks_per_group: int,
        kernel: int,
        num_maps: int,
        patch: int,
    ):
        widths = group_widths(factor // patch, n_hid)[::-1]
        gain = branch_gain(len(widths), blocks_per_group)
        kernels = (1, kernel, kernel, kernel)
        layers: list[nn.Module] = [InFloat32(conv(channels, n_init, 1))]
        n_in = n_init
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            for _ in range(blocks_per_group):
                layers.append(ResidualBlock(n_in, width, kernels, gain))
                n_in = width
        layers += [nn.ReLU(), conv(n_in, num_maps * patch**2, 1)]
        super().__init__(*layers, *([nn.PixelShuffle(patch)] if patch > 1 else []))

    def forward(self, codes: Tensor) -> Tensor:  # for torch.compile, as in the encoder
        return super().forward(codes)


class DiscreteVAE(nn.Module):
    """Stage 1: turns an image into a grid of image tokens, and a grid of tokens into an image.

    The defaults are the paper's: 256x256 images, a 32x32 grid, 8192 image tokens.

    Args:
        image_size: side of the images in pixels.
        grid: side of the grid of image tokens; image_size / grid is a power of two.
        num_tokens: K, the size of the codebook.
        patch: side of the pixel patches that encoder and decoder work on (space-to-depth); 1 in the
            paper. Larger patches leave out the blocks of finer resolutions.
        n_hid: width of the blocks at the finest resolution; it doubles with each halving.
        n_init: width of the decoder's first convolution.
        blocks_per_group: residual blocks per resolution.
        encoder_kernel: kernel size of the encoder's blocks. With 1, a token sees only its own tile
            and the few pixels around it that the stem reaches.
        decoder_kernel: kernel size of the decoder's blocks.
        stem_kernel: kernel size of the encoder's first convolution.
        padding_mode: padding of the encoder's convolutions, as in `torch.nn.Conv2d`. With
            "replicate", tiles at the border look like tiles inside the image.
        likelihood: likelihood of pixel values; the paper's by default.
        quantizer: quantizer of the latents; the paper's by default.

    Raises:
        UserError: a number is not possible.
        ValueError: image_size, grid and patch do not fit together, or the quantizer has another
            number of tokens.
    """

    block_types = (ResidualBlock,)

    def __init__(
        self,
        *,
        image_size: int = 256,
        grid: int = 32,
        num_tokens: int = 8192,
        patch: int = 1,
        n_hid: int = 256,
        n_init: int = 128,
        blocks_per_group: int = 2,
        encoder_kernel: int = 3,
        decoder_kernel: int = 3,
        stem_kernel: int = 7,
        padding_mode: PaddingMode = "zeros",
        likelihood: Likelihood | None = None,
        quantizer: Quantizer | None = None,
    ):
        super().__init__()
        sizes = {
            "image_size": image_size,
            "grid": grid,
            "num_tokens": num_tokens,
            "patch": patch,
            "n_hid": n_hid,
        }
        sizes |= {"n_init": n_init, "blocks_per_group": blocks_per_group}
        for name, size in sizes.items():
            check_whole(f"model.network.{name}", size)
        kernels = {"encoder": encoder_kernel, "decoder": decoder_kernel, "stem": stem_kernel}
        for name, kernel in kernels.items():
            check_whole(f"model.network.{name}_kernel", kernel)
            if kernel % 2 == 0:
                raise UserError(f"model.network.{name}_kernel={kernel} is even: set an odd number")
        factor, remainder = divmod(image_size, grid)
        if remainder or factor < 1 or factor & (factor - 1):
            raise ValueError(f"image_size / grid must be a power of two, got {image_size} / {grid}")
        if factor % patch:
            raise ValueError(f"patch must divide image_size / grid = {factor}, got {patch}")
        self.image_size = image_size
        self.grid = grid
        self.num_tokens = num_tokens
        self.likelihood = likelihood or LogitLaplace()
        self.quantizer = quantizer or GumbelSoftmax(num_tokens)
        if self.quantizer.num_tokens != num_tokens:
            raise ValueError(
                f"num_tokens={num_tokens} differs from the quantizer's "
                f"{self.quantizer.num_tokens}: make them equal"
            )
        self.encoder = Encoder(
            factor=factor,
            channels=self.quantizer.channels,
            n_hid=n_hid,
            blocks_per_group=blocks_per_group,
            kernel=encoder_kernel,
            stem_kernel=stem_kernel,
            padding_mode=padding_mode,
            patch=patch,
        )
        self.decoder = Decoder(
            factor=factor,
            channels=self.quantizer.channels,
            n_hid=n_hid,
            n_init=n_init,
            blocks_per_group=blocks_per_group,
            kernel=decoder_kernel,
            num_maps=self.likelihood.num_maps,
            patch=patch,
        )
        # Convolutions on CPUs and tensor cores are faster in channels_last.
        self.to(memory_format=torch.channels_last)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the encoder and the decoder, because training calls each of them directly."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def latents(self, images: Tensor) -> Tensor:
        """Returns the quantizer's input [B, C, h, w], in fp32, for images [B, 3, H, W] in [0, 1].

        In the paper's dVAE these are the logits of the posterior over the codebook.

        Raises:
            ValueError: the images are not [B, 3, image_size, image_size].
        """
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"expected images [B, 3, {side}, {side}], got {list(images.shape)}")
        return self.encoder(map_pixels(images))

    def maps(self, codes: Tensor) -> Tensor:
        """Returns the likelihood's maps [B, num_maps, H, W] for the quantizer's codes."""
        return self.decoder(codes)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns the image tokens [B, h, w] of images [B, 3, H, W] in [0, 1], without noise."""
        return self.quantizer.tokens(self.latents(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Returns the images [B, 3, H, W] in [0, 1] of image tokens [B, h, w]."""
        return self.likelihood.image(self.maps(self.quantizer.codes(tokens))).contiguous()
