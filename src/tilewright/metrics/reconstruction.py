"""Metrics of a dVAE's reconstructions and of its codebook."""

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


class ReconstructionMetrics(MetricCollection):
    """PSNR, SSIM and L1 of reconstructions, updated with `(reconstructions, images)`.

    Both are float [B, 3, H, W] in [0, 1]. H and W are 6 or more (SSIM's window is 11 pixels wide).

    - `psnr`: in dB, averaged over images, as in papers on image tokenizers. (The PSNR of the mean
      squared error over all images is lower.) One perfect reconstruction makes it infinite.
    - `ssim`: Gaussian window of 11 pixels, sigma 1.5, mirrored border; averaged over images.
    - `l1`: mean absolute difference over all pixels and channels.

    Args:
        prefix: prefix of each name, for example `val/`.
    """

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(
            {
                "psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
                "ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
                "l1": MeanAbsoluteError(),
            },
            prefix=prefix,
            compute_groups=False,  # the three share no state
        )

    def update(self, reconstructions: Tensor, images: Tensor) -> None:  # type: ignore[override]
        # torchmetrics' L1 rejects channels_last tensors, and its SSIM exceeds 1 in bfloat16.
        pair = reconstructions.float().contiguous(), images.float().contiguous()
        for metric in self.values():
            # SSIM fails without images. PSNR needs an update for the dtypes of its empty states.
            if len(images) or not isinstance(metric, StructuralSimilarityIndexMeasure):
                metric.update(*pair)


class CodebookUsage(Metric):
    """Share of the codebook that image tokens use, and the perplexity of their distribution.

    `update` takes integer image tokens of any shape, such as [B, h, w], in [0, num_tokens).
    `compute` returns

    - `usage`: share of the codebook that occurs at least once, in [0, 1];
    - `perplexity`: exp of the entropy of the tokens' empirical distribution. It is between 1 (a
      single token) and `num_tokens` (all tokens equally often).

    Counts are summed over processes. The number of tokens seen bounds both values.

    Raises:
        ValueError: `update` gets a token of `num_tokens` or more.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor  # [num_tokens]

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        zeros = torch.zeros(num_tokens, dtype=torch.long)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, tokens: Tensor) -> None:
        counts = torch.bincount(tokens.flatten(), minlength=self.num_tokens)
        if len(counts) > self.num_tokens:
            raise ValueError(
                f"image token {len(counts) - 1} is outside the codebook of {self.num_tokens}"
            )
        self.counts += counts

    def compute(self) -> dict[str, Tensor]:
        probabilities = self.counts / self.counts.sum()
        return {
            "usage": (self.counts > 0).float().mean(),
            "perplexity": torch.special.entr(probabilities).sum().exp(),
        }
