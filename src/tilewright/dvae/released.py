"""The dVAE that the paper's authors released, as a `DiscreteVAE`.

They published `encoder.pkl` and `decoder.pkl`, pickled modules of the package `dall_e`. A pickle
can run any code when it is opened, so that is done only for a user who says that they trust it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilewright.dvae.networks import DiscreteVAE
from tilewright.errors import UserError


def settings(encoder: Any, decoder: Any, image_size: int) -> dict[str, Any]:
    """The arguments of the `DiscreteVAE` that released modules make up."""
    return {
        "image_size": image_size,
        "grid": image_size // 2 ** (encoder.group_count - 1),
        "num_tokens": encoder.vocab_size,
        "n_hid": encoder.n_hid,
        "n_init": decoder.n_init,
        "blocks_per_group": encoder.n_blk_per_group,
    }


def convert(encoder: nn.Module, decoder: nn.Module, image_size: int = 256) -> DiscreteVAE:
    """Released modules to a `DiscreteVAE` with their weights.

    Args:
        image_size: side of the pictures that it is to read; the networks are convolutions and take
            any multiple of 8.

    Raises:
        UserError: the two do not belong together.
    """
    network = DiscreteVAE(**settings(encoder, decoder, image_size))
    for ours, theirs in ((network.encoder, encoder), (network.decoder, decoder)):
        # The order of the layers is the same, and so is that of the parameters.
        pairs = list(zip(ours.parameters(), theirs.parameters(), strict=False))
        whole = len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
        if not whole or any(a.shape != b.shape for a, b in pairs):
            raise UserError("the encoder and the decoder are not of the same dVAE")
        with torch.no_grad():
            for parameter, value in pairs:
                parameter.copy_(value)
    return network.eval().requires_grad_(False)


def unpickle(path: str | Path, kind: str) -> nn.Module:
    """Opens a released file, which runs whatever code it holds.

    Args:
        kind: "Encoder" or "Decoder", what the file is said to hold.

    Raises:
        UserError: there is no such file, it is no pickle, or it holds something else.
    """
    try:
        import dall_e
    except ImportError as error:
        raise UserError(
            "the released files need the package in which they were pickled: "
            "pip install 'tilewright[openai]'"
        ) from error
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a file that is no pickle raises errors of many classes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is no pickled module: {reason}") from error
    if not isinstance(module, getattr(dall_e, kind)):
        raise UserError(f"{path} holds no {kind} but a {type(module).__name__}")
    return module
