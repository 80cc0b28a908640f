"""Quality of the best of N candidates as N grows (section 2.6, figure 6)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tilewright.checks import check_whole
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.evaluations.alignment import alignment_results
from tilewright.evaluations.features import FeatureSettings, ImageSetFeatures
from tilewright.evaluations.results import Result
from tilewright.evaluations.splits import available_splits
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.reranking import Ranker
from tilewright.viz.images import captioned_grid, save_png
from tilewright.viz.plots import plot_lines


@dataclass
class BestOf:
    """Quality of the ranker's first choice among N candidates, for several N.

    The quality is the alignment if the source has a checker, which the ranker does not use.
    Otherwise it is the Fréchet distance to the real images. The candidates of a small N are the
    first ones of a larger N.

    Args:
        ranker: ranker that chooses among the candidates.
        counts: values of N.
        splits: splits whose captions are used. Splits that the data does not have are left out.
        captions: maximum number of captions, sampled from each split.
        sampling: sampling settings.
        batch_size: images that are generated at once.
        features: settings of the feature network, for the Fréchet distance.
    """

    ranker: Ranker
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32)
    splits: Sequence[str] = ("validation", "zeroshot")
    captions: int = 1000
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 128
    features: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        if not self.counts or isinstance(self.counts, int | str):
            raise UserError(f"counts={self.counts} is not a list of numbers: set [1,2,4]")
        for count in self.counts:
            check_whole("counts", count)
        check_whole("captions", self.captions)
        check_whole("batch_size", self.batch_size)

    @torch.inference_mode()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        model = TextToImage.from_run(run, device)
        model.check_supports(self.sampling, self.ranker)
        features = None
        if data.checker is None:
            check_whole("captions", self.captions, 2)  # for a Fréchet distance
            features = ImageSetFeatures(data, device, self.features)
        counts = sorted(set(self.counts))
        results = []
        for split in available_splits(data, self.splits):
            real, captions = zip(*data.examples(split, self.captions), strict=True)
            chosen = self._choose(model, captions, counts, seed)
            save_png(captioned_grid(captions[:8], chosen[:8]), folder / f"{split}.png")
            for index, count in enumerate(counts):
                settings = {"best_of": count, "ranker": self._ranker_name, **vars(self.sampling)}
                images = chosen[:, index]
                if features is not None:
                    pair = {"real": torch.stack(real), "chosen": images}
                    results.append(features.frechet_result(pair, split, folder, settings))
                elif data.checker is not None:
                    results += alignment_results(data.checker, captions, images, split, settings)
        _plot(results, folder / "best_of.png")
        return results

    def _choose(
        self, model: TextToImage, captions: Sequence[str], counts: Sequence[int], seed: int
    ) -> Tensor:
        """Returns the ranker's first choice of each count, images [C, len(counts), 3, H, W]."""
        tokens = model.sample_tokens(
            captions, counts[-1], sampling=self.sampling, seed=seed, batch_size=self.batch_size
        )
        scores = model.score(self.ranker, captions, tokens, self.batch_size)
        rows = torch.arange(len(tokens), device=tokens.device)
        best = [scores[:, :count].argmax(dim=1).to(tokens.device) for count in counts]
        chosen = torch.stack([tokens[rows, index] for index in best], dim=1)
        return model.decode(chosen, self.batch_size).cpu()

    @property
    def _ranker_name(self) -> str:
        return type(self.ranker).__name__.removesuffix("Ranker").lower()


def _plot(results: list[Result], path: Path) -> None:
    lines = defaultdict(list)
    for result in results:
        name = ", ".join(filter(None, (result.split, result.settings.get("category"))))
        interval = result.settings.get("interval", [])
        lines[name].append((result.settings["best_of"], result.value, *interval))
    x_label = "N candidates, of which the ranker chooses one"
    plot_lines(lines, path, x_label=x_label, y_label=results[0].metric, log_x=True)
