"""A pretrained CLIP of the package transformers, for whatever compares captions with pictures."""

import functools
from pathlib import Path
from typing import Any

from torch import Tensor

from tilewright.errors import UserError


def clip_towers(clip: str | Path) -> tuple[Any, Any]:
    """A pretrained CLIP: a model with `get_image_features` and `get_text_features`, which both give
    vectors [B, D] on the model's device, and the processor that makes its inputs.

    Args:
        clip: folder of a transformers CLIP, or its name on the Hugging Face Hub.

    Raises:
        UserError: transformers is not installed, or there is no such CLIP.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise UserError(
            "a CLIP needs a package that is not installed: pip install 'tilewright[clip]'"
        ) from error

    class Towers(CLIPModel):
        # transformers 5 returns all of a tower's outputs here, torchmetrics wants the vector.
        def get_image_features(self, *inputs: Tensor, **named: Tensor) -> Tensor:
            return super().get_image_features(*inputs, **named).pooler_output

        def get_text_features(self, *inputs: Tensor, **named: Tensor) -> Tensor:
            return super().get_text_features(*inputs, **named).pooler_output

    try:
        model = Towers.from_pretrained(clip).eval()
        processor: Any = CLIPProcessor.from_pretrained(clip)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no CLIP can be loaded from {clip}: give the folder of a transformers CLIP, or its "
            f"name on the Hugging Face Hub ({reason})"
        ) from error
    # Cut by the tokenizer, a caption keeps the end token, which its vector is read off.
    return model, functools.partial(processor, truncation=True)
