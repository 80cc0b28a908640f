"""Image generation behind the playground page, independent of Gradio."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tilewright.checks import check_whole
from tilewright.data.truncation import truncation_warning
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling, Weights
from tilewright.reranking import Ranker, resolve_best_of
from tilewright.viz.images import open_image, to_pil

MAX_CAPTION = 1000  # characters; the page repeats the caption in each image


@dataclass(frozen=True)
class Request:
    """Values of the page's fields.

    Args:
        best_of: candidates to sample, of which the ranker keeps `n`; 0 samples `n`.
        temperature, guidance: None uses the recommended value.
        top_k: 0 keeps all tokens; None uses the recommended value.
        top_p: 1 keeps all tokens; None uses the recommended value.
        image_prompt: path of an image whose top rows of image tokens are kept.
        rows: number of rows kept from `image_prompt`.
    """

    caption: str
    n: int = 8
    best_of: int = 0
    seed: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance: float | None = None
    image_prompt: str | None = None
    rows: int = 1


@dataclass(frozen=True)
class Snapshot:
    """State of a generation, for display.

    Args:
        caption: caption of the images.
        images: images so far. Rows that have not been sampled yet are gray.
        note: a status line.
        progress: fraction of the tokens sampled so far, in [0, 1].
        records: a JSON record per image, as in `pictures.json`; empty until the end.
        settings: settings that reproduce the images; empty until the end.
        warning: a warning that a part of the caption has no effect. None if all of it is used.
    """

    caption: str
    images: list[Image.Image]
    note: str
    progress: float = 1.0
    records: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None


class Playground:
    """A text-to-image model that answers requests of the page.

    Args:
        model: generates the images.
        ranker: ranks the candidates of `best_of`.
        run_name: name of the model's run, for the page and for saved settings.
        steps: number of updates of the run's weights, for saved settings.
        ranker_name: name of the ranker, for the same uses.
        batch_size: number of images that are sampled, scored or decoded in one batch.
        max_candidates: largest number of candidates that a request may sample.
        weights, compile: see `Sampling`.
        preview_fraction: fraction of the time that may be spent on previews; 1 shows every row.

    Raises:
        UserError: the ranker needs another prior.
    """

    def __init__(
        self,
        model: TextToImage,
        ranker: Ranker | None = None,
        *,
        run_name: str | None = None,
        steps: int | None = None,
        ranker_name: str | None = None,
        batch_size: int = 128,
        max_candidates: int = 1024,
        weights: Weights = "float32",
        compile: bool = False,
        preview_fraction: float = 0.25,
    ):
        model.check_supports(ranker=ranker)
        self.model = model
        self.ranker = ranker
        self.run_name = run_name
        self.steps = steps
        self.ranker_name = ranker_name
        self.batch_size = batch_size
        self.max_candidates = max_candidates
        self.weights = weights
        self.compile = compile
        self.preview_fraction = preview_fraction

    def generate(self, request: Request) -> Iterator[Snapshot]:
        """Yields previews of the first `n` candidates, then the best `n` of all.

        Raises:
            UserError: a value of the request is not valid.
        """
        caption = request.caption.strip()
        if not caption:
            raise UserError("the caption is empty: type what the images should show")
        if len(caption) > MAX_CAPTION:
            raise UserError(
                f"the caption has {len(caption)} characters: shorten it to {MAX_CAPTION}"
            )
        candidates = self._count_candidates(request)
        sampling = self._sampling(request)
        image_prompt = self._image_prompt(request)

        warning = truncation_warning(self.model.tokenizer, [caption])

        start = next_preview = time.monotonic()
        for tokens in self.model.sample_tokens_by_row(
            [caption],
            candidates,
            sampling=sampling,
            seed=request.seed,
            image_prompt=image_prompt,
            rows=request.rows if image_prompt else 0,
            batch_size=self.batch_size,
        ):
            preview_start = time.monotonic()
            if preview_start < next_preview:
                continue
            images = render_partial(self.model, tokens[:, : request.n])[0]
            kind = "candidates" if candidates > request.n else "images"
            yield Snapshot(
                caption,
                [to_pil(image) for image in images],
                f"Generating {candidates} {kind}",
                progress=float((tokens >= 0).float().mean()),
                warning=warning,
            )
            preview_end = time.monotonic()  # the page has received the preview by now
            preview_seconds = preview_end - preview_start
            next_preview = preview_end + preview_seconds * (1 / self.preview_fraction - 1)
        best = self.model.rank([caption], tokens, request.n, self.ranker, self.batch_size)
        seconds = time.monotonic() - start
        yield Snapshot(
            caption,
            [to_pil(image) for image in best.images[0]],
            _summary(request.n, candidates, seconds),
            records=best.records([caption])[0],
            settings=self._settings(request, candidates, sampling),
            warning=warning,
        )

    def _count_candidates(self, request: Request) -> int:
        candidates = resolve_best_of(request.n, request.best_of, self.ranker)
        if candidates > self.max_candidates:
            raise UserError(
                f"{candidates} images are too many: ask for at most {self.max_candidates}"
            )
        return candidates

    def _sampling(self, request: Request) -> Sampling:
        names = ("temperature", "top_k", "top_p", "guidance")
        values = {name: getattr(request, name) for name in names}
        changes = {name: value for name, value in values.items() if value is not None}
        keeps_all = {"top_k": 0, "top_p": 1}
        changes |= {name: None for name, value in keeps_all.items() if values[name] == value}
        return replace(self.model.sampling, **changes, weights=self.weights, compile=self.compile)

    def _image_prompt(self, request: Request) -> Image.Image | None:
        if request.image_prompt is None:
            return None
        check_whole("rows", request.rows)
        return open_image(request.image_prompt)

    def _settings(self, request: Request, candidates: int, sampling: Sampling) -> dict[str, Any]:
        """Returns the settings that reproduce the images, for the PNG files."""
        model = {"run": self.run_name, "steps": self.steps, "ranker": self.ranker_name}
        settings: dict[str, Any] = {key: value for key, value in model.items() if value is not None}
        settings |= {"seed": request.seed, "sampling": vars(sampling)}
        if self.ranker is not None:
            settings["best_of"] = candidates
        if request.image_prompt is not None:
            settings |= {"image_prompt": Path(request.image_prompt).name, "rows": request.rows}
        return settings


def _summary(n: int, candidates: int, seconds: float) -> str:
    images = "1 image" if n == 1 else f"{n} images"
    selection = f", the best of {candidates}" if candidates > n else ""
    return f"{images}{selection}, in {seconds:.1f} s"


def render_partial(model: TextToImage, tokens: Tensor) -> Tensor:
    """Decodes unfinished image tokens [C, n, h, w] to images [C, n, 3, H, W] in [0, 1].

    Tokens that have not been sampled yet are -1, and their part of the image is gray.
    """
    sampled = tokens >= 0
    images = model.decode(tokens.clamp(min=0))
    side = images.shape[-1] // tokens.shape[-1]
    visible = sampled.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
    return images.where(visible[:, :, None], 0.5)
