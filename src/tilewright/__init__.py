"""Train and run DALL-E: a discrete VAE, an autoregressive prior, honest evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.pipeline import TextToImage

__all__ = ["TextToImage"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line can speak before torch is loaded.
    if name == "TextToImage":
        from tilewright.pipeline import TextToImage

        return TextToImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
