"""Samples for fixed captions while a prior trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from tilewright.checks import check_whole
from tilewright.distributed.fsdp import gathered_weights
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.training.loggers import log_image
from tilewright.viz.images import captioned_grid, save_png, side_by_side, to_uint8


class Samples(pl.Callback):
    """Logs samples at each validation, always for the same captions and random numbers.

    Args:
        captions: captions to generate images for. None samples `count` from the validation split.
        count: number of captions if `captions` is None.
        candidates: samples per caption.
        sampling: sampling settings. None uses the recommended ones.
        before_after: path of a PNG that shows samples from before the training beside the current
            ones, for fine-tuning. None samples only at validations.

    Raises:
        UserError: a number is not possible, or the captions are not a list of text.
    """

    def __init__(
        self,
        captions: Sequence[str] | None = None,
        count: int = 8,
        candidates: int = 4,
        sampling: Sampling | None = None,
        before_after: str | None = None,
    ):
        if captions is not None and not _are_captions(captions):
            raise UserError(
                f"callbacks.samples.captions={captions} is not a list of captions: write "
                "callbacks.samples.captions=['a red circle']"
            )
        check_whole("callbacks.samples.count", count)
        check_whole("callbacks.samples.candidates", candidates)
        self.captions = list(captions) if captions else None
        self.count = count
        self.candidates = candidates
        self.sampling = sampling
        self.before_after = before_after
        self._before: Tensor | None = None  # [C, n, 3, H, W], uint8

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that the prior can be sampled with these settings.

        Raises:
            UserError: the settings need another prior.
        """
        model = TextToImage.from_trainer(trainer, pl_module)
        model.check_supports(self.sampling or model.sampling)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.before_after is not None and trainer.global_step == 0:
            self._sample(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._sample(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._before is None else {"before": self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict.get("before")

    def _sample(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with gathered_weights(trainer, pl_module):
            if trainer.is_global_zero:
                self._log_samples(trainer, pl_module)

    def _log_samples(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.captions is None:
            self.captions = [caption for _, caption in data.examples("validation", self.count)]
        model = TextToImage.from_trainer(trainer, pl_module)
        images = model.generate(self.captions, self.candidates, sampling=self.sampling).images
        grid = captioned_grid(self.captions, images)
        log_image(trainer, "samples/generated", to_tensor(grid))
        if self.before_after is not None and trainer.global_step == 0:
            self._before = to_uint8(images).cpu()
        elif self.before_after is not None and self._before is not None:
            before = captioned_grid(self.captions, self._before / 255)
            title = f"after {trainer.global_step} updates"
            save_png(side_by_side({"before": before, title: grid}), Path(self.before_after))


def _are_captions(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and all(isinstance(caption, str) for caption in value)
