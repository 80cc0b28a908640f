"""What choosing the best of N candidates gains, as N grows (section 2.6, figure 6)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright.data import CaptionedImages
from tilewright.evaluations.alignment import alignment_results
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import write_folder
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import find_extractor
from tilewright.metrics.features import folder_features
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.reranking import Ranker
from tilewright.viz.images import captioned_grid, save
from tilewright.viz.plots import curves


class BestOf:
    """The quality of the ranker's first choice among N candidates, for several N.

    The candidates of a smaller N are the first of those of a larger one. On shapes the measure is
    the checker's, which had no part in choosing; elsewhere it is a Fréchet distance.

    Args:
        ranker: what chooses.
        counts: the N's.
        splits: whose captions are drawn; those that the data does not have are left out.
        captions: at most so many of each, the first ones.
        sampling: how tokens are drawn.
        batch_size: pictures that are drawn at once.
        resize, inception_weights: of the Fréchet distance.
    """

    def __init__(
        self,
        ranker: Ranker,
        counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
        splits: Sequence[str] = ("validation", "zeroshot"),
        captions: int = 1000,
        sampling: Sampling | None = None,
        batch_size: int = 128,
        resize: str = "clean",
        inception_weights: str | None = None,
    ):
        self.ranker = ranker
        self.counts = sorted(counts)
        self.splits = splits
        self.captions = captions
        self.sampling = sampling or Sampling()
        self.batch_size = batch_size
        self.resize = resize
        self.inception_weights = inception_weights

    @torch.inference_mode()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        model = TextToImage.from_run(run, device)
        results = []
        for split in data.present(self.splits):
            real, captions = zip(*data.examples(split, self.captions), strict=True)
            tokens = model.tokens(
                captions,
                self.counts[-1],
                sampling=self.sampling,
                seed=seed,
                batch_size=self.batch_size,
            )
            scores = model.scores(self.ranker, captions, tokens, self.batch_size)
            picks = []
            for count in self.counts:
                chosen = scores[:, :count].argmax(dim=1).to(tokens.device)
                picks.append(tokens[torch.arange(len(tokens), device=tokens.device), chosen])
            images = model.decode(torch.stack(picks, dim=1)).cpu()  # [C, counts, 3, H, W]
            save(captioned_grid(captions[:8], images[:8]), folder / f"{split}.png")
            for number, count in enumerate(self.counts):
                settings = {"best_of": count, "ranker": _name(self.ranker), **vars(self.sampling)}
                chosen_ones = images[:, number]
                if data.checker is not None:
                    results += alignment_results(
                        data.checker, captions, chosen_ones, split, settings
                    )
                else:
                    pair = torch.stack(real), chosen_ones
                    cache = data.cache.parent / "features"
                    results.append(self._frechet(pair, split, settings, device, folder, cache))
        self._plot(results, folder)
        return results

    def _frechet(
        self,
        pair: tuple[Tensor, Tensor],
        split: str,
        settings: dict[str, Any],
        device: str,
        folder: Path,
        cache: Path,
    ) -> Result:
        """The distance between real images and chosen ones, both [N, 3, H, W]."""
        extractor = find_extractor(device, self.inception_weights)
        features = [
            folder_features(
                write_folder(images, folder / name), extractor, self.resize, cache=cache
            )
            for name, images in zip(("real", "chosen"), pair, strict=True)
        ]
        settings = {
            **settings,
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": self.resize,
        }
        value = frechet_distance(*features)
        return Result(extractor.figure("fid"), value, split, len(pair[1]), settings)

    def _plot(self, results: list[Result], folder: Path) -> None:
        lines = defaultdict(list)
        for result in results:
            name = ", ".join(filter(None, (result.split, result.settings.get("category"))))
            interval = result.settings.get("interval", [])
            lines[name].append((result.settings["best_of"], result.value, *interval))
        up = "share drawn right" if results[0].metric == "alignment" else results[0].metric
        across = "N candidates, of which the ranker chooses one"
        curves(lines, folder / "best_of.png", across=across, up=up, log_x=True)


def _name(ranker: Ranker) -> str:
    return type(ranker).__name__.removesuffix("Ranker").lower()
