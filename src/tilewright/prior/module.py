"""Stage 2 as a LightningModule: the loss, what is logged, the optimizer."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed
from torchmetrics import MeanMetric

from tilewright.errors import UserError
from tilewright.prior.transformer import Transformer
from tilewright.training.optimizers import clip_variance, matrix_optimizer, scheduled
from tilewright.training.schedules import Schedule
from tilewright.training.stage import StageModule


class PriorModule(StageModule):
    """Trains a `Transformer` to predict each next token of the stream.

    Args:
        network: the model.
        learning_rate: by update.
        weight_decay, betas, eps: AdamW's; only matrices decay.
        variance_clip: most that AdamW's running variance of a gradient may be (the paper: 5); None
            for no bound.
        muon: Muon updates the matrices, AdamW the rest; the paper has AdamW for all.
        caption_dropout: share of captions that are emptied in training, which is what guidance in
            sampling needs; the paper has none.
        image_dropout: up to this share of a picture's image tokens are not shown in training, each
            picture has a share of its own. What the tokens before do not tell has then to be read
            from the caption, and pairs come out that were never seen together; the paper has none.
    """

    def __init__(
        self,
        network: Transformer,
        learning_rate: Schedule,
        weight_decay: float = 4.5e-2,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-8,
        variance_clip: float | None = None,
        muon: bool = False,
        caption_dropout: float = 0.1,
        image_dropout: float = 0.0,
    ):
        super().__init__()
        if muon and variance_clip is not None:
            raise UserError("Muon has no variance to clip: set model.variance_clip=null")
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.variance_clip = variance_clip
        self.muon = muon
        self.caption_dropout = caption_dropout
        self.image_dropout = image_dropout
        # Over all tokens of a validation, and over all processes.
        self.text_nats = MeanMetric(nan_strategy="disable")
        self.image_nats = MeanMetric(nan_strategy="disable")

    def terms(self, text: Tensor, image: Tensor, hidden: Tensor | None = None) -> dict[str, Tensor]:
        """Cross-entropies of text and image in nats per token, and their weighted sum, `loss`.

        Their means over the processes are the means over all tokens, wherever the long captions
        are.
        """
        text_logits, image_logits = self.network(text, image, hidden)
        stream = self.network.stream
        targets = stream.counts(text).sum().float()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(targets)
            targets /= distributed.get_world_size()
        return stream.loss(text_logits, image_logits, text, image, targets)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        text = batch["text_tokens"]
        if self.caption_dropout > 0:
            dropped = torch.rand(len(text), 1, device=text.device) < self.caption_dropout
            empty = self.network.stream.empty_captions(len(text), text.device)
            text = torch.where(dropped, empty, text)
        image, hidden = batch["image_tokens"], None
        if self.image_dropout > 0:  # each picture has a share of its own
            share = self.image_dropout * torch.rand(len(image), 1, 1, device=image.device)
            hidden = torch.rand(image.shape, device=image.device) < share
        terms = self.terms(text, image, hidden)
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values, sync_dist=True)
        return terms["loss"]

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        text, image = batch["text_tokens"], batch["image_tokens"]
        stream = self.network.stream
        text_logits, image_logits = self.network(text, image)
        of_text, of_image = stream.nats(text_logits, image_logits, text, image)
        self.text_nats.update(of_text[stream.counts(text)])
        self.image_nats.update(of_image)

    def on_validation_epoch_end(self) -> None:
        terms = self.network.stream.weigh(self.text_nats.compute(), self.image_nats.compute())
        self.log_dict({f"validation/{name}": value for name, value in terms.items()})
        self.text_nats.reset()
        self.image_nats.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        how = (self.weight_decay, self.betas, self.eps, self.muon)
        optimizer = matrix_optimizer(self.network, *how)
        if self.variance_clip is not None:
            clip_variance(optimizer, self.variance_clip)
        return scheduled(optimizer, self.learning_rate)
