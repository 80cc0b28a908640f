"""How many pictures show what their captions say, while a prior trains on shapes."""

import pytorch_lightning as pl

from tilewright.callbacks.periodic import Periodic
from tilewright.data.sources.capabilities import require_checker
from tilewright.distributed.fsdp import gathered
from tilewright.metrics.alignment import alignment_by_category
from tilewright.pipeline import TextToImage


class Alignment(Periodic):
    """The share of single samples that the checker passes.

    Logged as `alignment/<split>/<kind of caption>`: what `metric=alignment` measures after a
    training, on fewer captions.

    Args:
        captions: so many of each split that the data has beside the training's, the first ones.
        every: validations between two measurements; there is one at the training's end as well.
    """

    def __init__(self, captions: int = 200, every: int = 1):
        super().__init__(every)
        self.captions = captions

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        require_checker(data.source, "callbacks.alignment")

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures: dict[str, float] = {}
        with gathered(trainer, pl_module):  # all processes have a part in that
            if trainer.is_global_zero:
                figures = self._measure(trainer, pl_module)
        pl_module.log_dict(figures, rank_zero_only=True)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        checker = require_checker(data.source, "callbacks.alignment")
        model = TextToImage.from_trainer(trainer, pl_module)
        figures: dict[str, float] = {}
        for split in [split for split in data.splits if split != "train"]:
            captions = [caption for _, caption in data.examples(split, self.captions)]
            images = model.generate(captions).images.squeeze(1).cpu()
            for category, share in alignment_by_category(checker, captions, images).items():
                figures[f"alignment/{split}/{category}"] = share.value
        return figures
