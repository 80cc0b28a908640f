"""Recognition of public folders by their `config.json`."""

from pathlib import Path
from typing import Any

from tilewright.dvae.pretrained.diffusers import Diffusers
from tilewright.dvae.pretrained.folder_family import FolderFamily
from tilewright.dvae.pretrained.transformers import Chameleon, Janus

FAMILIES: dict[str, type[FolderFamily]] = {
    "VQModel": Diffusers,
    "janus": Janus,
    "chameleon": Chameleon,
}


def recognize(folder: str | Path, config: dict[str, Any]) -> FolderFamily | None:
    """Returns the family of a folder, or None if it is not an image tokenizer of another project.

    Args:
        folder: the folder.
        config: content of its `config.json`.
    """
    kind = config.get("_class_name") or config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    return None if family is None else family(str(folder))
