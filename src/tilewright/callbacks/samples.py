"""Pictures drawn for fixed captions while a prior trains."""

import pytorch_lightning as pl
from torchvision.transforms.functional import to_tensor

from tilewright.pictures import captioned_grid, show
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.sharding import gathered


class Samples(pl.Callback):
    """At each validation, the same captions drawn with the same random numbers.

    Args:
        captions: what to draw; None takes the first captions of the validation split.
        count: how many of those.
        candidates: pictures for each caption.
        sampling: temperature and the like; None draws as the paper does.
    """

    def __init__(
        self,
        captions: list[str] | None = None,
        count: int = 8,
        candidates: int = 4,
        sampling: Sampling | None = None,
    ):
        self.captions = list(captions) if captions else None
        self.count = count
        self.candidates = candidates
        self.sampling = sampling

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        with gathered(trainer, pl_module):  # all processes have a part in that
            if trainer.is_global_zero:
                self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.captions is None:
            self.captions = [caption for _, caption in data.examples("validation", self.count)]
        model = TextToImage.of_training(trainer, pl_module)
        images = model.images(self.captions, self.candidates, sampling=self.sampling)
        show(trainer, "samples", to_tensor(captioned_grid(self.captions, images)))
