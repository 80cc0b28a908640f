"""Share of generated images that match their captions, measured while a prior trains."""

import pytorch_lightning as pl

from tilewright.callbacks.periodic import PeriodicMeasurement
from tilewright.checks import check_whole
from tilewright.data.sources.capabilities import require_checker
from tilewright.distributed.collectives import gather_objects
from tilewright.distributed.fsdp import gathered_weights
from tilewright.metrics.alignment import alignment_by_category
from tilewright.pipeline import TextToImage


class AlignmentCallback(PeriodicMeasurement):
    """Share of single samples that pass the data source's caption checker.

    Uses the recommended sampling. Logs `alignment/<split>/<caption category>` for all splits but
    `train`. `metric=alignment` of `eval` measures the same on more captions.

    Args:
        captions: number of captions, sampled from each split.
        every_n_validations: validations between two measurements.

    Raises:
        UserError: a number is not possible.
    """

    metrics = ("alignment/*",)

    def __init__(self, captions: int = 200, every_n_validations: int = 1):
        super().__init__(every_n_validations)
        check_whole("callbacks.alignment.captions", captions)
        self.captions = captions

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that the data source has a caption checker.

        Raises:
            UserError: the data source has no caption checker.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        require_checker(data.source, "callbacks.alignment")

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics: dict[str, float] = {}
        with gathered_weights(trainer, pl_module):
            if trainer.is_global_zero:
                metrics = self._check_samples(trainer, pl_module)
        # In all processes, because each of them may monitor a share.
        pl_module.log_dict(gather_objects(metrics)[0], rank_zero_only=True)

    def _check_samples(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, float]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        checker = require_checker(data.source, "callbacks.alignment")
        model = TextToImage.from_trainer(trainer, pl_module)
        metrics: dict[str, float] = {}
        for split in [split for split in data.splits if split != "train"]:
            captions = [caption for _, caption in data.examples(split, self.captions)]
            images = model.generate(captions).images.squeeze(1).cpu()
            for category, share in alignment_by_category(checker, captions, images).items():
                metrics[f"alignment/{split}/{category}"] = share.value
        return metrics
