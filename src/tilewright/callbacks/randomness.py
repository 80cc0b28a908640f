"""Random seeds of training steps."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from tilewright.checks import MAX_SEED, check_whole
from tilewright.data.seeding import derive_seed


class StepSeeds(pl.Callback):
    """Seeds Python's, NumPy's and torch's random generators at every training step.

    The noise of a step, such as the dVAE's relaxation or dropped captions, then depends only on the
    seed, the step and the process. Processes draw different noise, and a resumed run draws the same
    noise as an uninterrupted one.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: int):
        check_whole("callbacks.seeds.seed", seed, 0, MAX_SEED)
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = derive_seed(self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank)
        random.seed(seed)
        np.random.seed(seed)
        # torch.manual_seed seeds all kinds of devices, which is slow.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
