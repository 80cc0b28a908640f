"""Image tokenizers inside models of transformers: Janus and Chameleon.

Only the shards that hold the image tokenizer are read.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from tilewright.dvae.pretrained.folder_family import FolderFamily
from tilewright.dvae.pretrained.key_maps import janus_key, taming_key
from tilewright.dvae.pretrained.options import Options
from tilewright.errors import UserError

MULTIPLIERS = (1, 1, 2, 2, 4)  # widths of the levels, if the folder has none


@dataclass(frozen=True)
class TransformersFamily(FolderFamily):
    """Image tokenizer inside a model of transformers."""

    prefix: ClassVar[str] = "model.vqmodel."

    def vq_options(self) -> Options:
        """Returns the settings of the image tokenizer in the folder."""
        options = self.options().part("vq_config")
        options.check(in_channels=3, out_channels=3, double_latent=False, attn_type="vanilla")
        return options

    def sizes(self, image_size: int, code_dim: int, num_tokens: int) -> dict[str, Any]:
        """Returns arguments of `VQGAN`.

        Args:
            image_size: side of the images in pixels.
            code_dim, num_tokens: values if the folder has none.
        """
        options = self.vq_options()
        width = options.whole("base_channels", 128)
        widths = [width * factor for factor in options.wholes("channel_multiplier", MULTIPLIERS)]
        return {
            "image_size": image_size,
            "grid": image_size // 2 ** (len(widths) - 1),
            "num_tokens": options.whole("num_embeddings", num_tokens),
            "code_dim": options.whole("embed_dim", code_dim),
            "channels": options.whole("latent_channels", 256),
            "widths": widths,
            "stem_width": width,
            "blocks": options.whole("num_res_blocks", 2),
        }


@dataclass(frozen=True)
class Janus(TransformersFamily):
    """Family of the image tokenizer of Janus, which is LlamaGen's VQ-16.

    Its encoder compares directions, as in LlamaGen. The class of transformers does not, so that its
    tokens are not those that Janus was trained on.
    """

    def settings(self) -> dict[str, Any]:
        options = self.vq_options()
        levels = len(options.wholes("channel_multiplier", MULTIPLIERS))
        image_size = self.image_size or options.whole("num_patches", 32) * 2 ** (levels - 1)
        sizes = self.sizes(image_size, code_dim=8, num_tokens=16384)
        return {**sizes, "attention": [levels - 1], "codebook": "cosine"}

    def public_key(self, key: str) -> str:
        return janus_key(key)


@dataclass(frozen=True)
class Chameleon(TransformersFamily):
    """Family of the image tokenizer of Chameleon.

    The folders that Meta published have no decoder. Derived models such as Anole have one.
    """

    def settings(self) -> dict[str, Any]:
        options = self.vq_options()
        resolution = options.whole("resolution", 512)
        sides = options.wholes("attn_resolutions") if options.get("attn_resolutions") else []
        sizes = self.sizes(self.image_size or resolution, code_dim=256, num_tokens=8192)
        levels = range(len(sizes["widths"]))
        return {
            **sizes,
            "attention": [level for level in levels if resolution // 2**level in sides],
        }

    def public_key(self, key: str) -> str:
        return taming_key(key, levels=len(self.settings()["widths"]))

    def prepare(self, weights: dict[str, Any]) -> dict[str, Any]:
        if not any(key.startswith("decoder.") for key in weights):
            raise UserError(
                f"{self.path} has no decoder of images, as Meta published it: convert "
                "tokenizer/vqgan.ckpt of the original release with family=taming"
            )
        return weights
