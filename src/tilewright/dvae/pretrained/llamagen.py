"""Image tokenizers of LlamaGen (Sun et al. 2024): VQ-8 and VQ-16."""

from dataclasses import dataclass

from tilewright.checks import check_whole
from tilewright.conversion import Conversion
from tilewright.dvae.pretrained.key_maps import convert_vqgan, infer_settings, llamagen_key
from tilewright.weight_files import read_tensors


@dataclass(frozen=True)
class LlamaGen:
    """Family of LlamaGen's image tokenizers. The weights determine their sizes.

    Args:
        checkpoint: path of the checkpoint, such as `vq_ds16_t2i.pt`.
        image_size: side of the images in pixels, a multiple of 8 or 16.
    """

    checkpoint: str
    image_size: int = 256

    def __post_init__(self) -> None:
        check_whole("family.image_size", self.image_size)

    def convert(self, trust: bool) -> Conversion:
        """Converts the checkpoint.

        Raises:
            UserError: the file is missing, broken, not trusted, or of another network.
        """
        weights = read_tensors(self.checkpoint, trust)
        settings = infer_settings(weights, self.checkpoint, llamagen_key, self.image_size)
        settings["codebook"] = "cosine"
        return convert_vqgan(weights, self.checkpoint, settings, llamagen_key)
