"""Where a training's noise comes from."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from tilewright.data.seeding import derive_seed


class StepSeeds(pl.Callback):
    """Seeds python's, numpy's and torch's random numbers at every training step.

    The noise of a step (of the dVAE's relaxation, of dropped captions) then follows from the seed,
    the step and the process, and from nothing that went before: processes draw different noise, and
    a training that resumes draws what it would have drawn.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = derive_seed(self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank)
        random.seed(seed)
        np.random.seed(seed)
        # torch.manual_seed seeds every kind of device, and takes longer than all else here.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
