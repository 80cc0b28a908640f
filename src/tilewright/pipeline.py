"""Captions in, pictures out: what generate, eval and the callbacks all call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from tilewright import runs
from tilewright.data.codes import ImageTokenizer
from tilewright.data.images import to_tensor
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.data.transforms import CenterCrop
from tilewright.errors import UserError
from tilewright.prior import Sampling, Transformer, complete, log_likelihood, sample


class TextToImage:
    """A trained prior with its tokenizer and its dVAE.

    Args:
        prior: the transformer over the stream.
        image_tokenizer: what turns its image tokens into pictures.
        tokenizer: what turns captions into its text tokens.
    """

    def __init__(
        self, prior: Transformer, image_tokenizer: ImageTokenizer, tokenizer: BytePairTokenizer
    ):
        self.prior = prior
        self.image_tokenizer = image_tokenizer
        self.tokenizer = tokenizer

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu") -> "TextToImage":
        """The model that a run of stage=prior trained.

        Raises:
            UserError: there is no such run, or it is not whole.
        """
        from hydra.utils import instantiate

        run = Path(run)
        config = runs.load_config(run)
        if config.stage != "prior":
            raise UserError(f"{run} is a run of stage={config.stage}; pictures come from a prior")
        tokenizer = instantiate(config.tokenizer)
        tokenizer.load(run / runs.TOKENIZER)
        prior = runs.load_network(run, device)
        return cls(prior, runs.load_network(run / runs.DVAE, device), tokenizer)

    @classmethod
    def of_training(cls, trainer: pl.Trainer, module: pl.LightningModule) -> "TextToImage":
        """The prior that is being trained, as it is now."""
        prior: Any = module.network
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return cls(prior, data.image_tokenizer, data.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    def __call__(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
    ) -> list[list[Image.Image]]:
        """`n` pictures for each caption.

        Args:
            image_prompt: a picture whose top the new ones begin with.
            rows: how many rows of its image tokens are kept.
        """
        images = self.images(
            captions, n, sampling=sampling, seed=seed, image_prompt=image_prompt, rows=rows
        )
        return [[to_pil_image(image) for image in row.cpu()] for row in images]

    @torch.inference_mode()
    def images(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 64,
    ) -> Tensor:
        """Images [C, n, 3, H, W] in [0, 1] for C captions, as `__call__`.

        Args:
            batch_size: captions that are drawn at once, each with its `n` pictures.
        """
        text = self.tokenizer.encode(captions).to(self.device)
        first_rows = self._first_rows(image_prompt, rows)
        drawn = []
        for first in range(0, len(text), batch_size):
            part = text[first : first + batch_size]
            given = None if first_rows is None else first_rows.expand(len(part), -1, -1)
            tokens = sample(
                self.prior, part, n, sampling=sampling, seed=seed, first=first, first_rows=given
            )
            drawn.append(self.image_tokenizer.decode(tokens.flatten(0, 1)).unflatten(0, (-1, n)))
        return torch.cat(drawn)

    def complete(
        self, captions: Sequence[str], *, sampling: Sampling | None = None, seed: int = 0
    ) -> list[str]:
        """Captions that the model has carried on to their end; an empty one is a beginning too."""
        text = self.tokenizer.encode(captions).to(self.device)
        return self.tokenizer.decode(complete(self.prior, text, sampling=sampling, seed=seed))

    def log_likelihood(self, captions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """ln p(caption) and ln p(picture | caption) of pairs, each [B], in nats.

        Args:
            images: [B, 3, H, W] in [0, 1], one for each caption.
        """
        text = self.tokenizer.encode(captions).to(self.device)
        return log_likelihood(self.prior, text, self.image_tokenizer.encode(images.to(self.device)))

    def _first_rows(self, image_prompt: Image.Image | None, rows: int) -> Tensor | None:
        """The top `rows` of a picture's image tokens, [1, rows, w]."""
        if image_prompt is None or rows == 0:
            return None
        grid = self.image_tokenizer.grid
        if not 0 < rows < grid:
            raise UserError(f"rows must be from 1 to {grid - 1}, got {rows}")
        image = to_tensor(CenterCrop(self.image_tokenizer.image_size)(image_prompt))
        return self.image_tokenizer.encode(image[None].to(self.device))[:, :rows]
