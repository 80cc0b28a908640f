"""Common form of the checkpoints that other projects publish."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Protocol

from tilewright.errors import UserError

if TYPE_CHECKING:  # the command line imports this module before it loads torch
    from torch import Tensor


@dataclass(frozen=True)
class Conversion:
    """Public checkpoint as the parts of a model. `runs.save_conversion` writes them.

    Attributes:
        stage: "dvae" or "prior".
        network: settings of the network, with a `_target_`.
        weights: state dict of the network.
        tokenizer: settings of the text side of a prior, with a `_target_`.
        tokenizer_json: content of `tokenizer.json`, if the text side has one.
        dvae: image tokenizer of a prior.
        sampling: recommended sampling, such as `{"top_k": 1000}`.
        caption_dropout: share of empty captions in the training of a prior. With 0, guidance is
            refused.

    Raises:
        UserError: the image tokens of the prior are not those of its image tokenizer.
    """

    stage: str
    network: dict[str, Any]
    weights: dict[str, "Tensor"]
    tokenizer: dict[str, Any] | None = None
    tokenizer_json: str | None = None
    dvae: Optional["Conversion"] = None
    sampling: dict[str, Any] | None = None
    caption_dropout: float | None = None

    def __post_init__(self) -> None:
        if self.dvae is None:
            return
        stream, dvae = self.network["stream"], self.dvae.network
        prior_size = stream["grid"], stream["image_vocab"]
        dvae_size = dvae["grid"], dvae["num_tokens"]
        if prior_size != dvae_size:
            raise UserError(
                f"the prior generates {prior_size[0]}x{prior_size[0]} image tokens from a codebook "
                f"of {prior_size[1]}, but the image tokenizer has {dvae_size[0]}x{dvae_size[0]} "
                f"from {dvae_size[1]}: give the files of one model, or leave "
                "family.dvae.image_size out"
            )


class Family(Protocol):
    """Published checkpoints of one layout. `conf/family/<name>.yaml` builds it."""

    def convert(self, trust: bool) -> Conversion:
        """Converts the checkpoint.

        Args:
            trust: the user trusts the source of files that are pickles.

        Raises:
            UserError: a file is missing, broken, or has another layout.
        """
        ...
