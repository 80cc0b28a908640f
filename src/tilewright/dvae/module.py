"""LightningModule of stage 1: loss, logging and optimizer."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tilewright.dvae.networks import DiscreteVAE
from tilewright.dvae.vqgan import VQGAN
from tilewright.errors import UserError
from tilewright.training.optimizers import check_optimizer, scheduled
from tilewright.training.schedules import Schedule, check_schedule
from tilewright.training.stage import StageModule, num_rows


class DiscreteVAEModule(StageModule):
    """Training of a `DiscreteVAE` on the negative evidence lower bound (section 2.1).

    Args:
        network: the dVAE.
        temperature: schedule of the relaxation's temperature.
        beta: schedule of the weight of the KL (or of another quantizer's penalties). The whole loss
            is divided by the number of pixel values, so the paper's 6.6 weighs each nat of a token
            by 6.6 / 192.
        learning_rate: schedule of the learning rate.
        weight_decay, betas, eps: arguments of AdamW.
    """

    def __init__(
        self,
        network: DiscreteVAE,
        temperature: Schedule,
        beta: Schedule,
        learning_rate: Schedule,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__()
        if isinstance(network, VQGAN):
            raise UserError(
                "a VQGAN cannot be trained here: train a prior on it, with dvae= in stage=prior"
            )
        check_optimizer(learning_rate, weight_decay, betas, eps)
        check_schedule("model.temperature", temperature, exclusive=True)
        check_schedule("model.beta", beta)
        self.network = network
        self.temperature = temperature
        self.beta = beta
        self.learning_rate = learning_rate
        self.optimizer = {"weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        names = ("loss", "reconstruction", "hard_code_gap", *self.network.quantizer.penalties)
        return tuple(f"validation/{name}" for name in names)

    def terms(
        self, images: Tensor, codes: Tensor, penalties: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns the terms of the loss per pixel value, and their weighted sum `loss`.

        Args:
            images: [B, 3, H, W] in [0, 1].
            codes: [B, C, h, w], the decoder's input.
            penalties: the quantizer's penalties per token, such as the KL.
        """
        reconstruction = self.network.likelihood.nll(images, self.network.decoder(codes)).mean()
        tokens = codes.shape[-2] * codes.shape[-1]
        tokens_per_value = tokens / images[0].numel()  # 1 / 192 in the paper
        penalties = {name: value * tokens_per_value for name, value in penalties.items()}
        loss = reconstruction + self.beta(self.global_step) * sum(penalties.values())
        return {"loss": loss, "reconstruction": reconstruction, **penalties}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = batch["image"]
        temperature = self.temperature(self.global_step)
        codes, penalties = self.network.quantizer(self.network.latents(images), temperature)
        weight = self.row_weight(batch)
        terms = {name: weight * x for name, x in self.terms(images, codes, penalties).items()}
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values, sync_dist=True)
        self.log("schedule/beta", self.beta(self.global_step))
        self.log("schedule/temperature", temperature)
        return terms["loss"]

    def validation_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        """Logs the loss on hard codes, which the prior will see, and its gap to relaxed codes.

        Returns:
            `tokens` [B, h, w] and `reconstructions` [B, 3, H, W] of the rows that count.
        """
        images = batch["image"]
        quantizer = self.network.quantizer
        latents = self.network.latents(images)
        relaxed_codes, penalties = quantizer(latents, self.temperature(self.global_step))
        tokens = quantizer.tokens(latents)
        hard = self.terms(images, quantizer.codes(tokens), penalties)
        relaxed = self.terms(images, relaxed_codes, penalties)
        values = {**hard, "hard_code_gap": hard["loss"] - relaxed["loss"]}
        self.log_dict(
            {f"validation/{name}": value for name, value in values.items()},
            # A float, because Lightning's mean over processes truncates an integer.
            batch_size=float(num_rows(batch)),  # type: ignore[arg-type]
            sync_dist=True,
        )
        reconstructions = self.network.decode(tokens)
        rows = slice(num_rows(batch))
        return {"tokens": tokens[rows], "reconstructions": reconstructions[rows]}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.0, **self.optimizer)  # type: ignore[arg-type]
        return scheduled(optimizer, self.learning_rate)
