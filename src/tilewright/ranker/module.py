"""Stage 3 as a LightningModule: the loss, what is logged, the optimizer."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric

from tilewright.ranker.networks import DualEncoder, contrastive_loss, patchwork
from tilewright.training.optimizers import matrix_optimizer, scheduled
from tilewright.training.schedules import Schedule
from tilewright.training.stage import StageModule


class RankerModule(StageModule):
    """Trains a `DualEncoder` to find each caption's picture in its batch, and the reverse.

    Args:
        network: the model.
        learning_rate: by update.
        patchworks: captions have also to tell their picture from patchworks; false makes it
            CLIP's own training.
        weight_decay, betas, eps: AdamW's; only matrices decay.
        muon: Muon updates the matrices, AdamW the rest.
    """

    def __init__(
        self,
        network: DualEncoder,
        learning_rate: Schedule,
        patchworks: bool = True,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        muon: bool = False,
    ):
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.patchworks = patchworks
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.muon = muon
        # All vectors of a validation, of all processes: its loss does not depend on batches.
        self.texts = CatMetric(nan_strategy="disable")
        self.images = CatMetric(nan_strategy="disable")
        self.scale = MeanMetric(nan_strategy="disable")  # that of the weights that are validated

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images, pairs = batch["image"], len(batch["image"])
        if self.patchworks:
            images = torch.cat([images, patchwork(images)])
        text = self.network.encode_text(batch["text_tokens"])
        vectors = [text, *self.network.encode_images(images).split(pairs)]
        if self.trainer.world_size > 1:  # those of the others are to be told apart as well
            vectors = [
                self.all_gather(part, sync_grads=True).flatten(0, 1)  # type: ignore[union-attr]
                for part in vectors
            ]
        text, images, *patchworks = vectors
        loss = contrastive_loss(text, images, self.network.scale, *patchworks)
        self.log("train/loss", loss.detach())
        self.log("train/scale", self.network.scale.detach())
        return loss

    def validation_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        """The vectors, which callbacks look at as well."""
        text = self.network.encode_text(batch["text_tokens"])
        images = self.network.encode_images(batch["image"])
        self.texts.update(text)
        self.images.update(images)
        self.scale.update(self.network.scale)
        return {"text": text, "images": images}

    def on_validation_epoch_end(self) -> None:
        texts, images, scale = (x.compute() for x in (self.texts, self.images, self.scale))
        loss = contrastive_loss(texts, images, scale)
        self.log("validation/loss", loss)
        self.texts.reset()
        self.images.reset()
        self.scale.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        how = (self.weight_decay, self.betas, self.eps, self.muon)
        optimizer = matrix_optimizer(self.network, *how)
        return scheduled(optimizer, self.learning_rate)
