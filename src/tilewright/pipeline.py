"""Text-to-image pipeline: captions in, images out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from tilewright import runs
from tilewright.checks import check_whole
from tilewright.data.image_tokenizer import ImageTokenizer, encode_images, split_batches
from tilewright.data.images import to_rgb, to_tensor
from tilewright.data.text_tokenizer import TextTokenizer
from tilewright.data.transforms import CenterCrop
from tilewright.data.truncation import warn_of_truncation
from tilewright.errors import UserError
from tilewright.prior import (
    BaseStream,
    CaptionStream,
    Prior,
    Sampling,
    TokenStream,
    complete,
    log_likelihood,
    sample_rows,
    with_low_precision_weights,
)
from tilewright.reranking import ContrastiveRanker, Ranker, resolve_best_of
from tilewright.runs import hub
from tilewright.viz.images import to_pil

if TYPE_CHECKING:  # generating images does not need Lightning, which is slow to import
    import pytorch_lightning as pl

FREE_BYTES = 2**33  # memory that the prior may assume on another device than CUDA


@dataclass(frozen=True)
class GeneratedImages:
    """Images generated for C captions, best first.

    Args:
        images: [C, n, 3, H, W] in [0, 1].
        candidates: [C, n], index of each image among its caption's candidates.
        scores: [C, n], the ranker's scores; None without a ranker.
    """

    images: Tensor
    candidates: Tensor
    scores: Tensor | None

    def records(self, captions: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Returns a JSON record per image: its prompt, its candidate index and its score."""
        records: list[list[dict[str, Any]]] = [
            [{"prompt": caption, "candidate": candidate} for candidate in candidates]
            for caption, candidates in zip(captions, self.candidates.tolist(), strict=True)
        ]
        if self.scores is not None:
            for row, scores in zip(records, self.scores.tolist(), strict=True):
                for record, score in zip(row, scores, strict=True):
                    record["score"] = score
        return records


class TextToImage:
    """A trained prior with its text tokenizer and its image tokenizer.

    Call it with captions to get PIL images. `generate` returns tensors and scores instead, and
    `sample_tokens` returns image tokens. `sample_tokens` documents the arguments that they share.

    Args:
        prior: transformer over the stream.
        image_tokenizer: decodes the prior's image tokens, such as a dVAE.
        tokenizer: encodes captions as text tokens.
        ranker: the default ranker of calls with `best_of`.
        sampling: the default sampling of all calls; None is the paper's.
        caption_dropout: fraction of captions that were emptied in the prior's training. At 0,
            guidance and the likelihood ranker are refused. None if it is unknown.

    Raises:
        UserError: the vocabularies or the grids of the three do not match.
    """

    def __init__(
        self,
        prior: Prior,
        image_tokenizer: ImageTokenizer,
        tokenizer: TextTokenizer,
        ranker: Ranker | None = None,
        sampling: Sampling | None = None,
        caption_dropout: float | None = None,
    ):
        check_compatible(prior, image_tokenizer, tokenizer)
        self.prior = prior
        self.image_tokenizer = image_tokenizer
        self.tokenizer = tokenizer
        self.ranker = ranker
        self.sampling = sampling or Sampling()
        self.caption_dropout = caption_dropout

    @classmethod
    def from_run(cls, run: str | Path, device: str = "cpu") -> "TextToImage":
        """Loads a run of stage=prior, or a model exported from one, with its recommended sampling.

        Raises:
            UserError: the run does not exist, is incomplete, or has parts that do not match.
        """
        run = runs.follow_latest(run)
        config = runs.load_config(run)
        if config.stage != "prior":
            raise UserError(
                f"{run} is a run of stage={config.stage} and cannot generate images: name a run of "
                "stage=prior"
            )
        dvae = runs.load_network(runs.dvae_folder(run), device)
        ranker = None
        if (run / runs.RANKER).is_dir():
            ranker = ContrastiveRanker.from_run(run / runs.RANKER, device)
        return cls(
            runs.load_network(run, device),
            dvae,
            runs.load_tokenizer(run, device),
            ranker,
            sampling=runs.load_sampling(run),
            caption_dropout=OmegaConf.select(config, "model.caption_dropout"),
        )

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str = "cpu", revision: str | None = None
    ) -> "TextToImage":
        """Loads a shared model from a folder or from the Hugging Face Hub.

        No code from the model is run. `runs.safe_build` limits what its configuration may build.

        Args:
            model: a folder, or a Hub name such as `someone/name`.
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: the model does not exist, is incomplete, or names a class that is not
                allowed.
        """
        return cls.from_run(hub.model_folder(model, revision), device)

    @classmethod
    def from_trainer(cls, trainer: "pl.Trainer", module: "pl.LightningModule") -> "TextToImage":
        """Wraps the prior that is being trained, with its current weights."""
        prior: Any = module.network
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return cls(
            prior,
            data.image_tokenizer,
            data.tokenizer,
            sampling=getattr(module, "sampling", None),  # a user's module may have none
            caption_dropout=getattr(module, "caption_dropout", None),
        )

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    def check_supports(
        self, sampling: Sampling | None = None, ranker: Ranker | None = None
    ) -> None:
        """Checks that the prior supports a sampling and a ranker.

        Guidance and the likelihood ranker need a prior that was trained with empty captions.

        Raises:
            UserError: the prior was trained without empty captions, and they are needed. Or the
                ranker is not one, or reads images of another size.
        """
        if ranker is not None and not callable(ranker):
            raise UserError(f"ranker={ranker!r} is not a ranker: use one of tilewright.reranking")
        size = getattr(ranker, "image_size", None)
        if size not in {None, self.image_tokenizer.image_size}:
            raise UserError(
                f"the ranker reads images of {size} pixels a side, but the prior generates "
                f"{self.image_tokenizer.image_size}: train a ranker on the same data, "
                "python src/train.py stage=ranker"
            )
        if self.caption_dropout != 0:
            return
        if sampling is not None and sampling.guidance != 1:
            setting, advice = f"guidance={sampling.guidance}", "leave guidance out"
        elif getattr(ranker, "needs_empty_captions", False):
            setting, advice = type(ranker).__name__, "choose another ranker"
        else:
            return
        raise UserError(
            f"{setting} needs a prior that has seen empty captions, and this one was trained with "
            f"model.caption_dropout=0: {advice}, or train a prior with model.caption_dropout=0.1"
        )

    def __call__(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        best_of: int | None = None,
        ranker: Ranker | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 128,
    ) -> list[list[Image.Image]]:
        """Generates `n` PIL images for each caption.

        Arguments are those of `generate`, except that the model's own ranker is the default for
        `best_of`.
        """
        if best_of is not None and ranker is None:
            ranker = self.ranker
        generated = self.generate(
            captions,
            n,
            best_of=best_of,
            ranker=ranker,
            sampling=sampling,
            seed=seed,
            image_prompt=image_prompt,
            rows=rows,
            batch_size=batch_size,
        )
        return [[to_pil(image) for image in row] for row in generated.images]

    def generate(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        best_of: int | None = None,
        ranker: Ranker | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 128,
        first_caption: int = 0,
    ) -> GeneratedImages:
        """Generates the best `n` of `best_of` candidates for each caption (section 2.6).

        Args:
            best_of: number of candidates sampled per caption; None samples `n`.
            ranker: scores the candidates. Without one they keep the order of their indices.
            sampling, seed, image_prompt, rows, batch_size, first_caption: see `sample_tokens`.

        Raises:
            UserError: best_of is less than n, or greater than n without a ranker; or the ranker
                needs another prior.
        """
        self.check_supports(ranker=ranker)
        tokens = self.sample_tokens(
            captions,
            resolve_best_of(n, best_of, ranker),
            sampling=sampling,
            seed=seed,
            image_prompt=image_prompt,
            rows=rows,
            batch_size=batch_size,
            first_caption=first_caption,
        )
        return self.rank(captions, tokens, n, ranker, batch_size)

    def sample_tokens(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 128,
        first_caption: int = 0,
    ) -> Tensor:
        """Samples image tokens [C, n, h, w]: `n` candidates for each of C captions.

        A candidate depends only on the seed, the index of its caption and its own index.

        Args:
            sampling: temperature, top-k, guidance and so on; None is `self.sampling`.
            seed: seed of the random numbers.
            image_prompt: image whose top rows of image tokens are kept.
            rows: number of rows kept from `image_prompt`; 0 without one.
            batch_size: number of images that are sampled, scored or decoded in one batch, if the
                memory allows it.
            first_caption: index of the first caption, if the captions are a part of a longer list.

        Raises:
            UserError: an argument is not possible, or the prior cannot be sampled with guidance.
        """
        for tokens in self.sample_tokens_by_row(  # noqa: B007
            captions,
            n,
            sampling=sampling,
            seed=seed,
            image_prompt=image_prompt,
            rows=rows,
            batch_size=batch_size,
            first_caption=first_caption,
        ):
            pass
        return tokens

    @torch.inference_mode()
    def sample_tokens_by_row(
        self,
        captions: Sequence[str],
        n: int = 1,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        image_prompt: Image.Image | None = None,
        rows: int = 0,
        batch_size: int = 128,
        first_caption: int = 0,
    ) -> Iterator[Tensor]:
        """Samples image tokens and yields the unfinished grids after each row.

        Arguments are those of `sample_tokens`.

        Yields:
            The same tensor [C, n, h, w] each time, updated in place. Tokens that have not been
            sampled yet are -1.
        """
        check_whole("n", n)
        check_whole("batch_size", batch_size)
        sampling = self._resolve_sampling(sampling)
        self.check_supports(sampling)
        batch_size = min(batch_size, self._max_batch(self._cache_bytes(sampling.guidance)))
        self._check_captions(captions)
        # Converts the weights here, not once per batch.
        prior = with_low_precision_weights(self.prior, sampling.weights)
        prompt_rows = self._encode_top_rows(image_prompt, rows)
        grid = self.image_tokenizer.grid
        tokens = torch.full((len(captions), n, grid, grid), -1, device=self.device)
        for captions_slice, candidates_slice in _batch_slices(len(captions), n, batch_size):
            batch = tokens[captions_slice, candidates_slice]
            if candidates_slice.start == 0:
                text = self.tokenizer.encode(captions[captions_slice]).to(self.device)
            for sampled_rows in sample_rows(
                prior,
                text,
                batch.shape[1],
                sampling=sampling,
                seed=seed,
                caption_offset=first_caption + captions_slice.start,
                candidate_offset=candidates_slice.start,
                image_prompt_tokens=(
                    None if prompt_rows is None else prompt_rows.expand(len(batch), -1, -1)
                ),
            ):
                batch[:, :, : sampled_rows.shape[2]] = sampled_rows
                yield tokens

    @torch.inference_mode()
    def decode(self, tokens: Tensor, batch_size: int = 128) -> Tensor:
        """Decodes image tokens [C, n, h, w] to images [C, n, 3, H, W] in [0, 1]."""
        batches = split_batches(tokens.flatten(0, 1), self.image_tokenizer.image_size, batch_size)
        images = torch.cat([self.image_tokenizer.decode(batch) for batch in batches])
        return images.unflatten(0, tokens.shape[:2])

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] to image tokens [B, h, w]."""
        return encode_images(self.image_tokenizer, images, self.device)

    def rank(
        self,
        captions: Sequence[str],
        tokens: Tensor,
        n: int,
        ranker: Ranker | None,
        batch_size: int = 128,
    ) -> GeneratedImages:
        """Decodes the best `n` of sampled candidates.

        Args:
            tokens: image tokens [C, best_of, h, w] of the candidates.
            ranker: scores the candidates; None takes the first `n`.
            batch_size: number of images that are scored or decoded in one batch.
        """
        if ranker is None:
            candidates = torch.arange(n).expand(len(tokens), n)
            return GeneratedImages(self.decode(tokens[:, :n], batch_size), candidates, None)
        scores = self.score(ranker, captions, tokens, batch_size)
        scores, candidates = scores.sort(dim=1, descending=True, stable=True)
        candidates = candidates[:, :n]
        best = tokens[torch.arange(len(tokens))[:, None], candidates.to(tokens.device)]
        return GeneratedImages(self.decode(best, batch_size), candidates, scores[:, :n])

    def score(
        self, ranker: Ranker, captions: Sequence[str], tokens: Tensor, batch_size: int = 128
    ) -> Tensor:
        """Returns a ranker's scores [C, n] of image tokens [C, n, h, w], on the CPU.

        Args:
            batch_size: number of images scored in one batch, if the memory allows it.

        Raises:
            UserError: the ranker needs another prior, or a score is nan.
        """
        check_whole("batch_size", batch_size)
        self.check_supports(ranker=ranker)
        batch_size = min(batch_size, self._max_scored())
        scores = torch.empty(tokens.shape[:2])
        for captions_slice, candidates_slice in _batch_slices(
            len(tokens), tokens.shape[1], batch_size
        ):
            batch = tokens[captions_slice, candidates_slice]
            scores[captions_slice, candidates_slice] = ranker(
                self, captions[captions_slice], batch
            ).to(scores)
        if scores.isnan().any():
            raise UserError(
                f"the scores of {type(ranker).__name__} are nan and cannot rank: choose another "
                "ranker, or use weights from before the loss became nan"
            )
        return scores

    def complete(
        self, captions: Sequence[str], *, sampling: Sampling | None = None, seed: int = 0
    ) -> list[str]:
        """Continues unfinished captions with text tokens sampled from the prior.

        An empty caption is a valid beginning.
        """
        text = self._encode_captions(captions)
        sampling = self._resolve_sampling(sampling)
        return self.tokenizer.decode(complete(self.prior, text, sampling=sampling, seed=seed))

    def log_likelihood(self, captions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ln p(caption) and ln p(image | caption) of pairs, each [B], in nats.

        Args:
            images: [B, 3, H, W] in [0, 1], one per caption.
        """
        pairs = self._encode_captions(captions), self.encode(images)
        size = self._max_scored()
        batches = zip(*(rows.split(size) for rows in pairs), strict=True)
        nats = [log_likelihood(self.prior, text, tokens) for text, tokens in batches]
        caption_nats, image_nats = zip(*nats, strict=True)
        return torch.cat(caption_nats), torch.cat(image_nats)

    def _cache_bytes(self, guidance: float = 1.0) -> int:
        """Returns the bytes of the keys and values of one image."""
        return self.prior.cache_bytes * (1 if guidance == 1 else 2)

    def _max_scored(self) -> int:
        """Returns the number of images whose logits, keys and values fit the memory."""
        stream = self.prior.stream
        text_logits = stream.predicted_text * stream.text_classes
        logits = text_logits + stream.image_length * stream.image_vocab
        return self._max_batch(self._cache_bytes() + 4 * logits)

    def _max_batch(self, bytes_per_image: int) -> int:
        """Returns the number of images that fit half of the free memory, a power of two.

        Steps are compiled for each batch size, and the free memory changes.
        """
        free = FREE_BYTES
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device)
            free -= torch.cuda.memory_allocated(self.device)
        images = max(1, free // 2 // bytes_per_image)
        return 1 << (images.bit_length() - 1)

    def _resolve_sampling(self, sampling: Sampling | None) -> Sampling:
        """Returns the sampling of a call, or the default for None."""
        if sampling is None:
            return self.sampling
        if not isinstance(sampling, Sampling):
            raise UserError(
                f"sampling={sampling!r} is not a Sampling: write it like Sampling(temperature=0.5)"
            )
        return sampling

    def _encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Returns the stream's text of captions, such as tokens [C, T], on the prior's device."""
        self._check_captions(captions)
        return self.tokenizer.encode(captions).to(self.device)

    def _check_captions(self, captions: Sequence[str]) -> None:
        """Checks captions, and logs those that are cut.

        Raises:
            UserError: they are not a list of captions.
        """
        is_list = not isinstance(captions, str) and len(captions) > 0
        if not is_list or not all(isinstance(caption, str) for caption in captions):
            raise UserError(
                f"captions={captions!r} is not a list of captions: write it like ['a red circle']"
            )
        warn_of_truncation(self.tokenizer, captions)

    def _encode_top_rows(self, image_prompt: Image.Image | None, rows: int) -> Tensor | None:
        """Encodes an image and returns its top `rows` of image tokens, [1, rows, w]."""
        if image_prompt is None:
            if rows != 0:
                raise UserError(f"rows={rows} needs an image: set image_prompt, or leave rows out")
            return None
        if not isinstance(image_prompt, Image.Image):
            raise UserError(
                f"image_prompt={image_prompt!r} is not a PIL image: open it with PIL.Image.open"
            )
        check_whole("rows", rows, 1, self.image_tokenizer.grid - 1)
        image = to_tensor(CenterCrop(self.image_tokenizer.image_size)(to_rgb(image_prompt)))
        return self.image_tokenizer.encode(image[None].to(self.device))[:, :rows]


def _batch_slices(captions: int, n: int, batch_size: int) -> Iterator[tuple[slice, slice]]:
    """Yields slices of the captions and of their `n` candidates, of up to `batch_size` images."""
    candidates_step = min(n, batch_size)
    captions_step = batch_size // candidates_step
    for caption in range(0, captions, captions_step):
        for candidate in range(0, n, candidates_step):
            yield (
                slice(caption, min(caption + captions_step, captions)),
                slice(candidate, min(candidate + candidates_step, n)),
            )


def check_compatible(
    prior: Prior, image_tokenizer: ImageTokenizer, tokenizer: TextTokenizer
) -> None:
    """Checks that a prior's stream matches the vocabularies of both tokenizers.

    Raises:
        UserError: the vocabularies or the grids do not match.
    """
    stream = getattr(prior, "stream", None)
    if not isinstance(stream, BaseStream):
        raise UserError(
            f"{type(prior).__name__} has no stream and is not a prior: use a network of "
            "tilewright.prior"
        )
    width = getattr(tokenizer, "width", None)  # of features in place of tokens
    if isinstance(stream, CaptionStream):
        if (tokenizer.length, width) != (stream.text_length, stream.features):
            raise UserError(
                f"the prior reads features of width {stream.features} at {stream.text_length} "
                f"positions, but the text encoder has width {width} at {tokenizer.length}: use the "
                "one that the prior was trained with"
            )
    elif isinstance(stream, TokenStream) and (
        width is not None
        or tokenizer.length != stream.text_length
        or tokenizer.vocab_size > stream.text_vocab
    ):
        raise UserError(
            f"the prior reads {stream.text_length} text tokens from a vocabulary of "
            f"{stream.text_vocab}, but the tokenizer makes {tokenizer.length} from "
            f"{tokenizer.vocab_size}: use the tokenizer that the prior was trained with"
        )
    grid, vocab = (getattr(image_tokenizer, name, None) for name in ("grid", "num_tokens"))
    if (grid, vocab) != (stream.grid, stream.image_vocab):
        raise UserError(
            f"the prior generates {stream.grid}x{stream.grid} image tokens from a codebook of "
            f"{stream.image_vocab}, but the dVAE has {grid}x{grid} from {vocab}: use the dVAE that "
            "the prior was trained with"
        )
