"""LightningModule of stage 3: loss, logging and optimizer."""

from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities.data import dim_zero_cat

from tilewright.distributed.collectives import gather_sizes, num_processes, process_rank
from tilewright.ranker.networks import DualEncoder, contrastive_loss, make_cutmix_negatives
from tilewright.training.optimizers import (
    after_every_update,
    check_adam_bits,
    check_optimizer,
    scheduled,
    transformer_optimizer,
)
from tilewright.training.schedules import Schedule
from tilewright.training.stage import StageModule, num_rows


class AllRows(Metric):
    """Rows [N, D] of all updates and all processes. `CatMetric` fails if one process has none."""

    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor) -> None:
        self.rows.append(rows)

    def compute(self) -> Tensor:
        return dim_zero_cat(self.rows)


class RankerModule(StageModule):
    """Trains a `DualEncoder` to match captions and images within a batch.

    Args:
        network: text and image encoder.
        learning_rate: learning rate by optimizer step.
        cutmix_negatives: adds a CutMix negative per image to the captions' choices, unless it
            equals the image; False trains as CLIP does.
        weight_decay, betas, eps: see `torch.optim.AdamW`; only matrices decay.
        muon: updates the matrices with Muon and the other parameters with AdamW.
        adam_bits: 8 keeps AdamW's moments in 8 bits, with bitsandbytes.
    """

    def __init__(
        self,
        network: DualEncoder,
        learning_rate: Schedule,
        cutmix_negatives: bool = True,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        muon: bool = False,
        adam_bits: int = 32,
    ):
        super().__init__()
        check_optimizer(learning_rate, weight_decay, betas, eps)
        check_adam_bits(adam_bits, muon)
        self.network = network
        self.learning_rate = learning_rate
        self.cutmix_negatives = cutmix_negatives
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.muon = muon
        self.adam_bits = adam_bits
        # Vectors of the whole validation, so that its loss does not depend on the batch size.
        self.texts = AllRows()
        self.images = AllRows()
        # Recorded in validation_step, where the network may have its averaged weights.
        self.scale = MeanMetric(nan_strategy="disable")

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = batch["image"]
        parts = [self.network.encode_text(batch["text"])]
        if self.cutmix_negatives:
            negatives = make_cutmix_negatives(images)
            both = self.network.encode_images(torch.cat([images, negatives]))
            is_negative = (negatives != images).flatten(1).any(dim=1)
            parts += [*both.split(len(images)), is_negative]
        else:
            parts.append(self.network.encode_images(images))
        if num_processes() > 1:  # the other processes' images are negatives too
            counts = gather_sizes(num_rows(batch), self.device).tolist()
            counts[-1] += sum(counts) == 0  # a loss needs a row, even if its weight is 0
            parts = [self._gather_rows(part, counts) for part in parts]
        text, images, *negatives_and_mask = parts
        loss = contrastive_loss(text, images, self.network.scale, *negatives_and_mask)
        loss = loss * self.row_weight(batch)
        self.log("train/loss", loss.detach(), sync_dist=True)
        self.log("train/scale", self.network.scale.detach())
        return loss

    def _gather_rows(self, part: Tensor, counts: list[int]) -> Tensor:
        """Returns the first `counts[rank]` rows of each process, with gradients."""
        own = part[: counts[process_rank()]]
        padding = own.new_zeros(max(counts) - len(own), *own.shape[1:])
        padded = torch.cat([own, padding])
        gathered: Any = self.all_gather(padded, sync_grads=part.requires_grad)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    def validation_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        """Returns the vectors, which the callback `RetrievalCallback` reads."""
        rows = slice(num_rows(batch))
        text = self.network.encode_text(batch["text"])[rows]
        images = self.network.encode_images(batch["image"])[rows]
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
        optimizer = transformer_optimizer(
            self.network, self.weight_decay, self.betas, self.eps, self.muon, self.adam_bits
        )
        after_every_update(optimizer, self.network.bound_scale)
        return scheduled(optimizer, self.learning_rate)
