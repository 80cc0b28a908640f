"""Stage 2 as a LightningModule: the loss, what is logged, the optimiser."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tilewright.optimisers import clip_variance, decay_matrices_only, scheduled
from tilewright.prior.transformer import Transformer
from tilewright.schedules import Schedule


class PriorModule(pl.LightningModule):
    """Trains a `Transformer` to predict each next token of the stream.

    Args:
        network: the model.
        learning_rate: by update.
        weight_decay, betas, eps: AdamW's; only matrices decay.
        variance_clip: most that AdamW's running variance of a gradient may be (the paper: 5); None
            for no bound.
        caption_dropout: share of captions that are emptied in training, which is what guidance in
            sampling needs; the paper has none.
    """

    def __init__(
        self,
        network: Transformer,
        learning_rate: Schedule,
        weight_decay: float = 4.5e-2,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-8,
        variance_clip: float | None = None,
        caption_dropout: float = 0.1,
    ):
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.variance_clip = variance_clip
        self.caption_dropout = caption_dropout

    def terms(self, text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Cross-entropies of text and image in nats per token, and their weighted sum, `loss`."""
        text_logits, image_logits = self.network(text, image)
        return self.network.stream.loss(text_logits, image_logits, text, image)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        text = batch["text_tokens"]
        if self.caption_dropout > 0:
            dropped = torch.rand(len(text), 1, device=text.device) < self.caption_dropout
            empty = self.network.stream.empty_captions(len(text), text.device)
            text = torch.where(dropped, empty, text)
        terms = self.terms(text, batch["image_tokens"])
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        return terms["loss"]

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        terms = self.terms(batch["text_tokens"], batch["image_tokens"])
        self.log_dict(
            {f"validation/{name}": value for name, value in terms.items()},
            batch_size=len(batch["text_tokens"]),
            sync_dist=True,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = decay_matrices_only(self.network, self.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=1.0, betas=self.betas, eps=self.eps)
        if self.variance_clip is not None:
            clip_variance(optimiser, self.variance_clip)
        return scheduled(optimiser, self.learning_rate)
