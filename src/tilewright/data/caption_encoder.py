"""Frozen text encoders of transformers, whose features take the place of text tokens."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilewright.checks import check_whole
from tilewright.data.caption_cleaning import Cleaning
from tilewright.data.image_tokenizer import weights_digest
from tilewright.data.pretrained_tokenizer import PretrainedTokenizer
from tilewright.errors import UserError, first_line

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
BATCH_SIZE = 64  # captions of one pass through the encoder


class CaptionEncoder:
    """Frozen text encoder with its tokenizer: T5, CLIP's text model, BERT and others.

    A run saves the tokenizer and the path of the encoder, not its weights. They are loaded when the
    first caption is encoded, from safetensors only, and no code of theirs is run.

    Args:
        path: folder or Hub name of the encoder, with its tokenizer.
        length: T, the number of text positions, with special tokens. Longer captions are truncated
            and counted in `truncated`.
        padding_side: side of the padding. LlamaGen has it on the left.
        cleaning: cleaning of captions before they are tokenized.
        dtype: of the encoder's weights, its computation and its features.
        width: D, width of the features. None reads it from the encoder.
        digest: hash of the weights that a prior was trained with. Others are refused. None accepts
            any weights.

    Raises:
        UserError: a setting is not possible.
    """

    def __init__(
        self,
        path: str,
        length: int = 120,
        padding_side: Literal["left", "right"] = "left",
        cleaning: Cleaning = "none",
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        width: int | None = None,
        digest: str | None = None,
    ):
        check_whole("caption.length", length)
        if padding_side not in ("left", "right"):
            raise UserError(
                f"caption.padding_side={padding_side} is not possible: set left or right"
            )
        if dtype not in DTYPES:
            raise UserError(f"caption.dtype={dtype} is not possible: set {', '.join(DTYPES)}")
        self.path = path
        self.length = length
        self.padding_side = padding_side
        self.dtype = DTYPES[dtype]
        self._tokenizer = PretrainedTokenizer(path, length, cleaning=cleaning)
        self._has_tokenizer = False
        self.device = torch.device("cpu")
        self._width = width
        self._digest = digest
        self._network: nn.Module | None = None
        self._advice = "set caption.path to the folder or Hub name of a text encoder"

    @property
    def tokenizer(self) -> PretrainedTokenizer:
        """Tokenizer of the encoder.

        Raises:
            UserError: it cannot be read.
        """
        if not self._has_tokenizer:
            try:
                self._tokenizer.train()
            except UserError as error:
                if error.__cause__ is None or isinstance(error.__cause__, ImportError):
                    raise  # the message has its own advice
                raise UserError(
                    f"the tokenizer of the text encoder {self.path} cannot be read "
                    f"({first_line(error.__cause__)}): {self._advice}"
                ) from error
            self._has_tokenizer = True
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def truncated(self) -> int:
        return self.tokenizer.truncated

    @property
    def width(self) -> int:
        """D, width of the features."""
        if self._width is None:
            self._width = self._load().config.hidden_size
        return self._width

    @property
    def digest(self) -> str:
        """Hash of the encoder's weights."""
        if self._digest is None:
            self._digest = _digest(self._load())
        return self._digest

    @property
    def identity(self) -> str:
        """Hash of all that determines the features of a caption."""
        parts = [self.digest, str(self.dtype), str(self.length), self.tokenizer.identity]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def train(self, captions: Iterable[str] = ()) -> None:
        """Does nothing, because the encoder is frozen and learns nothing from the captions."""

    def save(self, path: str | Path) -> None:
        """Writes the encoder's tokenizer as a `tokenizer.json`."""
        self.tokenizer.save(path)

    def load(self, path: str | Path) -> None:
        """Loads a saved tokenizer. If the file does not exist, that of the encoder is used.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        if Path(path).is_file():
            self._tokenizer.load(path)
            self._has_tokenizer = True
        self._advice = (
            "download it, or name its folder, by caption=encoder caption.path=… to train, and by "
            f"tokenizer.path in the configuration of {Path(path).parent} to generate"
        )

    def to(self, device: torch.device | str) -> "CaptionEncoder":
        """Sets the device of the encoder and of its features."""
        self.device = torch.device(device)
        if self._network is not None:
            self._network.to(self.device)
        return self

    def split_at_length(self, caption: str) -> tuple[str, str]:
        return self.tokenizer.split_at_length(caption)

    def decode(self, tokens: Tensor) -> list[str]:
        return self.tokenizer.decode(tokens)

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Converts captions to features [B, T, D + 1] on the encoder's device.

        Args:
            dropout: has no effect.
        """
        return self.encode_tokens(self.tokenizer.encode(captions))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Converts text tokens [B, T] of the tokenizer to features [B, T, D + 1].

        Raises:
            UserError: the encoder cannot be loaded, or is not the one of the training.
        """
        features = [self.hidden_states(batch) for batch in tokens.split(BATCH_SIZE)]
        return torch.cat(
            [
                self.arrange(states, (batch >= 0).sum(dim=1))
                for states, batch in zip(features, tokens.split(BATCH_SIZE), strict=True)
            ]
        )

    @torch.no_grad()
    def hidden_states(self, tokens: Tensor) -> Tensor:
        """Returns the encoder's last hidden states [B, n, D] of text tokens [B, T].

        n is the largest number of tokens of a caption, and at least 1.
        """
        network = self._load()
        is_token = tokens >= 0
        tokens = tokens[:, : max(1, int(is_token.sum(dim=1).max()))].to(self.device)
        is_token = tokens >= 0
        padding = getattr(network.config, "pad_token_id", None) or 0
        mask = is_token.clone()
        mask[:, 0] = True  # a row without any token would be nan
        output = network(
            input_ids=tokens.masked_fill(~is_token, padding), attention_mask=mask.long()
        )
        return output.last_hidden_state.masked_fill(~is_token[..., None], 0)

    def arrange(self, states: Tensor, counts: Tensor) -> Tensor:
        """Returns features [B, T, D + 1] of hidden states [B, n, D], padded on `padding_side`.

        Args:
            counts: number of tokens of each caption, [B].
        """
        batch, tokens, width = states.shape
        counts = counts.to(states.device)[:, None]
        features = torch.zeros(batch, self.length, width + 1, device=states.device)
        features[:, :tokens, :-1] = states.to(features.dtype)
        positions = torch.arange(self.length, device=states.device)
        features[..., -1] = (positions < counts).to(features.dtype)
        if self.padding_side == "right":
            return features
        source = (positions - self.length + counts) % self.length
        return features.gather(1, source[..., None].expand_as(features))

    def _load(self) -> Any:
        """Returns the encoder, frozen and in eval mode.

        Raises:
            UserError: it cannot be loaded, or it does not fit the settings.
        """
        if self._network is None:
            try:
                network = load_text_encoder(self.path, self.dtype)
            except UserError as error:
                raise UserError(f"{error}: {self._advice}") from error
            self._check(network)
            self._network = network.to(self.device)
        return self._network

    def _check(self, network: Any) -> None:
        """Checks that the encoder fits the settings.

        Raises:
            UserError: it has fewer positions, another width or other weights.
        """
        positions = getattr(network.config, "max_position_embeddings", None) or self.length
        if self.length > positions:
            raise UserError(
                f"caption.length={self.length} is more than the {positions} positions of "
                f"{self.path}: set caption.length={positions}"
            )
        width = network.config.hidden_size
        if self._width not in (None, width):
            raise UserError(
                f"{self.path} has features of width {width}, and the prior reads {self._width}: "
                f"{self._advice}"
            )
        if self._digest is not None and _digest(network) != self._digest:
            raise UserError(
                f"{self.path} has other weights than the text encoder that the prior was trained "
                f"with: {self._advice}"
            )


def load_text_encoder(path: str, dtype: torch.dtype) -> Any:
    """Loads a text encoder of transformers without the other parts of its model.

    Raises:
        UserError: there is no such encoder, or it is incomplete.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "transformers, which text encoders need, is not installed: pip install "
            "'tilewright[pretrained]'"
        ) from error
    local = Path(path).expanduser()
    if not local.is_dir() and path.startswith(("/", "~", ".")):
        raise UserError(f"there is no folder {path} of a text encoder")
    source = local if local.is_dir() else path
    settings: dict[str, Any] = {"trust_remote_code": False}
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(source, **settings)
            network, report = _network_class(transformers, config).from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True, **settings
            )
    except Exception as error:  # of many classes: files, HTTP, settings
        raise UserError(
            f"{path} is not a text encoder that can be loaded ({first_line(error)})"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing or report["mismatched_keys"]:
        name = missing[0] if missing else min(report["mismatched_keys"])[0]
        raise UserError(f"{path} is not complete: {name} is missing or has another shape")
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    return network.eval().requires_grad_(False)


def _digest(network: nn.Module) -> str:
    """Returns a hash of a text encoder's weights, without a pooler, which features do not need.

    A checkpoint may lack the pooler, whose weights are then random.
    """
    state = network.state_dict()
    return weights_digest({k: v for k, v in state.items() if "pooler" not in k})


def _network_class(transformers: Any, config: Any) -> Any:
    """Returns the class of the text encoder alone, such as T5EncoderModel, or else AutoModel."""
    family = type(config).__name__.removesuffix("Config").removesuffix("Text")
    names = (f"{family}TextModel", f"{family}EncoderModel", "AutoModel")
    return next(getattr(transformers, name) for name in names if hasattr(transformers, name))


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Shows no progress bars and no reports about weights of other parts."""
    logging = transformers.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
