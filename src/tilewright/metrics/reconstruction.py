"""How well a dVAE gives its images back, and how much of its codebook it uses."""

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


class ReconstructionMetrics(MetricCollection):
    """`psnr`, `ssim` and `l1` of reconstructions, updated with `(reconstructions, images)`.

    Both are float `[B, 3, H, W]` in [0, 1], H and W more than 5 (half of SSIM's window).

    - `psnr`: in dB, of each image, and the mean over images: the convention of papers on image
      tokenizers. (The PSNR of the mean squared error over all images is another, lower figure.)
      A single image given back exactly makes it infinite.
    - `ssim`: Gaussian window of 11 pixels, deviation 1.5, the border mirrored; mean over images.
    - `l1`: the mean absolute difference over all pixels and channels.

    Args:
        prefix: put before each name, for example `val/`.
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
        # The L1 of torchmetrics takes no channels_last, which convolutions give, and its SSIM gives
        # figures above 1 in the bf16 of a network under autocast.
        super().update(reconstructions.float().contiguous(), images.float().contiguous())


class CodebookUse(Metric):
    """How much of a codebook the image tokens seen so far use.

    `update` takes integer image tokens of any shape, such as `[B, h, w]`, with values in
    [0, num_tokens); `ValueError` for a larger one. `compute` returns

    - `use`: the share of the codebook seen at least once, in [0, 1];
    - `perplexity`: exp of the entropy of the tokens' empirical distribution, from 1 (a single
      token) to `num_tokens` (all equally often).

    Counts are summed over processes. Both figures are bounded by the number of tokens seen.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        zeros = torch.zeros(num_tokens, dtype=torch.long)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, tokens: Tensor) -> None:
        counts = torch.bincount(tokens.flatten(), minlength=self.num_tokens)
        if len(counts) > self.num_tokens:
            raise ValueError(f"token {len(counts) - 1} in a codebook of {self.num_tokens}")
        self.counts += counts

    def compute(self) -> dict[str, Tensor]:
        share = self.counts / self.counts.sum()
        return {
            "use": (self.counts > 0).float().mean(),
            "perplexity": torch.special.entr(share).sum().exp(),
        }
