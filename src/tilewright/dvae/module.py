"""Stage 1 as a LightningModule: the loss, what is logged, the optimizer."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tilewright.dvae.networks import DiscreteVAE
from tilewright.training.optimizers import scheduled
from tilewright.training.schedules import Schedule
from tilewright.training.stage import StageModule


class DiscreteVAEModule(StageModule):
    """Trains a `DiscreteVAE` on the negative evidence lower bound (section 2.1).

    Args:
        network: the model.
        temperature: of the relaxation, by update.
        beta: weight of the KL (of the quantizer's penalties), by update. The total is divided by
            the number of pixel values once, so that the paper's 6.6 weighs as 6.6 / 192 for each
            nat of a token.
        learning_rate: by update.
        weight_decay, betas, eps: AdamW's.
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
        self.network = network
        self.temperature = temperature
        self.beta = beta
        self.learning_rate = learning_rate
        self.optimizer = {"weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}

    def terms(
        self, images: Tensor, codes: Tensor, penalties: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Reconstruction and penalties (the KL) per pixel value, and their weighted sum, `loss`."""
        reconstruction = self.network.likelihood.nll(images, self.network.decoder(codes)).mean()
        tokens = codes.shape[-2] * codes.shape[-1]
        share = tokens / images[0].numel()  # of a token in a pixel value: 1 / 192 in the paper
        penalties = {name: value * share for name, value in penalties.items()}
        loss = reconstruction + self.beta(self.global_step) * sum(penalties.values())
        return {"loss": loss, "reconstruction": reconstruction, **penalties}

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        images = batch["image"]
        temperature = self.temperature(self.global_step)
        codes, penalties = self.network.quantizer(self.network.latents(images), temperature)
        terms = self.terms(images, codes, penalties)
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values, sync_dist=True)
        self.log("schedule/beta", self.beta(self.global_step))
        self.log("schedule/temperature", temperature)
        return terms["loss"]

    def validation_step(self, batch: dict, batch_idx: int) -> dict[str, Tensor]:
        """The bound on hard codes, which is what the prior will see; callbacks get the pictures."""
        images = batch["image"]
        quantizer = self.network.quantizer
        latents = self.network.latents(images)
        relaxed, penalties = quantizer(latents, self.temperature(self.global_step))
        tokens = quantizer.tokens(latents)
        hard = self.terms(images, quantizer.codes(tokens), penalties)
        gap = hard["loss"] - self.terms(images, relaxed, penalties)["loss"]
        values = {**hard, "hard_code_gap": gap}
        self.log_dict(
            {f"validation/{name}": value for name, value in values.items()},
            batch_size=float(len(images)),  # type: ignore[arg-type]  # else rounded over processes
            sync_dist=True,
        )
        return {"tokens": tokens, "reconstructions": self.network.decode(tokens)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1.0, **self.optimizer)  # type: ignore[arg-type]
        return scheduled(optimizer, self.learning_rate)
