"""Image tokenizers of diffusers: any `VQModel`, such as aMUSEd's and MoVQ."""

from dataclasses import dataclass
from typing import Any, get_args

from tilewright.checks import check_option
from tilewright.dvae.pretrained.folder_family import FolderFamily
from tilewright.dvae.pretrained.key_maps import diffusers_key
from tilewright.errors import UserError

IMAGE_SIZE = 256  # `sample_size` of public configurations is not the size of training
# Names of attention layers that older versions of diffusers wrote.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
DOWN = {
    "DownEncoderBlock2D": False,
    "AttnDownEncoderBlock2D": True,
}  # True for blocks with attention
UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclass(frozen=True)
class Diffusers(FolderFamily):
    """Family of diffusers' `VQModel`.

    Args:
        path: folder of the network, such as `vqvae/` in the folder of a pipeline.
        image_size: side of the images in pixels; None is 256.
        pixels: range of the pixels that the network was trained on, "signed" or "unit". None is
            aMUSEd's "unit" for its kind of network, which has `lookup_from_codebook`.
    """

    pixels: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixels is not None:
            from tilewright.dvae.vqgan import Pixels  # loads torch

            check_option("family.pixels", self.pixels, get_args(Pixels))

    def settings(self) -> dict[str, Any]:
        options = self.options()
        options.check(in_channels=3, out_channels=3, act_fn="silu", _class_name="VQModel")
        down = self._attention("down_block_types", DOWN)
        up = self._attention("up_block_types", UP)[::-1]
        widths = options.wholes("block_out_channels", (64,))
        if down != up or len(down) != len(widths):
            raise UserError(
                f"{options.source} has down_block_types={options.get('down_block_types')} and "
                f"up_block_types={options.get('up_block_types')} for {len(widths)} levels, which "
                "is not supported: use a network whose decoder mirrors its encoder"
            )
        norm = options.get("norm_type", "group")
        groups = options.whole("norm_num_groups", 32)
        if norm not in ("group", "spatial") or (norm == "spatial" and groups != 32):
            raise UserError(
                f"{options.source} has norm_type={norm} with norm_num_groups={groups}, which is "
                "not supported: use a network with norm_type=group"
            )
        size = self.image_size or IMAGE_SIZE
        channels = options.whole("latent_channels", 3)
        unit = "unit" if options.get("lookup_from_codebook") else "signed"
        return {
            "image_size": size,
            "grid": size // 2 ** (len(widths) - 1),
            "num_tokens": options.whole("num_vq_embeddings", 256),
            "code_dim": channels
            if options.get("vq_embed_dim") is None
            else options.whole("vq_embed_dim"),
            "channels": channels,
            "widths": widths,
            "blocks": options.whole("layers_per_block", 1),
            "attention": [level for level, has_attention in enumerate(down) if has_attention],
            "middle_attention": bool(options.get("mid_block_add_attention", True)),
            "groups": groups,
            "spatial_norm": norm == "spatial",
            "pixels": self.pixels or unit,
        }

    def _attention(self, name: str, supported: dict[str, bool]) -> list[bool]:
        """Returns True for each level with attention."""
        options = self.options()
        kinds = options.get(name, next(iter(supported)))
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        other = [kind for kind in kinds if kind not in supported]
        if other:
            raise UserError(
                f"{options.source} has {name} with {other[0]}, which is not supported: use a "
                f"network of {' and '.join(supported)}"
            )
        return [supported[kind] for kind in kinds]

    def public_key(self, key: str) -> str:
        return diffusers_key(key)

    def prepare(self, weights: dict[str, Any]) -> dict[str, Any]:
        return dict(self._prepare(key, value) for key, value in weights.items())

    def _prepare(self, key: str, value: Any) -> tuple[str, Any]:
        if ".attentions." not in key:
            return key, value
        stem, name, end = key.rsplit(".", 2)
        if value.ndim == 2:  # a linear layer is a convolution of one pixel
            value = value[:, :, None, None]
        return f"{stem}.{OLD_NAMES.get(name, name)}.{end}", value
