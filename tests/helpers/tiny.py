"""A tiny training of each stage, with all the randomness that there is."""

import pytorch_lightning as pl
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from helpers.recurrent import RecurrentPrior
from tilewright.callbacks.checkpoints import LastCheckpoint
from tilewright.callbacks.codebook import Codebook
from tilewright.callbacks.ema import AveragedWeights
from tilewright.callbacks.plateau import HalveOnPlateau
from tilewright.callbacks.randomness import StepSeeds
from tilewright.callbacks.reconstructions import Reconstructions
from tilewright.callbacks.retrieval import Retrieval
from tilewright.data import BytePairTokenizer, CaptionedImages
from tilewright.data.transforms import CenterCrop, StageOneCrop
from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import categorical_kl
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.dvae.quantizers.base import GumbelSoftmax
from tilewright.prior import Stream, Transformer
from tilewright.prior.module import PriorModule
from tilewright.ranker import DualEncoder
from tilewright.ranker.module import RankerModule
from tilewright.training.checkpoint_io import AtomicCheckpointIO
from tilewright.training.schedules import Constant, Cosine

STEPS = 40
SIZE = 16
ROWS = 22
CLIP = 1e-4
FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


class Noises:
    """Random pictures, a little larger than they are used, with two captions each."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (ROWS, SIZE + 4, SIZE + 4, 3), generator=generator)
        images = [PILImage.fromarray(picture.byte().numpy()) for picture in pixels]
        captions = [[f"picture {i}", f"number {i} of{' all' * (i % 3)}"] for i in range(ROWS)]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=FEATURES)
        return DatasetDict({"train": rows, "validation": rows.select(range(11))})


class Noiseless(GumbelSoftmax):
    """The relaxation without its noise, which no two processes draw alike."""

    def forward(self, latents, temperature):
        return (latents / temperature).softmax(dim=1), {"kl": categorical_kl(latents).mean()}


def make(stage, folder, noise=True, source=None, workers=0):
    """A module, its data, by default of `Noises`, and the callbacks that watch it.

    The stages are dvae, prior and ranker. Variants of the prior are muon (trained by Muon), clipped
    (AdamW's variances are bounded by CLIP) and recurrent (a network that is not a Transformer).
    """
    torch.manual_seed(0)
    network = DiscreteVAE(
        image_size=SIZE,
        grid=4,
        num_tokens=8,
        n_hid=8,
        n_init=8,
        blocks_per_group=1,
        quantizer=None if noise else Noiseless(8),
    )
    tokenizer, image_tokenizer = None, None
    if stage != "dvae":
        tokenizer = BytePairTokenizer(vocab_size=280, length=12, dropout=0.3)
        tokenizer.train(["picture number of all"] * 5)
    if stage == "dvae":
        module = DiscreteVAEModule(network, Cosine(1.0, 0.1, STEPS), Constant(1.0), Constant(1e-2))
        callbacks = [Reconstructions(), Codebook(8)]
    elif stage == "ranker":
        sizes = {"text_vocab": 280, "text_length": 12, "image_size": SIZE, "grid": 4}
        encoders = DualEncoder(**sizes, dim=16, heads=2, embedding=8)
        module = RankerModule(encoders, Cosine(1e-2, 1e-3, STEPS), cutmix_negatives=noise)
        callbacks = [Retrieval()]
    else:
        image_tokenizer = network.eval().requires_grad_(False)
        stream = Stream(text_length=12, text_vocab=280, grid=4, image_vocab=8)
        if stage == "recurrent":
            prior = RecurrentPrior(stream)
        else:
            prior = Transformer(stream, dim=16, depth=2, heads=2, positions="rotary")
        rate = Cosine(1e-2, 1e-3, STEPS)
        dropout = 0.3 if noise else 0.0
        module = PriorModule(
            prior,
            rate,
            muon=stage == "muon",
            variance_clip=CLIP if stage == "clipped" else None,
            caption_dropout=dropout,
        )
        callbacks = []
    data = CaptionedImages(
        source or Noises(),
        image_size=SIZE,
        batch_size=4,
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
    watch=(),
    source=None,
    workers=0,
    backend=None,
    **arguments,
):
    """Trains a run to its end, from `last.ckpt` where it has one.

    Its network is compiled where a backend of torch.compile is named.
    """
    module, data, callbacks = make(stage, folder, noise, source, workers)
    if backend:
        module.network.compile(backend=backend)
    trainer = pl.Trainer(
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
                *watch,
                HalveOnPlateau("validation/loss", patience=2),
                LastCheckpoint(str(folder / "checkpoints")),
                AveragedWeights(0.9, every=3),
            ],
            **arguments,
        }
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
