"""Stage 2 as a LightningModule: loss, logging and optimizer."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from tilewright.checks import check_number
from tilewright.distributed.collectives import num_processes, sum_over_processes
from tilewright.errors import UserError
from tilewright.prior.protocol import Prior
from tilewright.prior.sampler import Sampling
from tilewright.training.optimizers import (
    check_adam_bits,
    check_optimizer,
    clip_variance,
    scheduled,
    transformer_optimizer,
)
from tilewright.training.schedules import Schedule
from tilewright.training.stage import StageModule, num_rows


class PriorModule(StageModule):
    """Trains a prior to predict each next token of the stream.

    Args:
        network: the prior, for example a `Transformer`.
        learning_rate: schedule of the learning rate per update.
        weight_decay: weight decay of matrices. Other parameters do not decay.
        betas: AdamW's decay rates of the running gradient and its variance.
        eps: AdamW's epsilon.
        variance_clip: upper bound of AdamW's running variance (5 in the paper). None sets no bound.
        muon: Muon updates the matrices and AdamW the rest. False uses AdamW for all, as in the
            paper.
        adam_bits: 8 keeps AdamW's moments in 8 bits, with bitsandbytes. 32 is exact.
        caption_dropout: fraction of captions that are emptied in training, which guidance needs. 0
            in the paper.
        image_dropout: largest fraction of an image's input tokens to drop in training. The fraction
            is uniform between 0 and this value for each image. The prior then relies more on the
            caption. 0 in the paper.
        sampling: recommended sampling, which the callbacks that sample use. None is the paper's.

    Raises:
        UserError: a number is not possible, settings of the optimizer exclude each other, or
            bitsandbytes is missing.
    """

    def __init__(
        self,
        network: Prior,
        learning_rate: Schedule,
        weight_decay: float = 4.5e-2,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-8,
        variance_clip: float | None = None,
        muon: bool = False,
        adam_bits: int = 32,
        caption_dropout: float = 0.1,
        image_dropout: float = 0.0,
        sampling: Sampling | None = None,
    ):
        super().__init__()
        check_optimizer(learning_rate, weight_decay, betas, eps)
        check_number("model.caption_dropout", caption_dropout, 0, 1)
        if caption_dropout == 1:
            raise UserError(
                f"model.caption_dropout={caption_dropout} empties every caption, so that prompts "
                "have no effect: set a number below 1"
            )
        check_number("model.image_dropout", image_dropout, 0, 1)
        if variance_clip is not None:
            check_number("model.variance_clip", variance_clip, 0, exclusive=True)
        if muon and variance_clip is not None:
            raise UserError(
                f"model.variance_clip={variance_clip} bounds AdamW's variance, and Muon has none: "
                "set model.variance_clip=null or model.muon=false"
            )
        check_adam_bits(adam_bits, muon, variance_clip)
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.variance_clip = variance_clip
        self.muon = muon
        self.adam_bits = adam_bits
        self.caption_dropout = caption_dropout
        self.image_dropout = image_dropout
        self.sampling = sampling or Sampling()
        # Means over all tokens of a validation and over all processes.
        self.text_nats = MeanMetric(nan_strategy="disable")
        self.image_nats = MeanMetric(nan_strategy="disable")

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        terms = self.network.stream.weighted_loss(torch.zeros(()), torch.zeros(()))
        return tuple(f"validation/{name}" for name in terms)

    def terms(
        self,
        text: Tensor,
        image: Tensor,
        image_dropout_mask: Tensor | None = None,
        row_weight: Tensor | float = 1.0,
        num_text_targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the stream's `weighted_loss`, such as `text` and `image` in nats and `loss`.

        Their averages over the processes are the means over all tokens of the global batch. The
        processes may have different numbers of rows or text tokens.

        Args:
            text: text of the stream, such as text tokens [B, T].
            image: image tokens [B, h, w].
            image_dropout_mask: booleans [B, h, w], True for image tokens to drop from the input.
            row_weight: `StageModule.row_weight`.
            num_text_targets: text targets per batch and process. None counts those of this batch.
        """
        stream = self.network.stream
        text_logits, image_logits = self.network(text, image, image_dropout_mask)
        text_nats, image_nats = stream.token_nats(text_logits, image_logits, text, image)
        is_target = stream.text_targets(text) & torch.as_tensor(row_weight > 0, device=text.device)
        if num_text_targets is None:
            num_text_targets = self._mean_over_processes(is_target.sum())
        text_mean = (text_nats * is_target).sum() / num_text_targets
        return stream.weighted_loss(text_mean, image_nats.mean() * row_weight)

    @staticmethod
    def _mean_over_processes(count: Tensor) -> Tensor:
        return sum_over_processes(count).clamp(min=1) / num_processes()

    def _drop_captions(self, text: Tensor) -> Tensor:
        """Drops a fraction `caption_dropout` of the captions at random."""
        if self.caption_dropout == 0:
            return text
        is_dropped = torch.rand(len(text), device=text.device) < self.caption_dropout
        is_dropped = is_dropped.view(-1, *[1] * (text.dim() - 1))
        return torch.where(is_dropped, self.network.stream.without_caption(text), text)

    def _begin_update(self, update_text: list[Tensor]) -> None:
        """Drops captions of all batches of an update, and counts the text tokens that remain."""
        self._update_text = [self._drop_captions(text) for text in update_text]
        count = sum(self.network.stream.text_targets(text).sum() for text in self._update_text)
        mean = self._mean_over_processes(torch.as_tensor(count))
        self._num_text_targets = mean / len(update_text)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        text, image = batch["text"], batch["image_tokens"]
        num_text_targets = None
        if "update_text" in batch:
            if batch["update_index"] == 0:
                self._begin_update(batch["update_text"])
            num_text_targets = self._num_text_targets
            if num_rows(batch):  # otherwise, the text belongs to another row, which does not count
                text = self._update_text[batch["update_index"]]
        else:
            text = self._drop_captions(text)
        mask = None
        if self.image_dropout > 0:
            fraction = self.image_dropout * torch.rand(len(image), 1, 1, device=image.device)
            mask = torch.rand(image.shape, device=image.device) < fraction
        terms = self.terms(text, image, mask, self.row_weight(batch), num_text_targets)
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values, sync_dist=True)
        return terms["loss"]

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        text, image = batch["text"], batch["image_tokens"]
        stream = self.network.stream
        text_logits, image_logits = self.network(text, image)
        text_nats, image_nats = stream.token_nats(text_logits, image_logits, text, image)
        rows = slice(num_rows(batch))
        self.text_nats.update(text_nats[rows][stream.text_targets(text[rows])])
        self.image_nats.update(image_nats[rows])

    def on_validation_epoch_end(self) -> None:
        stream = self.network.stream
        terms = stream.weighted_loss(self.text_nats.compute(), self.image_nats.compute())
        self.log_dict({f"validation/{name}": value for name, value in terms.items()})
        self.text_nats.reset()
        self.image_nats.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = transformer_optimizer(
            self, self.weight_decay, self.betas, self.eps, self.muon, self.adam_bits
        )
        if self.variance_clip is not None:
            clip_variance(optimizer, self.variance_clip)
        return scheduled(optimizer, self.learning_rate)
