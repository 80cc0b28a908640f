"""LightningModule of stage 1: loss, logging and optimizer."""

from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tilewright.dvae.adversarial import AdversarialLoss
from tilewright.dvae.networks import DiscreteVAE
from tilewright.dvae.perceptual import PerceptualLoss
from tilewright.dvae.vqgan import VQGAN
from tilewright.training.optimizers import check_optimizer, scheduled
from tilewright.training.schedules import Schedule, check_schedule
from tilewright.training.stage import StageModule, num_rows


class DiscreteVAEModule(StageModule):
    """Training of an image tokenizer on the negative evidence lower bound (section 2.1).

    A perceptual and an adversarial loss, which the paper does not have, make it sharper.

    Args:
        network: the dVAE or VQGAN.
        temperature: schedule of the relaxation's temperature.
        beta: schedule of the weight of the KL (or of another quantizer's penalties). The whole loss
            is divided by the number of pixel values, so the paper's 6.6 weighs each nat of a token
            by 6.6 / 192.
        learning_rate: schedule of the learning rate.
        weight_decay, betas, eps: arguments of AdamW.
        perceptual: distance in the features of a frozen network, added to the loss. None, as in the
            paper, adds nothing.
        adversarial: discriminator and its losses. None, as in the paper, trains without one.
    """

    def __init__(
        self,
        network: DiscreteVAE | VQGAN,
        temperature: Schedule,
        beta: Schedule,
        learning_rate: Schedule,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        perceptual: PerceptualLoss | None = None,
        adversarial: AdversarialLoss | None = None,
    ):
        super().__init__()
        if adversarial is not None:
            adversarial.check_size(network.image_size)
        check_optimizer(learning_rate, weight_decay, betas, eps)
        check_schedule("model.temperature", temperature, exclusive=True)
        check_schedule("model.beta", beta)
        self.network = network
        self.temperature = temperature
        self.beta = beta
        self.learning_rate = learning_rate
        self.optimizer = {"weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}
        self.perceptual = perceptual
        self.adversarial = adversarial

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        names = ["loss", "reconstruction", "hard_code_gap", *self.network.quantizer.penalties]
        if self.perceptual is not None:
            names.append("perceptual")
        return tuple(f"validation/{name}" for name in names)

    def terms(
        self, images: Tensor, maps: Tensor, penalties: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns the terms of the loss per pixel value, and their weighted sum `loss`.

        The adversarial losses are not among them, because their values do not measure quality.

        Args:
            images: [B, 3, H, W] in [0, 1].
            maps: [B, num_maps, H, W], the decoder's output.
            penalties: the quantizer's penalties per token, such as the KL.
        """
        reconstructions = self.network.likelihood.image(maps)
        image_loss, terms = self._image_loss(images, maps, reconstructions)
        return self._with_penalties(images, image_loss, terms, penalties)

    def _image_loss(
        self, images: Tensor, maps: Tensor, reconstructions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the decoder's output, and its terms."""
        loss = self.network.likelihood.nll(images, maps).mean()
        terms = {"reconstruction": loss}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, reconstructions)
            loss = loss + self.perceptual.weight * terms["perceptual"]
        return loss, terms

    def _with_penalties(
        self,
        images: Tensor,
        image_loss: Tensor,
        terms: dict[str, Tensor],
        penalties: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Returns the terms with the quantizer's penalties per pixel value, and the `loss`."""
        tokens_per_value = self.network.grid**2 / images[0].numel()  # 1 / 192 in the paper
        penalties = {name: value * tokens_per_value for name, value in penalties.items()}
        loss = image_loss + self.beta(self.global_step) * sum(penalties.values())
        return {"loss": loss, **terms, **penalties}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = batch["image"]
        temperature = self.temperature(self.global_step)
        codes, penalties = self.network.quantizer(self.network.latents(images), temperature)
        maps = self.network.maps(codes)
        weight = self.row_weight(batch)
        if self.adversarial is None:
            terms = self.terms(images, maps, penalties)
            objective = terms["loss"]
        else:
            step = self.adversarial(
                images,
                maps,
                self.network.likelihood.image,
                self._image_loss,
                weight,
                self.global_step,
            )
            terms = self._with_penalties(images, step.image_loss, step.terms, penalties)
            objective = terms["loss"] + step.discriminator_loss
        values = {f"train/{name}": weight * value.detach() for name, value in terms.items()}
        self.log_dict(values, sync_dist=True)
        self.log("schedule/beta", self.beta(self.global_step))
        self.log("schedule/temperature", temperature)
        return weight * objective

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
        hard = self.terms(images, self.network.maps(quantizer.codes(tokens)), penalties)
        relaxed = self.terms(images, self.network.maps(relaxed_codes), penalties)
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

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients of network and discriminator separately."""
        if self.adversarial is None or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )
        elif gradient_clip_val:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters())}]
        factors = [1.0]
        if self.adversarial is not None:
            groups.append(self.adversarial.parameter_group())
            factors.append(self.adversarial.learning_rate_ratio)
        optimizer = torch.optim.AdamW(groups, lr=1.0, **self.optimizer)  # type: ignore[arg-type]
        return scheduled(optimizer, self.learning_rate, factors)
