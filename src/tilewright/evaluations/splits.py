"""Splits that an evaluation measures."""

import logging
from collections.abc import Sequence

from tilewright.data import CaptionedImages
from tilewright.errors import UserError

logger = logging.getLogger(__name__)


def available_splits(data: CaptionedImages, names: Sequence[str] | str) -> list[str]:
    """Returns the splits that exist in the data. A warning names the others.

    Args:
        data: data to measure on.
        names: names of splits or of parts, such as validation[2000:3000].

    Raises:
        UserError: none of the splits exists.
    """
    names = [names] if isinstance(names, str) else list(names)
    available = [name for name in names if name.partition("[")[0] in data.splits]
    missing = ", ".join(name for name in names if name not in available)
    if not available:
        raise UserError(
            f"metric.splits=[{', '.join(names)}] names no split of the data: set it to some of "
            f"{', '.join(data.splits)}"
        )
    if missing:
        logger.warning("The data has no split %s, which is left out", missing)
    return available
