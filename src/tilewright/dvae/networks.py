"""The discrete VAE's two convolutional networks, and the model that joins them.

The architecture is that of the released modules (paper.md of the field: Ramesh et al. 2021,
section 2.1 and appendix A): 1x1 convolutions next to the relaxation, residual blocks whose branch
starts small (gain 1 / layers^2), max-pooling down, nearest-neighbor upsampling up.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilewright.dvae.losses import Likelihood, LogitLaplace, map_pixels
from tilewright.dvae.quantizers.base import GumbelSoftmax, Quantizer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def conv(n_in: int, n_out: int, kernel: int, padding_mode: PaddingMode = "zeros") -> nn.Conv2d:
    """A convolution that keeps the picture's size, initialized as the released modules are."""
    mode: PaddingMode = (
        padding_mode if kernel > 1 else "zeros"
    )  # padding by nothing costs a copy all the same
    layer = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, padding_mode=mode)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(n_in * kernel**2))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Identity (or a 1x1 convolution where the width changes) plus a small residual branch.

    Args:
        kernels: the kernel sizes of the branch's four convolutions; its hidden width is n_out / 4.
        gain: factor on the branch.
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
    """Runs a layer in fp32 under autocast: the convolutions that touch the relaxation need it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def group_widths(factor: int, n_hid: int) -> list[int]:
    """Widths of the groups of blocks at full resolution, half, a quarter, ...: 1, 2, 4 ... n_hid.

    There is one group for each resolution from the first's to the grid's, so a first resolution
    `factor` times as fine as the grid has log2(factor) + 1 groups (the paper: 8, so 4).
    """
    return [2**i * n_hid for i in range(int(math.log2(factor)) + 1)]


class Encoder(nn.Sequential):
    """Mapped pixels [B, 3, H, W] to latents [B, C, h, w]: logits over the codebook in the paper."""

    def __init__(
        self,
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
        gain = 1 / (len(widths) * blocks_per_group) ** 2  # keeps deep stacks stable
        kernels = (kernel, kernel, kernel, 1)
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch)] if patch > 1 else []
        layers.append(conv(3 * patch**2, n_hid, stem_kernel, padding_mode))
        previous = n_hid
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(blocks_per_group):
                layers.append(ResidualBlock(previous, width, kernels, gain, padding_mode))
                previous = width
        super().__init__(*layers, nn.ReLU(), InFloat32(conv(previous, channels, 1)))

    # torch.compile passes over the forward of torch's own modules, and would compile each block.
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)


class Decoder(nn.Sequential):
    """Codes [B, C, h, w] to the likelihood's parameters [B, maps, H, W]; one-hot in the paper."""

    def __init__(
        self,
        factor: int,
        channels: int,
        n_hid: int,
        n_init: int,
        blocks_per_group: int,
        kernel: int,
        maps: int,
        patch: int,
    ):
        widths = group_widths(factor // patch, n_hid)[::-1]
        gain = 1 / (len(widths) * blocks_per_group) ** 2  # keeps deep stacks stable
        kernels = (1, kernel, kernel, kernel)
        layers: list[nn.Module] = [InFloat32(conv(channels, n_init, 1))]
        previous = n_init
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            for _ in range(blocks_per_group):
                layers.append(ResidualBlock(previous, width, kernels, gain))
                previous = width
        layers += [nn.ReLU(), conv(previous, maps * patch**2, 1)]
        super().__init__(*layers, *([nn.PixelShuffle(patch)] if patch > 1 else []))

    def forward(self, codes: Tensor) -> Tensor:
        return super().forward(codes)


class DiscreteVAE(nn.Module):
    """Stage 1: a picture becomes a grid of image tokens, and a grid of tokens a picture.

    The defaults are the paper's: 256x256 pictures, a 32x32 grid, 8192 categories.

    Args:
        image_size: side of the pictures in pixels.
        grid: side of the grid of image tokens; image_size / grid is a power of two.
        num_tokens: K, the size of the codebook.
        patch: side of the squares of pixels that the networks begin and end with; blocks of finer
            resolution are left out. 1, as in the paper, begins with single pixels.
        n_hid: width of the blocks at the first resolution; it doubles with each halving.
        n_init: width of the decoder's input convolution.
        blocks_per_group: residual blocks at each resolution.
        encoder_kernel: kernel of the encoder's blocks. With 1, a token sees its own tile and the
            few pixels around it that the stem reaches, and not the whole picture.
        decoder_kernel: kernel of the decoder's blocks.
        stem_kernel: kernel of the encoder's first convolution.
        padding_mode: of the encoder's convolutions, as in `torch.nn.Conv2d`. With "replicate" the
            tile at the picture's edge looks like one inside it.
        likelihood: of pixel values; the paper's by default.
        quantizer: what makes tokens of the encoder's output; the paper's by default.

    Raises:
        ValueError: sides or patch do not fit, or the quantizer has another number of tokens.
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
        factor, rest = divmod(image_size, grid)
        if rest or factor < 1 or factor & (factor - 1):
            raise ValueError(f"image_size / grid must be a power of two, got {image_size} / {grid}")
        if patch < 1 or factor % patch:
            raise ValueError(f"patch must divide image_size / grid = {factor}, got {patch}")
        self.image_size = image_size
        self.grid = grid
        self.num_tokens = num_tokens
        self.likelihood = likelihood or LogitLaplace()
        self.quantizer = quantizer or GumbelSoftmax(num_tokens)
        if self.quantizer.num_tokens != num_tokens:
            raise ValueError(
                f"num_tokens is {num_tokens}, and the quantizer has {self.quantizer.num_tokens}"
            )
        channels = self.quantizer.channels
        self.encoder = Encoder(
            factor,
            channels,
            n_hid,
            blocks_per_group,
            encoder_kernel,
            stem_kernel,
            padding_mode,
            patch,
        )
        self.decoder = Decoder(
            factor,
            channels,
            n_hid,
            n_init,
            blocks_per_group,
            decoder_kernel,
            self.likelihood.maps,
            patch,
        )
        # Convolutions on CPU and tensor cores alike are faster with the channels innermost.
        self.to(memory_format=torch.channels_last)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the encoder and the decoder, which training calls by themselves."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def latents(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to what the quantizer reads, [B, C, h, w] in fp32.

        In the paper's dVAE these are the logits of the posterior over the codebook.

        Raises:
            ValueError: the images are not [B, 3, image_size, image_size].
        """
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(
                f"the dVAE reads images [B, 3, {side}, {side}], got {list(images.shape)}"
            )
        return self.encoder(map_pixels(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to image tokens [B, h, w]: the likeliest, no noise."""
        return self.quantizer.tokens(self.latents(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Image tokens [B, h, w] to images [B, 3, H, W] in [0, 1]."""
        return self.likelihood.image(self.decoder(self.quantizer.codes(tokens))).contiguous()
