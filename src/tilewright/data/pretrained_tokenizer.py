"""Text tokenizers of other projects: a `tokenizer.json`, or a tokenizer of transformers."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from tilewright.checks import check_whole
from tilewright.data import caption_cleaning
from tilewright.data.caption_cleaning import Cleaning, find_cleaning
from tilewright.data.fingerprints import fingerprint_code
from tilewright.data.json_tokenizer import (
    JsonTokenizer,
    count_tokens,
    read_tokenizer,
    without_options,
)
from tilewright.errors import UserError, first_line


class PretrainedTokenizer(JsonTokenizer):
    """Tokenizer of another project, with the special tokens that it adds to a text.

    `train` reads it from `path`, and a run saves a copy of it. Long captions are truncated before
    the special tokens at their end, as transformers does.

    Args:
        path: a `tokenizer.json`, or the folder or Hub name of a transformers tokenizer. A saved
            tokenizer does not need it.
        length: T, the number of positions. Longer captions are truncated and counted in
            `truncated`.
        vocab_size: maximum number of tokens. None is the number that the tokenizer has.
        cleaning: cleaning of captions before they are tokenized.

    Raises:
        UserError: a setting is not possible.
    """

    def __init__(
        self,
        path: str | None,
        length: int = 64,
        vocab_size: int | None = None,
        cleaning: Cleaning = "none",
    ):
        if vocab_size is not None:
            check_whole("tokenizer.vocab_size", vocab_size)
        super().__init__(vocab_size or 0, length)
        self.path = path
        self.cleaning = cleaning
        self._clean = find_cleaning(cleaning)

    @property
    def identity(self) -> str:
        """Text that determines the tokens of a caption."""
        code = "" if self.cleaning == "none" else fingerprint_code(caption_cleaning)
        return f"{self.cleaning} {code} {self._tokenizer.to_str()}"

    def train(self, captions: Iterable[str] = ()) -> None:
        """Reads the tokenizer at `path`. It learns nothing from the captions.

        Raises:
            UserError: there is no such tokenizer, or it cannot be used.
        """
        if self.path is None:
            raise UserError("tokenizer.path=null names no tokenizer: set it to a tokenizer.json")
        self._use(read_pretrained(self.path), self.path)

    def save(self, path: str | Path) -> None:
        self._tokenizer.no_truncation()  # would be saved
        super().save(path)
        self._tokenizer.enable_truncation(self.length)

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Converts captions to text tokens [B, T], padded with -1.

        Args:
            dropout: has no effect.
        """
        encoded = self._tokenizer.encode_batch([self._clean(caption) for caption in captions])
        self.truncated += sum(bool(encoding.overflowing) for encoding in encoded)
        return self._pad(encoding.ids for encoding in encoded)

    def split_at_length(self, caption: str) -> tuple[str, str]:
        """Returns the part of a cleaned caption that `length` tokens cover, and the rest."""
        caption = self._clean(caption)
        overflow = self._tokenizer.encode(caption).overflowing
        if not overflow:
            return caption, ""
        tokens = zip(overflow[0].offsets, overflow[0].special_tokens_mask, strict=True)
        cut = next(start for (start, _), is_special in tokens if not is_special)
        return caption[:cut], caption[cut:]

    def _use(self, tokenizer: Tokenizer, path: str | Path) -> None:
        special = tokenizer.num_special_tokens_to_add(False)
        if self.length <= special:
            raise UserError(
                f"tokenizer.length={self.length} leaves no position for a caption beside the "
                f"{special} special tokens of {path}: raise it"
            )
        self.vocab_size = self.vocab_size or count_tokens(tokenizer)
        super()._use(tokenizer, path)
        tokenizer.enable_truncation(self.length)


def read_pretrained(path: str) -> Tokenizer:
    """Reads a `tokenizer.json`, or a tokenizer of transformers by its folder or Hub name.

    Raises:
        UserError: there is no such tokenizer, or it cannot be converted to a `tokenizer.json`.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return read_tokenizer(local)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(
            "transformers, which reads other tokenizers than a tokenizer.json, is not installed: "
            "pip install 'tilewright[pretrained]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            local if local.is_dir() else path, trust_remote_code=False
        )
    except Exception as error:  # of many classes: files, HTTP, missing packages
        raise UserError(
            f"{path} is not a tokenizer that can be read ({first_line(error)}): give a "
            "tokenizer.json, or the folder or Hub name of a transformers tokenizer"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"{path} is a {type(tokenizer).__name__}, which cannot be converted to a "
            "tokenizer.json: choose a tokenizer that has a fast version in transformers"
        )
    special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder}
    if len(set(backend.get_vocab()) - special) < 2:  # transformers makes up a missing vocabulary
        raise UserError(
            f"{path} has no vocabulary of a tokenizer: add its tokenizer.json, or name another one"
        )
    return without_options(Tokenizer.from_str(backend.to_str()))
