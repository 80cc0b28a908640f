"""Conversion of the dVAE that OpenAI released to a `DiscreteVAE`.

The release is two files, `encoder.pkl` and `decoder.pkl`: pickled modules of the package `dall_e`.
Opening a pickle can run any code, so the caller must trust the files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilewright.checks import check_whole
from tilewright.conversion import Conversion
from tilewright.dvae.networks import DiscreteVAE
from tilewright.errors import UserError, first_line


@dataclass(frozen=True)
class OpenAI:
    """Family of the dVAE that OpenAI released.

    Args:
        encoder, decoder: paths of the two pickles.
        image_size: side of the images in pixels, a multiple of 8.
    """

    encoder: str
    decoder: str
    image_size: int = 256

    def __post_init__(self) -> None:
        check_whole("family.image_size", self.image_size)

    def convert(self, trust: bool) -> Conversion:
        """Converts the two files. Opening them runs any code that they contain.

        Raises:
            UserError: the user does not trust the files, or they are not of one release.
        """
        if not trust:
            raise UserError(
                f"{self.encoder} and {self.decoder} are pickles, which run code when they are "
                "opened: set trust=true if you trust their source"
            )
        encoder = load_pickled_module(self.encoder, "Encoder")
        decoder = load_pickled_module(self.decoder, "Decoder")
        network = convert_modules(encoder, decoder, self.image_size)
        sizes = network_arguments(encoder, decoder, self.image_size)
        settings = {"_target_": "tilewright.dvae.DiscreteVAE", **sizes}
        return Conversion("dvae", settings, network.state_dict())


def network_arguments(encoder: Any, decoder: Any, image_size: int) -> dict[str, Any]:
    """Returns the arguments of the `DiscreteVAE` that the released modules form."""
    return {
        "image_size": image_size,
        "grid": image_size // 2 ** (encoder.group_count - 1),
        "num_tokens": encoder.vocab_size,
        "n_hid": encoder.n_hid,
        "n_init": decoder.n_init,
        "blocks_per_group": encoder.n_blk_per_group,
    }


def convert_modules(encoder: nn.Module, decoder: nn.Module, image_size: int = 256) -> DiscreteVAE:
    """Converts released modules to a frozen `DiscreteVAE` with their weights.

    Args:
        image_size: side of the images in pixels; the networks are convolutional and take any
            multiple of 8.

    Raises:
        UserError: encoder and decoder do not belong together.
    """
    network = DiscreteVAE(**network_arguments(encoder, decoder, image_size))
    for ours, theirs in ((network.encoder, encoder), (network.decoder, decoder)):
        # Names differ, but the layers and so the parameters have the same order.
        targets, sources = list(ours.parameters()), list(theirs.parameters())
        if [p.shape for p in targets] != [p.shape for p in sources]:
            raise UserError(
                "encoder and decoder do not belong to the same dVAE: give the two files of one "
                "release"
            )
        with torch.no_grad():
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
    return network.eval().requires_grad_(False)


def load_pickled_module(path: str | Path, class_name: str) -> nn.Module:
    """Loads a released file. This runs any code that the file contains.

    Args:
        class_name: "Encoder" or "Decoder", the class that the file must contain.

    Raises:
        UserError: `dall_e` is not installed, or the file is missing, not a pickle, or another
            class.
    """
    try:
        import dall_e
    except ImportError as error:
        raise UserError(
            "the package DALL-E, which the released files need, is not installed: "
            "pip install 'tilewright[openai]'"
        ) from error
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: give the path of the released {class_name} file")
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a file that is not a pickle raises many classes of errors
        raise UserError(
            f"{path} is not a pickled module ({first_line(error)}): give the released file"
        ) from error
    if not isinstance(module, getattr(dall_e, class_name)):
        raise UserError(
            f"{path} contains {type(module).__name__} instead of {class_name}: give the other file"
        )
    return module
