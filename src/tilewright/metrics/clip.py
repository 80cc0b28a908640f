"""Pretrained CLIP models of the transformers library."""

import functools
from pathlib import Path
from typing import Any

from torch import Tensor

from tilewright.errors import UserError


def load_clip(name_or_path: str | Path) -> tuple[Any, Any]:
    """Loads a pretrained CLIP and its processor.

    The model's `get_image_features` and `get_text_features` return vectors [B, D]. The processor
    truncates long captions.

    Args:
        name_or_path: folder of a transformers CLIP, or its name on the Hugging Face Hub.

    Raises:
        UserError: transformers is not installed, or the CLIP cannot be loaded or is not complete.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise UserError(
            "transformers, which CLIP needs, is not installed: pip install 'tilewright[clip]'"
        ) from error

    class VectorCLIP(CLIPModel):
        # transformers 5 returns all outputs of a tower here; torchmetrics expects the vectors.
        def get_image_features(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            return super().get_text_features(*args, **kwargs).pooler_output

    try:
        load: Any = VectorCLIP.from_pretrained
        model, report = load(name_or_path, output_loading_info=True)
        processor: Any = CLIPProcessor.from_pretrained(name_or_path)
    except Exception as error:  # of many classes: files, HTTP, settings, shapes
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot load a CLIP from {name_or_path} ({reason}): give the folder of a transformers "
            "CLIP, or its name on the Hugging Face Hub"
        ) from error
    if report["missing_keys"]:  # transformers would leave these weights random
        raise UserError(
            f"{name_or_path} is not a complete CLIP ({min(report['missing_keys'])} is missing): "
            "give the folder of a transformers CLIP, or its name on the Hugging Face Hub"
        )
    # The tokenizer must truncate: it keeps the end token, from which CLIP reads the text vector.
    return model.eval(), functools.partial(processor, truncation=True)
