"""How well drawn pictures fit their captions, by a pretrained CLIP."""

from pathlib import Path

from tilewright.data import CaptionedImages
from tilewright.data.token_cache import weights_digest
from tilewright.errors import UserError
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import draw
from tilewright.metrics.scores import clip_score, load_clip
from tilewright.prior import Sampling


class ClipScore:
    """CLIP score of drawn pictures, and for comparison of the real ones.

    Args:
        clip: folder of a transformers CLIP, or its name on the Hugging Face Hub; there is no
            default.
        split: whose captions and pictures.
        images: at most so many of them, the first ones.
        sampling: how tokens are drawn.
    """

    def __init__(
        self,
        clip: str | None,
        split: str = "validation",
        images: int = 1000,
        sampling: Sampling | None = None,
    ):
        self.clip = clip
        self.split = split
        self.images = images
        self.sampling = sampling or Sampling()

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        if self.clip is None:
            raise UserError(
                "metric=clip_score needs a CLIP: metric.clip=PATH of a transformers CLIP, or its "
                "name on the Hugging Face Hub"
            )
        clip = load_clip(self.clip, device)  # before drawing, which takes long
        drawing = draw(run, data, self.split, self.images, self.sampling, seed, device)
        drawing.show(folder / "samples.png")
        settings = {
            "extractor": self.clip,
            "extractor_digest": weights_digest(clip.model),
            **vars(self.sampling),
        }
        results = []
        for of, images in (("generated", drawing.drawn), ("real", drawing.real)):
            value = clip_score(images, drawing.captions, clip)
            own = {"pictures": of, **settings}
            results.append(Result("clip_score", value, self.split, len(images), own))
        return results
