"""Scores of images without reference images."""

import functools
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.multimodal.clip_score import CLIPScore

from tilewright.checks import check_whole
from tilewright.errors import UserError
from tilewright.metrics.clip import load_clip
from tilewright.metrics.extractors import Extractor
from tilewright.metrics.features import check_finite
from tilewright.viz.images import to_uint8

logger = logging.getLogger(__name__)


def classifier_score(
    features: np.ndarray, extractor: Extractor, splits: int = 10, seed: int = 0
) -> tuple[float, float]:
    """Returns the classifier score, which is the Inception score if the extractor is Inception.

    The score is exp of the mean KL divergence of each image's class distribution from the mean
    distribution (Salimans et al. 2016). It is high if each image clearly belongs to one class and
    all classes occur. The parts are those of Salimans' code, which uses all images.

    Args:
        features: features [N, D] of images; the extractor's last layer classifies them.
        splits: number of parts that are scored separately, of two images or more each.
        seed: seed of the shuffle before the split into parts.

    Returns:
        Mean and standard deviation (with the divisor `splits`) over the parts.

    Raises:
        UserError: `splits` is not possible for this number of images, or a feature is not finite.
    """
    check_whole("splits", splits)
    if len(features) < 2 * splits:
        raise UserError(
            f"a classifier score of {splits} part(s) needs {2 * splits} images or more, got "
            f"{len(features)}: raise images= or lower metric.splits="
        )
    check_finite(features)
    with torch.no_grad():
        logits = extractor.classes(torch.from_numpy(features).to(extractor.device)).cpu().double()
    _warn_if_few(len(logits) // splits, logits.shape[1])
    log_p = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    log_p = log_p.log_softmax(dim=1)
    ends = [part * len(log_p) // splits for part in range(splits + 1)]
    scores = []
    for start, end in pairwise(ends):
        part = log_p[start:end]
        p = part.exp()
        divergence = torch.where(p > 0, p * (part - p.mean(dim=0).log()), 0.0)
        scores.append(divergence.sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean()), float(torch.stack(scores).std(correction=0))


@functools.cache  # warns once for generated and real images
def _warn_if_few(images_per_part: int, classes: int) -> None:
    if images_per_part < classes:
        logger.warning(
            "Classifier score on parts of %d images, fewer than the %d classes: the value is "
            "biased downwards. Compare it only with values on equally many images and parts",
            images_per_part,
            classes,
        )


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
