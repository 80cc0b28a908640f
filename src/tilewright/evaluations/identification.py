"""Whether a drawn picture can be told to be of its caption, among many of other captions."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import draw, write_folder
from tilewright.metrics.alignment import Share
from tilewright.metrics.extractors import find_extractor
from tilewright.metrics.features import folder_features
from tilewright.metrics.retrieval import identification_ranks
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.images import captioned_grid, save

EVERY = 2**62  # examples of a split: all of them


class Identification:
    """How often a picture drawn for a held-out caption is nearest to its true picture, among many.

    Nearest is the greatest cosine of features. Beside the drawn pictures stand the dVAE's
    reconstructions of the true ones, the most that a prior on it can reach, and on emoji the other
    style's picture of the same thing, which a prior that only knew the concept would draw; there
    the many are all of the caption's style.

    Args:
        split: whose captions are drawn.
        among: pictures of which one is the true one; the others are drawn by lot from this split
            and the validation split.
        images: at most so many captions, the first ones.
        resize, inception_weights: as metric=fid has them.
        sampling: how tokens are drawn.
    """

    def __init__(
        self,
        split: str = "zeroshot",
        among: int = 100,
        images: int = 1000,
        resize: str = "clean",
        inception_weights: str | None = None,
        sampling: Sampling | None = None,
    ):
        self.split = split
        self.among = among
        self.images = images
        self.resize = resize
        self.inception_weights = inception_weights
        self.sampling = sampling or Sampling()

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        extractor = find_extractor(device, self.inception_weights)
        held_out = self._held_out(data)
        drawing = draw(run, data, self.split, self.images, self.sampling, seed, device)
        shown = {
            "drawn": drawing.drawn,
            "reconstructed": _reconstructed(run, drawing.real, device),
            **_in_other_style(data, drawing.captions),
        }
        columns = torch.stack([*shown.values(), drawing.real], dim=1)
        save(captioned_grid(drawing.captions[:12], columns[:12]), folder / f"{self.split}.png")

        def features(images: Tensor, name: str) -> np.ndarray:
            written = write_folder(images, folder / name)
            cache = data.cache.parent / "features"
            return folder_features(written, extractor, self.resize, cache=cache)

        originals = features(torch.stack([image for image, _ in held_out]), "true")
        groups = np.array([_style(data, caption) for _, caption in held_out])
        results = []
        for name, images in shown.items():
            seen = features(images, name)
            ranks = identification_ranks(seen, originals, groups, self.among, seed)
            for k in (1, 5):
                share = Share(int((ranks < k).sum()), len(ranks))
                settings = {
                    "pictures": name,
                    "top": k,
                    "among": self.among,
                    "interval": share.interval,
                    "extractor": extractor.name,
                    "extractor_digest": extractor.digest,
                    "resize": self.resize,
                    **vars(self.sampling),
                }
                results.append(
                    Result("identification", share.value, self.split, share.trials, settings)
                )
        return results

    def _held_out(self, data: CaptionedImages) -> list[tuple[Tensor, str]]:
        """The pairs of this split, and those of the validation split behind them.

        Raises:
            UserError: there are too few, of some style.
        """
        others = [] if self.split.startswith("validation") else ["validation"]
        splits = [self.split, *others]
        pairs = [pair for split in splits for pair in data.examples(split, EVERY)]
        for style, count in Counter(_style(data, caption) for _, caption in pairs).items():
            if count < self.among:
                raise UserError(
                    f"{count} held-out pictures{style and f' of the style {style}'} are too few to "
                    f"find one among {self.among}: set metric.among={count} or less"
                )
        return pairs


def _reconstructed(run: Path, images: Tensor, device: str) -> Tensor:
    """What is left of images [N, 3, H, W] after the way through the run's image tokens."""
    model = TextToImage.from_run(run, device)
    tokens = [model.image_tokenizer.encode(batch.to(device)) for batch in images.split(64)]
    return model.decode(torch.cat(tokens)[:, None]).squeeze(1).cpu()


def _style(data: CaptionedImages, caption: str) -> str:
    return data.caption_styles.style(caption) if data.caption_styles else ""


def _in_other_style(data: CaptionedImages, captions: Sequence[str]) -> dict[str, Tensor]:
    """{"other style": the pictures [N, 3, H, W] of the same emoji}, where there are two styles
    and it has all of them."""
    if data.caption_styles is None:
        return {}
    pictures = {
        caption: image for split in data.splits for image, caption in data.examples(split, EVERY)
    }
    others = [data.caption_styles.in_other_style(caption) for caption in captions]
    if not pictures.keys() >= set(others):  # some cannot be used, or filters have dropped them
        return {}
    return {"other style": torch.stack([pictures[str(caption)] for caption in others])}
