"""A Fréchet distance on a few pictures while a training goes on."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tilewright.metrics.extractors import Extractor, find_extractor
from tilewright.metrics.frechet import (
    FrechetStatistics,
    folder_statistics,
    frechet_distance,
    frechet_name,
    save_images,
)
from tilewright.pipeline import TextToImage

log = logging.getLogger(__name__)


class FrechetDistance(pl.Callback):
    """Compares pictures of the model with those of the validation split.

    A dVAE's pictures are its reconstructions from hard codes, a prior's are drawn for the
    validation captions. The figure is named after its feature network: `fid` is clean-fid's
    Inception and nothing else. A few hundred pictures show a trend, not a value to publish.

    Args:
        images: how many pictures.
        every: validations between two measurements; there is one at the training's end as well.
        inception_weights: path of Inception's weights; None looks where clean-fid keeps them.
    """

    def __init__(self, images: int = 128, every: int = 1, inception_weights: str | None = None):
        self.images = images
        self.every = every
        self.inception_weights = inception_weights
        self._validations = 0
        self._extractor: Extractor | None = None
        self._real: FrechetStatistics | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        last = trainer.global_step >= trainer.max_steps > 0
        if trainer.is_global_zero and (last or self._validations % self.every == 0):
            data = trainer.datamodule  # type: ignore[attr-defined]
            examples = data.examples("validation", self.images)
            if len(examples) < 2:  # no covariance, and no reason to stop a training either
                log.warning("No Fréchet distance: the validation split has one readable picture")
                return
            name, distance = self.measure(trainer, pl_module, examples)
            pl_module.log(f"validation/{name}", distance, rank_zero_only=True)

    @torch.no_grad()
    def measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, examples: list[tuple[Tensor, str]]
    ) -> tuple[str, float]:
        """The figure's name and its value, on real images [3, H, W] and their captions."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._extractor is None:
            self._extractor = find_extractor(pl_module.device, self.inception_weights)
        originals, captions = zip(*examples, strict=True)
        real = torch.stack(originals)
        if data.image_tokenizer is None:
            network: Any = pl_module.network
            batches = real.to(pl_module.device).split(64)
            made = torch.cat([network.decode(network.encode(batch)) for batch in batches])
        else:
            model = TextToImage.of_training(trainer, pl_module)
            made = model.images(captions).squeeze(1)
        with tempfile.TemporaryDirectory() as folder:
            if self._real is None:
                save_images([real], Path(folder) / "real")
                self._real = folder_statistics(Path(folder) / "real", self._extractor)
            save_images([made], Path(folder) / "made")
            generated = folder_statistics(Path(folder) / "made", self._extractor)
        return frechet_name(self._extractor), frechet_distance(self._real, generated)
