"""Base class of families whose checkpoint is a folder of safetensors with a `config.json`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tilewright.checks import check_whole
from tilewright.conversion import Conversion
from tilewright.dvae.pretrained.key_maps import convert_vqgan
from tilewright.dvae.pretrained.options import Options
from tilewright.weight_files import read_json, read_tensors

CONFIG = "config.json"


@dataclass(frozen=True)
class FolderFamily(ABC):
    """Image tokenizer in a folder of transformers or diffusers.

    `dvae=` reads such a folder directly, without a conversion.

    Args:
        path: the folder.
        image_size: side of the images in pixels; None reads it from the network's settings.
    """

    path: str
    image_size: int | None = None

    prefix: ClassVar[str] = ""  # of the image tokenizer's tensors in the model around it

    def __post_init__(self) -> None:
        if self.image_size is not None:
            check_whole("family.image_size", self.image_size)

    def options(self) -> Options:
        """Returns the settings in the folder."""
        file = Path(self.path) / CONFIG
        return Options(read_json(file), file)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Returns the arguments of `VQGAN`, without loading torch.

        Raises:
            UserError: a setting is missing or not supported.
        """

    @abstractmethod
    def public_key(self, key: str) -> str:
        """Returns the public name of a tensor of our `VQGAN`."""

    def convert(self, trust: bool) -> Conversion:
        """Converts the folder, which cannot run code: it needs no trust.

        Raises:
            UserError: a file is missing, broken, or of another network.
        """
        settings = self.settings()
        weights = self.prepare(read_tensors(self.path, prefix=self.prefix))
        return convert_vqgan(weights, self.path, settings, self.public_key)

    def prepare(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Returns the weights with the names and the shapes that `public_key` expects."""
        return weights
