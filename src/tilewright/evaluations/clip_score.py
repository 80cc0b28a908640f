"""Similarity of generated images and their captions according to a pretrained CLIP."""

from dataclasses import dataclass, field
from pathlib import Path

from tilewright.checks import check_whole
from tilewright.data import CaptionedImages
from tilewright.data.image_tokenizer import weights_digest
from tilewright.errors import UserError
from tilewright.evaluations.generation import generate_images
from tilewright.evaluations.results import Result
from tilewright.metrics.scores import clip_score, load_clip_metric
from tilewright.prior import Sampling


@dataclass
class ClipScore:
    """CLIP score of generated images, with that of the real images for comparison.

    Args:
        clip: folder of a transformers CLIP, or its name on the Hugging Face Hub. There is no
            default.
        split: split of the captions and real images.
        images: maximum number of images, sampled from the split.
        sampling: sampling settings.
    """

    clip: str | None
    split: str = "validation"
    images: int = 1000
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_whole("images", self.images)

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        if self.clip is None:
            raise UserError(
                "metric=clip_score needs a CLIP: set metric.clip=PATH to the folder of a "
                "transformers CLIP, or to its name on the Hugging Face Hub"
            )
        clip = load_clip_metric(self.clip, device)  # first, because generation takes long
        images = generate_images(run, data, self.split, self.images, self.sampling, seed, device)
        images.save_grid(folder / "samples.png")
        settings = {
            "extractor": self.clip,
            "extractor_digest": weights_digest(clip.model),
            **vars(self.sampling),
        }
        return [
            Result(
                "clip_score",
                clip_score(batch, images.captions, clip),
                self.split,
                len(batch),
                {"image_set": name, **settings},
            )
            for name, batch in (("generated", images.generated), ("real", images.real))
        ]
