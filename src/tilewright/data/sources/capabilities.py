"""Optional capabilities of a source: a caption checker and caption styles."""

from typing import Protocol

from torch import Tensor

from tilewright.errors import UserError


class CaptionChecker(Protocol):
    """Program that decides from the pixels alone whether an image matches its caption.

    A source offers one as its attribute `checker`. `metric=alignment`, `metric=best_of`,
    `metric=reconstruction` and the alignment callback use it.
    """

    def matches(self, image: Tensor, caption: str) -> bool:
        """Returns True if an image [3, H, W], float in [0, 1], matches the caption."""
        ...

    def category(self, caption: str) -> str:
        """Returns the category that the caption is counted in, for example "two objects"."""
        ...


class CaptionStyles(Protocol):
    """Styles of a source that shows the same concepts in more than one style.

    A source offers them as its attribute `caption_styles`. `metric=identification` uses them.
    """

    def style(self, caption: str) -> str:
        """Returns the style that the caption asks for, for example "twemoji"."""
        ...

    def in_other_style(self, caption: str) -> str | None:
        """Returns the caption of the same concept in the other style.

        Returns None if the source does not have exactly two styles.
        """
        ...


def require_checker(source: object, purpose: str) -> CaptionChecker:
    """Returns the checker of a source.

    Args:
        purpose: metric or callback that needs it; the error names it.

    Raises:
        UserError: the source has no checker.
    """
    checker = getattr(source, "checker", None)
    if checker is None:
        raise UserError(
            f"{purpose} needs a source with a checker, and {type(source).__name__} has none: "
            "use data=shapes or give the source an attribute `checker` (docs/evaluation.md)"
        )
    return checker
