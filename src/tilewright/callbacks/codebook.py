"""Codebook usage of a dVAE during training."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT

from tilewright.errors import UserError
from tilewright.metrics.reconstruction import CodebookUsage


class CodebookUsageCallback(pl.Callback):
    """Logs, at each validation, the share of the codes in use and the codes' perplexity.

    Args:
        num_tokens: size of the codebook (K).

    Raises:
        UserError: the network has another number of tokens.
    """

    validation_metrics = ("codebook/usage", "codebook/perplexity")

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._usage: CodebookUsage | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        network: Any = pl_module.network
        if self.num_tokens != network.num_tokens:
            raise UserError(
                f"callbacks.codebook_usage.num_tokens={self.num_tokens} differs from the "
                f"network's {network.num_tokens} tokens: leave it out"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._usage = CodebookUsage(self.num_tokens).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, dict)
        assert self._usage is not None
        self._usage.update(outputs["tokens"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._usage is not None
        metrics = self._usage.compute()
        pl_module.log_dict({f"codebook/{name}": value for name, value in metrics.items()})
