"""Low-rank adapters (LoRA, Hu et al. 2021): small trained matrices beside frozen linear layers.

A run with adapters saves only them. Its weights are those of its base, plus the product of each
adapter's two matrices. The base is the run or model that `init=` names.
"""

import copy
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tilewright.checks import check_number, check_whole
from tilewright.errors import UserError
from tilewright.weight_files import write_tensors

# Names of an adapter's matrices, in a state dict and in PEFT's files.
MATRIX = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<matrix>[AB])(\.default)?\.weight"
)


@dataclass(frozen=True)
class LowRankAdapters:
    """Settings of adapters: y = W x + alpha / rank * B A x, where only A and B are trained.

    Args:
        rank: rows of A and columns of B.
        alpha: numerator of the adapters' scale.
        dropout: dropout of the adapters' inputs in training.
        layers: layers with adapters, each as the end of a name or as a regular expression. None
            takes all linear layers of the network's blocks.

    Raises:
        UserError: a value is not possible.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_whole("lora.rank", self.rank)
        check_number("lora.alpha", self.alpha, 0, exclusive=True)
        check_number("lora.dropout", self.dropout, 0, 1)
        if self.layers is not None and (isinstance(self.layers, str) or not self.layers):
            raise UserError(f"lora.layers={self.layers} is not a list of names: set [qkv,out]")

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank

    def peft_config(self, layers: Iterable[str]) -> Any:
        """Returns PEFT's configuration of adapters on layers with these full names.

        Raises:
            UserError: PEFT is not installed.
        """
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports missing kernels
        try:
            from peft import LoraConfig
        except ModuleNotFoundError as error:
            raise UserError(
                f"adapters need {error.name}, which cannot be imported: pip install "
                "'tilewright[lora]'"
            ) from error
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=list(layers),
        )

    def add_to(self, network: Any) -> None:
        """Adds adapters to a network in place, and freezes all other weights.

        The network's state dict then holds only the adapters. Its output does not change, because B
        is zero at first.

        Raises:
            UserError: PEFT is not installed, or a layer does not exist.
        """
        config = self.peft_config(choose_layers(network, self.layers))
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, network)
        network.register_state_dict_post_hook(_drop_frozen)
        network.register_load_state_dict_post_hook(_expect_adapters)


def choose_layers(network: Any, layers: Sequence[str] | None) -> list[str]:
    """Returns the names of the linear layers that `LowRankAdapters.layers` chooses.

    Raises:
        UserError: an entry chooses none, or the network has no linear layer.
    """
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if layers is None:
        blocks = [n for n, part in network.named_modules() if isinstance(part, network.block_types)]
        inside = tuple(f"{name}." for name in blocks)
        layers_of_blocks = [name for name in linear if name.startswith(inside)]
        if not layers_of_blocks:
            raise UserError(
                f"lora= finds no linear layer in the blocks of {type(network).__name__}: leave "
                "lora out"
            )
        return layers_of_blocks
    chosen: dict[str, None] = {}
    for entry in layers:
        try:
            matching = [name for name in linear if re.fullmatch(rf"(.*\.)?({entry})", name)]
        except re.error as error:
            raise UserError(
                f"lora.layers has {entry}, which is not a regular expression ({error}): use the "
                f"names {_list_names(linear)}"
            ) from error
        if not matching:
            raise UserError(
                f"lora.layers has {entry}, and no linear layer has this name: use "
                f"{_list_names(linear)}"
            )
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def _list_names(names: Iterable[str]) -> str:
    """Lists layer names, with `*` for the index of a block."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))


def _drop_frozen(network: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and not MATRIX.fullmatch(name)]:
        del state[name]


def _expect_adapters(network: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if MATRIX.fullmatch(name)]


def merge_adapters(
    base: Mapping[str, Tensor], adapters: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Returns the weights of a base with the change of its adapters.

    Args:
        base: state dict of the plain network.
        adapters: state dict of the network with adapters, or the content of PEFT's file.
        scale: `LowRankAdapters.scale`.

    Raises:
        UserError: an adapter does not fit the base.
    """
    merged, matrices = dict(base), name_matrices(adapters)
    for layer in dict.fromkeys(name for name, _ in matrices):
        name = f"{layer}.weight"
        a, b = matrices.get((layer, "A")), matrices.get((layer, "B"))
        weight = base.get(name)
        if a is None or b is None or weight is None:
            missing = "layer in its base" if weight is None else "second matrix"
            raise UserError(
                f"the adapter of {layer} has no {missing}: use the files of one training"
            )
        if (
            a.dim() != 2
            or b.dim() != 2
            or (len(b), *a.shape[1:]) != weight.shape
            or b.shape[1] != len(a)
        ):
            raise UserError(
                f"the adapter of {layer} has shapes {list(b.shape)} and {list(a.shape)}, which do "
                f"not fit {list(weight.shape)}: use the base that it was trained on"
            )
        # In fp32, because a base in bf16 would round small changes away.
        merged[name] = weight.float() + scale * (b.float() @ a.float())
    return merged


def name_matrices(adapters: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Returns the matrices of adapters by (layer name, "A" or "B").

    Raises:
        UserError: a tensor is not a matrix of an adapter.
    """
    named = {}
    for name, value in adapters.items():
        match = MATRIX.fullmatch(name)
        if match is None:
            raise UserError(
                f"{name} is not a matrix of a low-rank adapter: use a LoRA of linear layers"
            )
        named[match["layer"], match["matrix"]] = value
    return named


def save_adapters(
    file: Path, adapters: Mapping[str, Tensor], settings: LowRankAdapters, base: str
) -> None:
    """Writes adapters as PEFT does: `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        file: path of `adapter_model.safetensors`. The configuration is written beside it.
        adapters: state dict of the network with adapters, or the content of PEFT's file.
        base: path or name of the base.

    Raises:
        UserError: PEFT is not installed, or a tensor is not a matrix of an adapter.
    """
    matrices = name_matrices(adapters)
    config = settings.peft_config(dict.fromkeys(layer for layer, _ in matrices))
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(file.parent))
    tensors = {
        f"base_model.model.{layer}.lora_{matrix}.weight": value
        for (layer, matrix), value in matrices.items()
    }
    write_tensors(file, tensors)


def without_adapters(layer: Any) -> nn.Module:
    """Returns a copy of a layer with its adapters merged.

    A layer without adapters is returned unchanged.
    """
    if not (hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")):
        return layer
    layer = copy.deepcopy(layer)
    layer.merge()
    return layer.get_base_layer()
