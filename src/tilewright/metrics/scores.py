"""Scores of pictures that need no real ones beside them: torchmetrics computes both."""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.multimodal.clip_score import CLIPScore

from tilewright.metrics.clip import clip_towers
from tilewright.metrics.extractors import Extractor
from tilewright.viz.images import to_levels


def classifier_score(
    features: np.ndarray, extractor: Extractor, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """exp of the mean KL from the mean class distribution to a picture's own (Salimans et al.
    2016): high where each picture is surely of one class, and all classes occur.

    Args:
        features: [N, D] of pictures; the extractor's last layer makes classes of them.
        splits: parts that are scored for themselves, N or fewer.
        seed: of the shuffle before the parts.

    Returns:
        Mean and standard deviation over the splits, the latter 0 where there is one.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        warnings.filterwarnings("ignore", message=".*degrees of freedom.*")  # of a single split
        torch.manual_seed(seed)
        score = InceptionScore(feature=nn.Identity(), splits=min(splits, len(features)))
        score.update(extractor.classes(torch.from_numpy(features).to(extractor.device)).cpu())
        mean, deviation = score.compute()
    return float(mean), float(deviation.nan_to_num())


def clip_score(
    images: Tensor, captions: Sequence[str], clip: CLIPScore, batch_size: int = 64
) -> float:
    """100 times the mean cosine between pictures and their captions in CLIP's space, or 0 if less.

    Args:
        images: [N, 3, H, W] in [0, 1], rounded to a file's 256 levels first.
        captions: N of them; one that is longer than CLIP reads is cut.
        clip: of `load_clip`.
    """
    clip.reset()
    with torch.no_grad():
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            clip.update(to_levels(images[part]).to(clip.device), list(captions[part]))
    return float(clip.compute())


def load_clip(clip: str | Path, device: torch.device | str = "cpu") -> CLIPScore:
    """torchmetrics' score with a pretrained CLIP.

    Args:
        clip: folder of a transformers CLIP, or its name on the Hugging Face Hub.

    Raises:
        UserError: transformers is not installed, or there is no such CLIP.
    """
    towers: Any = functools.partial(clip_towers, clip)  # transformers' types may not be there
    return CLIPScore(towers).to(device)
