"""Captions in, pictures out: what generate, eval and the callbacks all call."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from tilewright import runs
from tilewright.data.images import to_tensor
from tilewright.data.token_cache import ImageTokenizer
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.data.transforms import CenterCrop
from tilewright.errors import UserError
from tilewright.prior import (
    Sampling,
    Stream,
    Transformer,
    complete,
    lightened,
    log_likelihood,
    sample_rows,
)
from tilewright.reranking import ContrastiveRanker, Ranker, candidates_of
from tilewright.runs import hub
from tilewright.viz.images import to_picture


@dataclass(frozen=True)
class Ranked:
    """Candidates that were chosen for C captions, the best first.

    Args:
        images: [C, n, 3, H, W] in [0, 1].
        numbers: [C, n], which of a caption's candidates they are.
        scores: [C, n], the ranker's; None where nothing ranked them.
    """

    images: Tensor
    numbers: Tensor
    scores: Tensor | None

    def records(self, captions: Sequence[str]) -> list[list[dict[str, Any]]]:
        """What there is to say of each picture, for each of the C captions: what it was drawn for,
        which candidate it is, and its score."""
        records: list[list[dict[str, Any]]] = [
            [{"prompt": caption, "candidate": number} for number in numbers]
            for caption, numbers in zip(captions, self.numbers.tolist(), strict=True)
        ]
        if self.scores is not None:
            for row, scores in zip(records, self.scores.tolist(), strict=True):
                for record, score in zip(row, scores, strict=True):
                    record["score"] = score
        return records


class TextToImage:
    """A trained prior with its tokenizer and its dVAE.

    Args:
        prior: the transformer over the stream.
        image_tokenizer: what turns its image tokens into pictures.
        tokenizer: what turns captions into its text tokens.
        ranker: what came with it to choose by, if anything did.

    Raises:
        UserError: they do not belong together.
    """

    def __init__(
        self,
        prior: Transformer,
        image_tokenizer: ImageTokenizer,
        tokenizer: BytePairTokenizer,
        ranker: Ranker | None = None,
    ):
        check_fit(prior, image_tokenizer, tokenizer)
        self.prior = prior
        self.image_tokenizer = image_tokenizer
        self.tokenizer = tokenizer
        self.ranker = ranker

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu") -> "TextToImage":
        """The model that a run of stage=prior trained, or that was exported from one.

        Raises:
            UserError: there is no such run, or it is not whole, or its parts are of different ones.
        """
        run = Path(run)
        config = runs.load_config(run)
        if config.stage != "prior":
            raise UserError(f"{run} is a run of stage={config.stage}; pictures come from a prior")
        dvae = runs.load_network(run / runs.DVAE, device)
        ranker = None
        if (run / runs.RANKER).is_dir():
            ranker = ContrastiveRanker.from_run(run / runs.RANKER, device)
        return cls(runs.load_network(run, device), dvae, runs.load_tokenizer(run), ranker)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str = "cpu", revision: str | None = None
    ) -> "TextToImage":
        """A model that somebody shares: its folder, or its name on the Hugging Face Hub.

        None of its code is run: there is none, and `untrusted` says what its settings may build.

        Args:
            revision: of the Hub's: a branch, a tag or a commit.

        Raises:
            UserError: there is no such model, or it is not whole or not harmless.
        """
        return cls.from_run(hub.folder_of(model, revision), device)

    @classmethod
    def of_training(cls, trainer: pl.Trainer, module: pl.LightningModule) -> "TextToImage":
        """The prior that is being trained, as it is now."""
        prior: Any = module.network
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return cls(prior, data.image_tokenizer, data.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    def __call__(self, captions: Sequence[str], n: int = 1, **how: Any) -> list[list[Image.Image]]:
        """`n` pictures for each caption.

        Args:
            how: as for `best`: `best_of` and `ranker`, by default the one that came with the model,
                and what `drawing` takes.
        """
        if how.get("best_of") is not None:
            how = {"ranker": self.ranker, **how}
        images = self.best(captions, n, **how).images
        return [[to_picture(image) for image in row] for row in images]

    def tokens(self, captions: Sequence[str], n: int = 1, **how: Any) -> Tensor:
        """Image tokens [C, n, h, w] of `n` candidates for each of C captions.

        A candidate depends on the seed, its caption's number and its own, and on nothing else.

        Args:
            how: as for `drawing`.
        """
        for tokens in self.drawing(captions, n, **how):  # noqa: B007  (the last one)
            pass
        return tokens

    @torch.inference_mode()
    def drawing(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 128,
    ) -> Iterator[Tensor]:
        """The same while they are drawn, row by row.

        Args:
            sampling: how tokens are drawn.
            image_prompt: a picture whose top the new ones begin with.
            rows: how many rows of its image tokens are kept.
            batch_size: pictures that are drawn at once.

        Yields:
            After each row of each batch one and the same [C, n, h, w], in which tokens that are not
            drawn yet are -1.
        """
        text = self.tokenizer.encode(captions).to(self.device)
        prior = self.prior if sampling is None else lightened(self.prior, sampling.weights)
        first_rows = self._first_rows(image_prompt, rows)
        grid = self.image_tokenizer.grid
        tokens = torch.full((len(text), n, grid, grid), -1, device=self.device)
        at_once = min(n, batch_size)
        for first in range(0, len(text), batch_size // at_once):
            part = text[first : first + batch_size // at_once]
            given = None if first_rows is None else first_rows.expand(len(part), -1, -1)
            for number in range(0, n, at_once):
                batch = tokens[first : first + len(part), number : number + at_once]
                for drawn in sample_rows(
                    prior,
                    part,
                    batch.shape[1],
                    sampling=sampling,
                    seed=seed,
                    first=first,
                    first_candidate=number,
                    first_rows=given,
                ):
                    batch[:, :, : drawn.shape[2]] = drawn
                    yield tokens

    @torch.inference_mode()
    def decode(self, tokens: Tensor, batch_size: int = 128) -> Tensor:
        """Image tokens [C, n, h, w] to images [C, n, 3, H, W] in [0, 1]."""
        parts = tokens.flatten(0, 1).split(batch_size)
        images = torch.cat([self.image_tokenizer.decode(part) for part in parts])
        return images.unflatten(0, tokens.shape[:2])

    def images(self, captions: Sequence[str], n: int = 1, **how: Any) -> Tensor:
        """Images [C, n, 3, H, W] in [0, 1] for C captions; the arguments are those of `drawing`."""
        return self.decode(self.tokens(captions, n, **how))

    def best(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        best_of: int | None = None,
        ranker: Ranker | None = None,
        **how: Any,
    ) -> Ranked:
        """The best `n` of `best_of` candidates for each caption, the best first (section 2.6).

        Args:
            best_of: how many are drawn; None draws `n`, which then need no ranker.
            ranker: what scores them; without one the candidates come in the order of their numbers.
            how: as for `drawing`.

        Raises:
            UserError: best_of is less than n, or more with nothing to rank by.
        """
        candidates = candidates_of(n, best_of, ranker)
        return self.choose(captions, self.tokens(captions, candidates, **how), n, ranker)

    def choose(
        self, captions: Sequence[str], tokens: Tensor, n: int, ranker: Ranker | None
    ) -> Ranked:
        """The best `n` of drawn candidates, [C, best_of, h, w], as `best` does."""
        if ranker is None:
            numbers = torch.arange(n).expand(len(tokens), n)
            return Ranked(self.decode(tokens[:, :n]), numbers, None)
        scores = self.scores(ranker, captions, tokens)
        scores, numbers = scores.sort(dim=1, descending=True, stable=True)
        numbers = numbers[:, :n]
        chosen = tokens[torch.arange(len(tokens))[:, None], numbers.to(tokens.device)]
        return Ranked(self.decode(chosen), numbers, scores[:, :n])

    def scores(
        self, ranker: Ranker, captions: Sequence[str], tokens: Tensor, batch_size: int = 128
    ) -> Tensor:
        """A ranker's scores [C, n] of image tokens [C, n, h, w], on the CPU.

        Args:
            batch_size: pictures that are looked at at once.
        """
        at_once = min(tokens.shape[1], batch_size)
        rows = []
        for first in range(0, len(tokens), batch_size // at_once):
            part = slice(first, first + batch_size // at_once)
            candidates = tokens[part].split(at_once, dim=1)
            rows.append(torch.cat([ranker(self, captions[part], some) for some in candidates], 1))
        return torch.cat(rows).float().cpu()

    def complete(
        self, captions: Sequence[str], *, sampling: Sampling | None = None, seed: int = 0
    ) -> list[str]:
        """Captions that the model has carried on to their end; an empty one is a beginning too."""
        text = self.tokenizer.encode(captions).to(self.device)
        return self.tokenizer.decode(complete(self.prior, text, sampling=sampling, seed=seed))

    def log_likelihood(self, captions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """ln p(caption) and ln p(picture | caption) of pairs, each [B], in nats.

        Args:
            images: [B, 3, H, W] in [0, 1], one for each caption.
        """
        text = self.tokenizer.encode(captions).to(self.device)
        return log_likelihood(self.prior, text, self.image_tokenizer.encode(images.to(self.device)))

    def _first_rows(self, image_prompt: Image.Image | None, rows: int) -> Tensor | None:
        """The top `rows` of a picture's image tokens, [1, rows, w]."""
        if image_prompt is None or rows == 0:
            return None
        grid = self.image_tokenizer.grid
        if not 0 < rows < grid:
            raise UserError(f"rows must be from 1 to {grid - 1}, got {rows}")
        image = to_tensor(CenterCrop(self.image_tokenizer.image_size)(image_prompt))
        return self.image_tokenizer.encode(image[None].to(self.device))[:, :rows]


def check_fit(
    prior: Transformer, image_tokenizer: ImageTokenizer, tokenizer: BytePairTokenizer
) -> None:
    """Whether a prior's two vocabularies are those of the tokenizers beside it.

    Raises:
        UserError: they are not.
    """
    stream = getattr(prior, "stream", None)
    if not isinstance(stream, Stream):
        raise UserError(f"a {type(prior).__name__} is no prior: it has no stream")
    if tokenizer.length != stream.text_length or tokenizer.vocab_size > stream.text_vocab:
        raise UserError(
            f"the prior reads {stream.text_length} text tokens of {stream.text_vocab}, and the "
            f"tokenizer makes {tokenizer.length} of {tokenizer.vocab_size}: they do not belong "
            "together"
        )
    grid, tokens = (getattr(image_tokenizer, name, None) for name in ("grid", "num_tokens"))
    if (grid, tokens) != (stream.grid, stream.image_vocab):
        raise UserError(
            f"the prior draws a grid of {stream.grid}x{stream.grid} of {stream.image_vocab} image "
            f"tokens, and the dVAE has {grid}x{grid} of {tokens}: they do not belong together"
        )
