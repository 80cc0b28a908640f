"""Identification of generated images: is each one nearest to the true image of its caption?"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tilewright.checks import check_whole
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.evaluations.features import FeatureSettings, ImageSetFeatures
from tilewright.evaluations.generation import generate_images
from tilewright.evaluations.results import Result
from tilewright.metrics.alignment import Share
from tilewright.metrics.retrieval import identification_ranks
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.images import captioned_grid, save_png

TOP = (1, 5)  # k of top-k: the true image is among the k nearest
ALL = sys.maxsize  # count that takes all examples of a split


@dataclass
class Identification:
    """Share of generated images that are nearest to their true image among many candidates.

    Nearest is the greatest cosine similarity of features. For comparison, the same share is
    measured for the dVAE's reconstructions of the true images, which bound what a prior can reach.
    If the source has two caption styles, it is also measured for the same concept in the other
    style. A prior that learned the concept but not the style would generate such an image. All
    candidates then have the caption's style.

    Args:
        split: split of the captions.
        among: number of candidates: the true image and others, sampled from this split and from
            the validation split.
        images: maximum number of captions, sampled from the split.
        features: settings of the feature network.
        sampling: sampling settings.
    """

    split: str = "zeroshot"
    among: int = 100
    images: int = 1000
    features: FeatureSettings = field(default_factory=FeatureSettings)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_whole("images", self.images)
        check_whole("among", self.among, 2)

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        features = ImageSetFeatures(data, device, self.features)
        candidates = self._candidates(data)
        images = generate_images(run, data, self.split, self.images, self.sampling, seed, device)
        image_sets = {
            "generated": images.generated,
            "reconstructed": _reconstruct(run, images.real, device),
            **_other_style(data, images.captions),
        }
        columns = torch.stack([*image_sets.values(), images.real], dim=1)
        save_png(captioned_grid(images.captions[:12], columns[:12]), folder / f"{self.split}.png")

        true_images = torch.stack([image for image, _ in candidates])
        true_features = features.of_images(true_images, folder / "true")
        styles = np.array([_style(data, caption) for _, caption in candidates])
        shared = {**features.result_settings, **vars(self.sampling)}
        results = []
        for name, image_set in image_sets.items():
            own_features = features.of_images(image_set, folder / name)
            ranks = identification_ranks(own_features, true_features, styles, self.among, seed)
            for k in [k for k in TOP if k < self.among]:
                share = Share(int((ranks < k).sum()), len(ranks))
                settings = {
                    "image_set": name,
                    "top": k,
                    "among": self.among,
                    "interval": share.interval,
                    **shared,
                }
                results.append(
                    Result("identification", share.value, self.split, share.trials, settings)
                )
        return results

    def _candidates(self, data: CaptionedImages) -> list[tuple[Tensor, str]]:
        """Returns the images and captions of this split, followed by the validation split's.

        Raises:
            UserError: a style has fewer than `among` images.
        """
        more = [] if self.split.startswith("validation") else ["validation"]
        pairs = [pair for split in [self.split, *more] for pair in data.examples(split, ALL)]
        for style, count in Counter(_style(data, caption) for _, caption in pairs).items():
            if count < self.among:
                of_style = f" of the style {style}" if style else ""
                raise UserError(
                    f"{count} candidates{of_style} are fewer than metric.among={self.among}: "
                    f"set metric.among={count} or less"
                )
        return pairs


def _reconstruct(run: Path, images: Tensor, device: str) -> Tensor:
    """Returns the reconstructions of images [N, 3, H, W] from the run's image tokens."""
    model = TextToImage.from_run(run, device)
    return model.decode(model.encode(images)[:, None]).squeeze(1).cpu()


def _style(data: CaptionedImages, caption: str) -> str:
    """Returns the style of a caption, or "" if the source has no caption styles."""
    return data.caption_styles.style(caption) if data.caption_styles else ""


def _other_style(data: CaptionedImages, captions: Sequence[str]) -> dict[str, Tensor]:
    """Returns {"other style": images [N, 3, H, W]} of the same concepts in the other style.

    Returns {} if there is no other style, or if an image is missing or unreadable.
    """
    if data.caption_styles is None:
        return {}
    by_caption = {
        caption: image for split in data.splits for image, caption in data.examples(split, ALL)
    }
    counterparts = [data.caption_styles.in_other_style(caption) for caption in captions]
    images = [by_caption[caption] for caption in counterparts if caption in by_caption]
    return {"other style": torch.stack(images)} if len(images) == len(captions) else {}
