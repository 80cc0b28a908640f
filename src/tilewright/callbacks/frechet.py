"""A Fréchet distance on a few pictures while a training goes on."""

import logging
import tempfile
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from tilewright.callbacks.periodic import Periodic
from tilewright.distributed.fsdp import gathered
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import Extractor, load_extractor
from tilewright.metrics.features import folder_features, save_images
from tilewright.pipeline import TextToImage

log = logging.getLogger(__name__)


class FrechetDistance(Periodic):
    """Compares pictures of the model with those of the validation split.

    A dVAE's pictures are its reconstructions from hard codes, a prior's are drawn for the
    validation captions. The figure is named after its feature network: `fid` is clean-fid's
    Inception and nothing else. A few hundred pictures show a trend, not a value to publish.

    Args:
        images: how many pictures, shared between the processes.
        every: validations between two measurements; there is one at the training's end as well.
        inception_weights: path of Inception's weights; None looks where clean-fid keeps them.
    """

    def __init__(self, images: int = 128, every: int = 1, inception_weights: str | None = None):
        super().__init__(every)
        self.images = images
        self.inception_weights = inception_weights
        self._extractor: Extractor | None = None
        self._real: np.ndarray | None = None  # features of the real pictures

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        examples = data.examples("validation", self.images)
        # No covariance, or no picture for some process, and no reason to stop a training.
        if len(examples) < max(2, trainer.world_size):
            log.warning(
                "No Fréchet distance: the validation split has %d readable picture(s)",
                len(examples),
            )
            return
        name, distance = self.measure(trainer, pl_module, examples)
        pl_module.log(f"validation/{name}", distance, rank_zero_only=True)

    @torch.no_grad()
    def measure(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, examples: list[tuple[Tensor, str]]
    ) -> tuple[str, float]:
        """The figure's name and its value, on real images [3, H, W] and their captions.

        Every process makes and looks at its share of the pictures.
        """
        if self._extractor is None:
            self._extractor = load_extractor(pl_module.device, self.inception_weights)
        mine = examples[trainer.global_rank :: trainer.world_size]
        real, captions = zip(*mine, strict=True)
        if self._real is None:
            self._real = self._features(torch.stack(real), trainer.world_size)
        with gathered(trainer, pl_module):
            made = self._made(trainer, pl_module, torch.stack(real), captions)
        generated = self._features(made, trainer.world_size)
        return self._extractor.metric_name("fid"), frechet_distance(self._real, generated)

    def _made(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, real: Tensor, captions: Any
    ) -> Tensor:
        """The model's pictures [N, 3, H, W] for N real ones and their captions."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.image_tokenizer is None:
            network: Any = pl_module.network
            batches = real.to(pl_module.device).split(64)
            return torch.cat([network.decode(network.encode(batch)) for batch in batches])
        model = TextToImage.from_trainer(trainer, pl_module)
        return model.generate(captions, seed=trainer.global_rank).images.squeeze(1)

    def _features(self, images: Tensor, processes: int) -> np.ndarray:
        """Features of the pictures of all processes, [N, D]."""
        assert self._extractor is not None
        with tempfile.TemporaryDirectory() as folder:
            save_images([images], folder)
            own = folder_features(folder, self._extractor)
        if processes == 1:
            return own
        shares: list[Any] = [None] * processes
        torch.distributed.all_gather_object(shares, own)
        return np.concatenate(shares)
