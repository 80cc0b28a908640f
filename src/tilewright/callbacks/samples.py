"""Pictures drawn for fixed captions while a prior trains."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from tilewright.distributed.fsdp import gathered
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.images import captioned_grid, save_png, show, side_by_side, to_uint8


class Samples(pl.Callback):
    """At each validation, the same captions drawn with the same random numbers.

    A training that begins with weights of its own kind draws them before it as well.

    Args:
        captions: what to draw; None takes the first captions of the validation split.
        count: how many of those.
        candidates: pictures for each caption.
        sampling: temperature and the like; None draws as the paper does.
        before_after: a PNG of what is drawn before the training, beside what is drawn now; None
            draws nothing before it.
    """

    def __init__(
        self,
        captions: list[str] | None = None,
        count: int = 8,
        candidates: int = 4,
        sampling: Sampling | None = None,
        before_after: str | None = None,
    ):
        self.captions = list(captions) if captions else None
        self.count = count
        self.candidates = candidates
        self.sampling = sampling
        self.before_after = before_after
        self._before: Tensor | None = None  # [C, n, 3, H, W], uint8

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.before_after is not None and trainer.global_step == 0:
            self._show(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._show(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._before is None else {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict.get("before")

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with gathered(trainer, pl_module):  # all processes have a part in that
            if trainer.is_global_zero:
                self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.captions is None:
            self.captions = [caption for _, caption in data.examples("validation", self.count)]
        model = TextToImage.from_trainer(trainer, pl_module)
        images = model.generate(self.captions, self.candidates, sampling=self.sampling).images
        grid = captioned_grid(self.captions, images)
        show(trainer, "samples/drawn", to_tensor(grid))
        if self.before_after is not None and trainer.global_step == 0:
            self._before = to_uint8(images).cpu()
        elif self.before_after is not None and self._before is not None:
            before = captioned_grid(self.captions, self._before / 255)
            after = f"after {trainer.global_step} updates"
            save_png(side_by_side({"before": before, after: grid}), Path(self.before_after))
