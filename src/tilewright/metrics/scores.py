"""Scores of images without reference images, computed by torchmetrics."""

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

from tilewright.metrics.clip import load_clip
from tilewright.metrics.extractors import Extractor
from tilewright.viz.images import to_uint8


def classifier_score(
    features: np.ndarray, extractor: Extractor, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Returns the classifier score, which is the Inception score if the extractor is Inception.

    The score is exp of the mean KL divergence of each image's class distribution from the mean
    distribution (Salimans et al. 2016). It is high if each image clearly belongs to one class and
    all classes occur.

    Args:
        features: features [N, D] of images; the extractor's last layer classifies them.
        splits: number of parts that are scored separately; at most N are used.
        seed: seed of the shuffle before the split into parts.

    Returns:
        Mean and standard deviation over the parts. The deviation of one part is 0.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        warnings.filterwarnings("ignore", message=".*degrees of freedom.*")  # with one part
        torch.manual_seed(seed)
        score = InceptionScore(feature=nn.Identity(), splits=min(splits, len(features)))
        score.update(extractor.classes(torch.from_numpy(features).to(extractor.device)).cpu())
        mean, deviation = score.compute()
    return float(mean), float(deviation.nan_to_num())


def clip_score(
    images: Tensor, captions: Sequence[str], metric: CLIPScore, batch_size: int = 64
) -> float:
    """Returns 100 times the mean cosine similarity of images and captions, or 0 if negative.

    Args:
        images: [N, 3, H, W] in [0, 1], rounded to 256 levels first.
        captions: N captions; CLIP truncates long ones.
        metric: metric that `load_clip_metric` returns.
    """
    metric.reset()
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            metric.update(to_uint8(images[batch]).to(metric.device), list(captions[batch]))
    return float(metric.compute())


def load_clip_metric(name_or_path: str | Path, device: torch.device | str = "cpu") -> CLIPScore:
    """Loads a pretrained CLIP as a torchmetrics `CLIPScore`.

    Args:
        name_or_path: folder of a transformers CLIP, or its name on the Hugging Face Hub.

    Raises:
        UserError: transformers is not installed, or the CLIP cannot be loaded.
    """
    load: Any = functools.partial(load_clip, name_or_path)  # typed for transformers' own classes
    return CLIPScore(load).to(device)
