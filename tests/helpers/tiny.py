"""A tiny training of each stage that uses every kind of randomness."""

import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from helpers.recurrent import RecurrentPrior
from tilewright.callbacks import (
    AveragedWeights,
    CodebookUsageCallback,
    HalveOnPlateau,
    LastCheckpoint,
    Reconstructions,
    RetrievalCallback,
    StepSeeds,
)
from tilewright.data import BytePairTokenizer, CaptionedImages
from tilewright.data.transforms import CenterCrop, StageOneCrop
from tilewright.dvae import (
    VQGAN,
    AdversarialLoss,
    DiscreteVAE,
    PatchDiscriminator,
    PerceptualLoss,
)
from tilewright.dvae.losses import categorical_kl
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.dvae.quantizers.base import GumbelSoftmax
from tilewright.dvae.quantizers.fsq import FiniteScalarQuantizer
from tilewright.dvae.quantizers.vq import VectorQuantizer
from tilewright.prior import Stream, Transformer
from tilewright.prior.module import PriorModule
from tilewright.ranker import DualEncoder
from tilewright.ranker.module import RankerModule
from tilewright.training import AtomicCheckpointIO, Constant, Cosine, LowRankAdapters, Trainer

STEPS = 40  # updates
SIZE = 16  # pixels of an image's side
ROWS = 22  # of the training split
VARIANCE_CLIP = 1e-4
FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


class RandomImages:
    """Data source of random images with two captions each, a little larger than `SIZE`."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (ROWS, SIZE + 4, SIZE + 4, 3), generator=generator)
        images = [PILImage.fromarray(image.byte().numpy()) for image in pixels]
        captions = [[f"picture {i}", f"number {i} of{' all' * (i % 3)}"] for i in range(ROWS)]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=FEATURES)
        return DatasetDict({"train": rows, "validation": rows.select(range(11))})


class NoiselessRelaxation(GumbelSoftmax):
    """Relaxation without Gumbel noise, which differs between processes."""

    def forward(self, latents, temperature):
        return (latents / temperature).softmax(dim=1), {"kl": categorical_kl(latents).mean()}


def make(stage, folder, noise=True, source=None, workers=0, batch_size=4):
    """Returns a module, its data module and the callbacks of its stage.

    Args:
        stage: "dvae", "prior", "ranker" or a variant. "vq" and "fsq" are dVAEs with these
            quantizers, and "vqgan" is a VQGAN. "adversarial" is a dVAE with a perceptual loss and a
            discriminator. "muon" is a prior trained with Muon. "clipped" clips Adam's variances at
            `VARIANCE_CLIP`. "lora" is a prior with low-rank adapters. "recurrent" is a network that
            is not a Transformer.
        folder: folder of the token cache.
        noise: use dropout, relaxation noise and CutMix negatives, which differ between processes.
        source: data source. None uses `RandomImages`.
        workers: dataloader workers.
        batch_size: rows of a batch.
    """
    torch.manual_seed(0)
    quantizers = {
        "vq": lambda: VectorQuantizer(8, channels=4),
        "fsq": lambda: FiniteScalarQuantizer([8]),
        "dvae": lambda: None if noise else NoiselessRelaxation(8),
    }
    quantizers["adversarial"] = quantizers["vqgan"] = quantizers["dvae"]
    network = DiscreteVAE(
        image_size=SIZE,
        grid=4,
        num_tokens=8,
        n_hid=8,
        n_init=8,
        blocks_per_group=1,
        quantizer=quantizers.get(stage, quantizers["dvae"])(),
    )
    if stage == "vqgan":
        sizes = {"code_dim": 4, "channels": 8, "widths": [8, 8, 8], "blocks": 1, "groups": 4}
        network = VQGAN(image_size=SIZE, grid=4, num_tokens=8, attention=[], **sizes)
    tokenizer, image_tokenizer = None, None
    if stage not in quantizers:
        tokenizer = BytePairTokenizer(vocab_size=280, length=12, dropout=0.3)
        tokenizer.train(["picture number of all"] * 5)
    if stage in quantizers:
        losses = {}
        if stage == "adversarial":
            adversarial = AdversarialLoss(PatchDiscriminator(width=4, layers=1), start=3)
            losses = {"perceptual": PerceptualLoss(weight=1.0), "adversarial": adversarial}
        schedules = (Cosine(1.0, 0.1, STEPS), Constant(1.0), Constant(1e-2))
        module = DiscreteVAEModule(network, *schedules, **losses)
        callbacks = [Reconstructions(), CodebookUsageCallback(8)]
    elif stage == "ranker":
        sizes = {"text_vocab": 280, "text_length": 12, "image_size": SIZE, "grid": 4}
        encoders = DualEncoder(**sizes, dim=16, heads=2, embedding=8)
        module = RankerModule(encoders, Cosine(1e-2, 1e-3, STEPS), cutmix_negatives=noise)
        callbacks = [RetrievalCallback()]
    else:
        image_tokenizer = network.eval().requires_grad_(False)
        stream = Stream(text_length=12, text_vocab=280, grid=4, image_vocab=8)
        if stage == "recurrent":
            prior = RecurrentPrior(stream)
        else:
            prior = Transformer(stream, dim=16, depth=2, heads=2, positions="rotary")
        if stage == "lora":
            LowRankAdapters(rank=2, alpha=2, dropout=0.3 if noise else 0.0).add_to(prior)
        module = PriorModule(
            prior,
            Cosine(1e-2, 1e-3, STEPS),
            muon=stage == "muon",
            variance_clip=VARIANCE_CLIP if stage == "clipped" else None,
            caption_dropout=0.3 if noise else 0.0,
            image_dropout=0.3 if noise else 0.0,
        )
        callbacks = []
    data = CaptionedImages(
        source or RandomImages(),
        image_size=SIZE,
        batch_size=batch_size,
        train_transform=StageOneCrop(SIZE),
        eval_transform=CenterCrop(SIZE),
        tokenizer=tokenizer,
        image_tokenizer=image_tokenizer,
        augmented_tokens=True,
        cache=folder / "image_tokens",
        num_workers=workers,
    )
    return module, data, callbacks


def train(
    stage,
    folder,
    steps=STEPS,
    noise=True,
    extra_callbacks=(),
    source=None,
    workers=0,
    batch_size=4,
    backend=None,
    **trainer_arguments,
):
    """Trains a run to `steps` updates, from `last.ckpt` if there is one.

    Args:
        stage, folder, noise, source, workers, batch_size: those of `make`.
        backend: backend of torch.compile for the network. None does not compile.
    """
    module, data, callbacks = make(stage, folder, noise, source, workers, batch_size)
    if backend:
        module.network.compile(backend=backend)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": steps,
            "max_epochs": -1,
            "val_check_interval": 7,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "gradient_clip_val": 1.0,
            "plugins": [AtomicCheckpointIO()],
            "callbacks": [
                StepSeeds(0),
                *callbacks,
                *extra_callbacks,
                HalveOnPlateau("validation/loss", patience=2),
                LastCheckpoint(str(folder / "checkpoints")),
                AveragedWeights(0.9, every_n_updates=3),
            ],
            **trainer_arguments,
        }
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
