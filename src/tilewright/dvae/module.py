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
        image_loss, image_terms = self._image_terms(images, maps)
        penalty, penalty_terms = self._penalty_terms(images, penalties)
        return {"loss": image_loss + penalty, **image_terms, **penalty_terms}

    def _image_terms(self, images: Tensor, maps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the decoder's output, and its terms."""
        loss = self.network.likelihood.nll(images, maps).mean()
        terms = {"reconstruction": loss}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, self.network.likelihood.image(maps))
            loss = loss + self.perceptual.weight * terms["perceptual"]
        return loss, terms

    def _penalty_terms(
        self, images: Tensor, penalties: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the quantizer's loss, and its terms per pixel value."""
        tokens_per_value = self.network.grid**2 / images[0].numel()  # 1 / 192 in the paper
        terms = {name: value * tokens_per_value for name, value in penalties.items()}
        zero = images.new_zeros(())
        return self.beta(self.global_step) * sum(terms.values(), zero), terms

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = batch["image"]
        temperature = self.temperature(self.global_step)
        codes, penalties = self.network.quantizer(self.network.latents(images), temperature)
        maps = self.network.maps(codes)
        weight = self.row_weight(batch)
        if self.adversarial is not None and self.global_step >= self.adversarial.start:
            objective, terms = self._adversarial_step(images, maps, penalties, weight)
        else:
            terms = {k: weight * x for k, x in self.terms(images, maps, penalties).items()}
            objective = terms["loss"]
            if self.adversarial is not None:  # DDP and FSDP expect a gradient of every weight
                objective = objective + 0 * sum(p.sum() for p in self.adversarial.parameters())
        self.log_dict({f"train/{k}": value.detach() for k, value in terms.items()}, sync_dist=True)
        self.log("schedule/beta", self.beta(self.global_step))
        self.log("schedule/temperature", temperature)
        return objective

    def _adversarial_step(
        self, images: Tensor, maps: Tensor, penalties: dict[str, Tensor], weight: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the objective whose gradients train both networks, and the terms to log.

        Gradients of the generator's losses stop at the decoder's output, where they give the
        adaptive weight. Their sum goes through the decoder in one backward pass.

        Args:
            weight: weight of the batch.
        """
        assert self.adversarial is not None
        output = maps.detach().float().requires_grad_()
        image_loss, image_terms = self._image_terms(images, output)
        penalty, penalty_terms = self._penalty_terms(images, penalties)
        fake = self.adversarial.logits(self.network.likelihood.image(output))
        generator = -fake.mean()
        # Gradients of sums: those of means would underflow in fp16.
        scale = weight * output.numel()
        image_gradient = _gradient(scale * image_loss, output)
        generator_gradient = _gradient(scale * generator, output)
        ratio = self.adversarial.generator_weight(image_gradient, generator_gradient)
        gradient = (image_gradient + ratio * generator_gradient) / output.numel()

        discriminator = self.adversarial.hinge(self.adversarial.logits(images), fake)
        loss = image_loss + penalty
        terms = {"loss": loss, **image_terms, **penalty_terms}
        terms |= {"generator": generator, "discriminator": discriminator}
        self.log("schedule/generator_weight", ratio)
        objective = _with_gradient(weight * image_loss, maps, gradient)
        objective = objective + weight * (penalty + discriminator)
        return objective, {name: weight * value for name, value in terms.items()}

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
        if self.adversarial is not None:
            groups.append(self.adversarial.parameter_group())
        optimizer = torch.optim.AdamW(groups, lr=1.0, **self.optimizer)  # type: ignore[arg-type]
        return scheduled(optimizer, self.learning_rate)


def _gradient(loss: Tensor, output: Tensor) -> Tensor:
    return torch.autograd.grad(loss, output, retain_graph=True)[0]


def _with_gradient(value: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """Returns a scalar with a value, and with a gradient at `output` that is known already."""
    product = (output * gradient.detach()).sum()
    return value.detach() + product - product.detach()
