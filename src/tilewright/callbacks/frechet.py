"""Fréchet distance on a few images during training."""

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from tilewright.callbacks.periodic import PeriodicMeasurement
from tilewright.checks import check_whole
from tilewright.data.image_tokenizer import split_batches
from tilewright.distributed.collectives import gather_objects
from tilewright.distributed.fsdp import gathered_weights
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import (
    AUTO,
    OFFLINE,
    Extractor,
    check_extractor,
    load_efficientnet,
    load_extractor,
    metric_name,
    possible_networks,
    warn_about_judges,
)
from tilewright.metrics.features import UndefinedMetric, folder_features, save_images
from tilewright.pipeline import TextToImage

log = logging.getLogger(__name__)


class FrechetDistance(PeriodicMeasurement):
    """Fréchet distance between the model's images and those of the validation split.

    A dVAE reconstructs the split's images from hard codes. A prior generates one image per caption
    of the split, with the sampling that the run recommends. The metric is named after the feature
    network: `fid` is clean-fid's Inception only. A few hundred images show a trend, not a value to
    publish. The network is loaded before the training, which does not start without it.

    Args:
        images: number of images of all processes together.
        every_n_validations: validations between two measurements.
        extractor: name of the feature network, or "auto", see `load_extractor`.
        inception_weights: path of Inception's weights. None searches clean-fid's folder.
        run: folder of the run, whose dVAE may be trained on the network, with a warning. None does
            not check it.

    Raises:
        UserError: a number is not possible, the network is unknown, or weights do not exist.
    """

    def __init__(
        self,
        images: int = 128,
        every_n_validations: int = 1,
        extractor: str = AUTO,
        inception_weights: str | None = None,
        run: str | None = None,
    ):
        super().__init__(every_n_validations)
        check_whole("callbacks.frechet.images", images, 2)
        check_extractor(extractor, inception_weights)
        names = [metric_name(network, "fid") for network in possible_networks(extractor)]
        self.metrics = tuple(f"validation/{name}" for name in names)
        self.images = images
        self.extractor = extractor
        self.inception_weights = inception_weights
        self.run = run
        self._extractor: Extractor | None = None
        self._real_features: np.ndarray | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._extractor = self._load_extractor(trainer.strategy.root_device)
        if self.run is not None:
            key = "callbacks.frechet.extractor"
            warn_about_judges(Path(self.run), [self._extractor.name], key)

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        examples = data.examples("validation", self.images)
        # A covariance needs two images, and each process needs one.
        required = max(2, trainer.world_size)
        if len(examples) < required:
            log.warning(
                "No Fréchet distance: the validation split has %d readable image(s) and %d are "
                "needed",
                len(examples),
                required,
            )
            return
        name, distance = self.compute(trainer, pl_module, examples)
        pl_module.log(f"validation/{name}", distance, rank_zero_only=True)

    @torch.no_grad()
    def compute(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, examples: list[tuple[Tensor, str]]
    ) -> tuple[str, float]:
        """Returns the metric's name and value, which is nan if the distance is undefined.

        Each process works on a share of the examples.

        Args:
            examples: real images [3, H, W] and their captions.
        """
        assert self._extractor is not None
        share = examples[trainer.global_rank :: trainer.world_size]
        real, captions = zip(*share, strict=True)
        if self._real_features is None:
            self._real_features = self._features(torch.stack(real))
        with gathered_weights(trainer, pl_module):
            images = self._generate(trainer, pl_module, torch.stack(real), captions)
        features = self._features(images)
        name = self._extractor.metric_name("fid")
        try:
            return name, frechet_distance(self._real_features, features)
        except UndefinedMetric as error:  # raised in all processes, which have the same features
            log.warning("No Fréchet distance at update %d: %s", trainer.global_step, error)
            return name, math.nan  # without a value, a monitor would read the previous one

    def _load_extractor(self, device: torch.device) -> Extractor:
        """Loads the feature network, which is the same in all processes."""
        extractor = load_extractor(device, self.extractor, self.inception_weights)
        if len(set(gather_objects(extractor.name))) > 1:  # a node has no weights of Inception
            return load_efficientnet(OFFLINE, device)
        return extractor

    def _generate(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, real: Tensor, captions: Any
    ) -> Tensor:
        """Returns the model's images [N, 3, H, W] for N real images and their captions."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.image_tokenizer is None:
            network: Any = pl_module.network
            batches = split_batches(real.to(pl_module.device), network.image_size)
            return torch.cat([network.decode(network.encode(batch)) for batch in batches])
        model = TextToImage.from_trainer(trainer, pl_module)
        return model.generate(captions, seed=trainer.global_rank).images.squeeze(1)

    def _features(self, images: Tensor) -> np.ndarray:
        """Returns the features [N, D] of the images of all processes."""
        assert self._extractor is not None
        with tempfile.TemporaryDirectory() as folder:
            save_images([images], folder)
            features = folder_features(folder, self._extractor)
        return np.concatenate(gather_objects(features))
