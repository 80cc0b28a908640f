"""VQGANs of taming-transformers (Esser et al. 2021), and checkpoints in the same format."""

from dataclasses import dataclass
from functools import partial

from tilewright.checks import check_whole
from tilewright.conversion import Conversion
from tilewright.dvae.pretrained.key_maps import convert_vqgan, infer_settings, taming_key
from tilewright.weight_files import read_tensors

GUMBEL_NAMES = {"quantize.embed.weight": "quantize.embedding.weight"}


@dataclass(frozen=True)
class Taming:
    """Family of the VQGANs of taming-transformers. The weights determine their sizes.

    latent-diffusion, minDALL-E (`stage1_last.ckpt`) and the original release of Chameleon
    (`vqgan.ckpt`) have checkpoints in the same format.

    Args:
        checkpoint: path of the checkpoint, such as `last.ckpt`.
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
        weights = {GUMBEL_NAMES.get(key, key): value for key, value in weights.items()}
        encoder_key = partial(taming_key, levels=1)  # only the decoder's names depend on it
        settings = infer_settings(weights, self.checkpoint, encoder_key, self.image_size)
        rename = partial(taming_key, levels=len(settings["widths"]))
        return convert_vqgan(weights, self.checkpoint, settings, rename)
