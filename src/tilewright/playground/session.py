"""What happens when a button is pressed. It knows nothing of the page."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling, Weights
from tilewright.reranking import Ranker, candidates_of
from tilewright.viz.images import open_picture, to_picture


@dataclass(frozen=True)
class Request:
    """What the fields of the page hold.

    Args:
        best_of: candidates that are drawn, of which `n` are kept; 0 draws no more than these.
        top_k: 0 takes all tokens.
        top_p: 1 takes all.
        picture: file of the picture to begin with.
        rows: how many rows of its image tokens are kept.
    """

    caption: str
    n: int = 8
    best_of: int = 0
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    picture: str | None = None
    rows: int = 1


@dataclass(frozen=True)
class View:
    """What there is to see.

    Args:
        caption: what the pictures are drawn for.
        pictures: with rows in gray that are not drawn yet.
        note: how far the drawing is, or what came of it.
        progress: the fraction that is drawn, in [0, 1].
        records: of each finished picture what is known of it, as in `pictures.json`.
        settings: what they were drawn with, likewise.
    """

    caption: str
    pictures: list[Image.Image]
    note: str
    progress: float = 1.0
    records: list[dict[str, Any]] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)


class Playground:
    """A model that draws what is wished for.

    Args:
        model: what draws.
        ranker: what scores the candidates and picks the best of them.
        names: of the model and the ranker, for the record: {"run": …, "ranker": …}.
        batch_size: pictures that are drawn at once.
        most: candidates that one request may ask for.
        weights, compile: number format to draw in, and whether by compiled steps: as of `Sampling`.
        looking: the fraction of the time that may go into views of a drawing; 1 shows every row.
    """

    def __init__(
        self,
        model: TextToImage,
        ranker: Ranker | None = None,
        *,
        names: Mapping[str, str] | None = None,
        batch_size: int = 128,
        most: int = 1024,
        weights: Weights = "float32",
        compile: bool = False,
        looking: float = 0.25,
    ):
        self.model = model
        self.ranker = ranker
        self.names = names or {}
        self.batch_size = batch_size
        self.most = most
        self.weights = weights
        self.compile = compile
        self.looking = looking

    def draw(self, request: Request) -> Iterator[View]:
        """Views of the first `n` candidates while all are drawn, then one of the best `n`.

        Raises:
            UserError: there is something wrong with the request.
        """
        caption = request.caption.strip()
        if not caption:
            raise UserError("type a caption: what should the pictures show?")
        if request.n < 1:
            raise UserError(f"{request.n} pictures are none: ask for 1 or more")
        candidates = candidates_of(request.n, request.best_of, self.ranker)
        if candidates > self.most:
            raise UserError(f"{candidates} pictures are too many: ask for up to {self.most}")
        how = self._how(request)

        begun = due = time.monotonic()
        for tokens in self.model.drawing([caption], candidates, batch_size=self.batch_size, **how):
            now = time.monotonic()
            if now < due:
                continue
            progress = float((tokens >= 0).float().mean())
            what = f"{candidates} candidates" if candidates > request.n else "pictures"
            images = preview(self.model, tokens[:, : request.n])[0]
            yield View(caption, list(map(to_picture, images)), f"Drawing {what}", progress)
            after = time.monotonic()  # by now it is on the page as well
            due = after + (after - now) * (1 / self.looking - 1)
        best = self.model.choose([caption], tokens, request.n, self.ranker)
        seconds = time.monotonic() - begun
        yield View(
            caption,
            list(map(to_picture, best.images[0])),
            self._note(request.n, candidates, seconds),
            records=best.records([caption])[0],
            settings=self._settings(request, candidates, how["sampling"]),
        )

    def _how(self, request: Request) -> dict[str, Any]:
        """A request as the arguments of `TextToImage.drawing`."""
        try:
            sampling = Sampling(
                request.temperature,
                top_k=request.top_k or None,
                top_p=None if request.top_p == 1 else request.top_p,
                guidance=request.guidance,
                weights=self.weights,
                compile=self.compile,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        how: dict[str, Any] = {"sampling": sampling, "seed": request.seed}
        if request.picture is not None:
            if request.rows < 1:
                raise UserError("0 rows of the picture are none: keep 1 or more, or remove it")
            how |= {"image_prompt": open_picture(request.picture), "rows": request.rows}
        return how

    def _settings(self, request: Request, candidates: int, sampling: Sampling) -> dict[str, Any]:
        """What it takes to draw the same pictures again."""
        settings: dict[str, Any] = {**self.names, "seed": request.seed, "sampling": vars(sampling)}
        if self.ranker is not None:
            settings["best_of"] = candidates
        if request.picture is not None:
            settings |= {"image_prompt": Path(request.picture).name, "rows": request.rows}
        return settings

    def _note(self, n: int, candidates: int, seconds: float) -> str:
        pictures = "1 picture" if n == 1 else f"{n} pictures"
        of = f", the best of {candidates}" if candidates > n else ""
        return f"{pictures}{of}, in {seconds:.1f} s"


def preview(model: TextToImage, tokens: Tensor) -> Tensor:
    """Images [C, n, 3, H, W] in [0, 1] of tokens [C, n, h, w], with gray for those that are -1."""
    drawn = tokens >= 0
    images = model.decode(tokens.clamp(min=0))
    side = images.shape[-1] // tokens.shape[-1]
    shown = drawn.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
    return images.where(shown[:, :, None], 0.5)
