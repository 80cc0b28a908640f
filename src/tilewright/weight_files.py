"""Files of weights, also those that other projects wrote.

Safetensors and JSON cannot run code, so they need no trust. The other formats are pickles, which
the user must trust. Even then, a pickle only builds tensors and plain values.
"""

import contextlib
import hashlib
import itertools
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright import files
from tilewright.errors import UserError, first_line

if TYPE_CHECKING:  # the command line imports this module before it loads torch
    from torch import Tensor

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
SAFETENSORS, INDEX = ".safetensors", ".safetensors.index.json"
FOLDER_STEMS = ("model", "diffusion_pytorch_model")  # names that transformers and diffusers use
NESTED = ("ema", "model", "module", "state_dict")  # entries that hold a state dict, best one first
# Names in a pickle that build tensors. torch.load adds the storages.
TENSOR_NAMES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}


class Tensors:
    """Tensors of a file, from which a conversion takes each by its name.

    Args:
        tensors: by name.
        source: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, "Tensor"], source: str | Path):
        self._rest = dict(tensors)
        self.source = source

    def __contains__(self, key: str) -> bool:
        return key in self._rest

    def shape(self, key: str, dims: int | None = None) -> tuple[int, ...]:
        """Returns the shape of a tensor without taking it.

        Args:
            dims: number of dimensions that the tensor must have.

        Raises:
            UserError: the tensor is missing or has other dimensions.
        """
        if key not in self._rest:
            example = f", but for example {min(self._rest)}" if self._rest else ""
            raise UserError(
                f"{self.source} has no tensor {key}{example}: choose the family of this file, or "
                "give the complete file"
            )
        shape = tuple(self._rest[key].shape)
        if dims not in {None, len(shape)}:
            raise UserError(
                f"{self.source} has {key} of shape {list(shape)} instead of {dims} dimensions: "
                "choose the family of this file"
            )
        return shape

    def take(self, key: str, shape: Sequence[int]) -> "Tensor":
        """Removes a tensor and returns it.

        Raises:
            UserError: the tensor is missing or has another shape.
        """
        actual = self.shape(key)
        if actual != tuple(shape):
            raise UserError(
                f"{self.source} has {key} of shape {list(actual)} instead of {list(shape)}: give "
                "the configuration that belongs to this file"
            )
        return self._rest.pop(key)

    def count(self, name: Callable[[int], str]) -> int:
        """Returns the number of consecutive tensors from index 0, without taking them.

        Args:
            name: name of the tensor with an index.
        """
        return next(index for index in itertools.count() if name(index) not in self)

    def check_empty(self, ignored: Sequence[str] = ()) -> None:
        """Checks that every tensor has been taken.

        Args:
            ignored: beginnings of names that a model does not need, such as "loss.".

        Raises:
            UserError: tensors are left.
        """
        rest = sorted(key for key in self._rest if not key.startswith(tuple(ignored)))
        if rest:
            raise UserError(
                f"{self.source} has {len(rest)} tensors without a place in the network, such as "
                f"{rest[0]}: choose the family of this file, or give the configuration that "
                "belongs to it"
            )


def read_tensors(path: str | Path, trust: bool = False, prefix: str = "") -> dict[str, "Tensor"]:
    """Reads the state dict of a file, or of a folder that transformers or diffusers wrote.

    Args:
        path: a safetensors file, an index of such files, a folder with either, or a pickle.
        trust: the user trusts the source of a pickle.
        prefix: beginning of the names of the tensors to read. It is removed from the names.

    Raises:
        UserError: the file is missing, broken, of another kind, or a pickle without trust.
    """
    path = _find_file(Path(path))
    if path.name.endswith(INDEX):
        tensors = _read_index(path, prefix)
    elif path.suffix == SAFETENSORS:
        tensors = _read_safetensors(path, prefix)
    elif path.suffix in PICKLES:
        tensors = _read_pickle(path, trust, prefix)
    else:
        raise UserError(
            f"{path} is not a file of weights: give a {SAFETENSORS} file, its {INDEX}, or one of "
            f"{', '.join(PICKLES)}"
        )
    if not tensors:
        raise UserError(
            f"{path} has no tensors{f' that begin with {prefix}' if prefix else ''}: choose the "
            "family of this file"
        )
    return tensors


def file_digest(file: Path) -> str:
    """Returns the first 12 hexadecimal digits of a file's SHA-256, which identify weights."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


def write_tensors(file: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Writes a safetensors file."""
    from safetensors.torch import save_file

    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    with files.atomic_file(file) as temporary:
        save_file(contiguous, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes the file private


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a mapping from a JSON file.

    Raises:
        UserError: the file is missing, broken, or contains something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} contains {type(content).__name__} instead of an object: replace it"
        )
    return content


@contextlib.contextmanager
def limit_parameters(weights: Mapping[str, "Tensor"], source: str | Path) -> Iterator[None]:
    """Limits the networks that are built in the block to about the size of their weights.

    Otherwise, a few bytes of a stranger's configuration could describe a network that fills the
    memory. Loading the weights reports smaller differences.

    Raises:
        UserError: a network has far more parameters than the weights.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    numbers = 2 * sum(value.numel() for value in weights.values()) + 2**20
    tensors = 2 * len(weights) + 1000

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal numbers, tensors
        numbers -= 0 if parameter is None else parameter.numel()
        tensors -= 1
        if min(numbers, tensors) < 0:
            raise UserError(
                f"the weights in {source} do not fit the network of its configuration, which is "
                "far larger: use the configuration that was saved with them"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _find_file(path: Path) -> Path:
    """Returns the file of weights at a path, which may be a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give the path of a file of weights")
    for file in [path / f"{stem}{end}" for stem in FOLDER_STEMS for end in (INDEX, SAFETENSORS)]:
        if file.exists():
            files.check_not_linked(file)
            return file
    names = " or ".join(f"{stem}{SAFETENSORS}" for stem in FOLDER_STEMS)
    raise UserError(f"{path} has no {names}: give a folder with one, or the path of another file")


def names_in_folder(folder: Path, prefix: str = "") -> list[str]:
    """Returns the names of the safetensors files that may hold tensors with a prefix.

    Args:
        folder: folder of transformers or diffusers, which may be without these files yet.
        prefix: beginning of the names of the tensors.

    Raises:
        UserError: the index of the folder is broken.
    """
    for stem in FOLDER_STEMS:
        if (folder / f"{stem}{INDEX}").is_file():
            return sorted(set(_read_places(folder / f"{stem}{INDEX}", prefix).values()))
    return [f"{stem}{SAFETENSORS}" for stem in FOLDER_STEMS]


def _read_places(path: Path, prefix: str) -> dict[str, str]:
    """Returns the shard of each tensor with a prefix."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{path} has no weight_map of file names: download it again")
    for name in places.values():
        if Path(name).name != name or not name.endswith(SAFETENSORS):
            raise UserError(
                f"{path} names the shard {name!r}, which is not a {SAFETENSORS} file beside it: "
                "download it again"
            )
    return {key: name for key, name in places.items() if key.startswith(prefix)}


def _read_index(path: Path, prefix: str) -> dict[str, "Tensor"]:
    """Reads the shards that hold tensors with a prefix, and no others."""
    places = _read_places(path, prefix)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        files.check_not_linked(path.parent / name)
        tensors |= _read_safetensors(path.parent / name, prefix)
    missing = sorted(key for key in places if key.removeprefix(prefix) not in tensors)
    if missing:
        raise UserError(
            f"{path.parent / places[missing[0]]} has no tensor {missing[0]}, although {path.name} "
            "names it: download both again"
        )
    return tensors


def _read_safetensors(path: Path, prefix: str) -> dict[str, "Tensor"]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({first_line(error)}): copy or download "
            "it again"
        ) from error


def _read_pickle(path: Path, trust: bool, prefix: str) -> dict[str, "Tensor"]:
    if not trust:
        raise UserError(
            f"{path} is a pickle, a format that can run code when it is opened: set trust=true if "
            "you trust its source"
        )
    _check_archive(path)
    try:
        content = _load_pickle(path)
    except Exception as error:  # a broken pickle raises errors of many classes
        # In its next sentences, torch advises to load the file with code execution.
        reason, _, _ = first_line(error).partition(". ")
        raise UserError(
            f"{path} is not a complete checkpoint of PyTorch ({reason}): download it again"
        ) from error
    tensors = _find_state_dict(content)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _check_archive(path: Path) -> None:
    """Checks that a zip archive does not unpack to more than its size. PyTorch never compresses.

    Raises:
        UserError: it does.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is a broken archive ({error}): download it again") from error
    size = path.stat().st_size
    if unpacked > size:
        raise UserError(
            f"{path} has {size} bytes and unpacks to {unpacked}, which PyTorch never writes: do "
            "not use it"
        )


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that other protocols wrote
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
    # Lightning also pickles callbacks and settings, which `weights_only` refuses.
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_InertPickle)


def _find_state_dict(content: Any) -> dict[str, "Tensor"]:
    """Returns the tensors of a checkpoint, which may hold its state dict in an entry."""
    from torch import Tensor

    entries = content if isinstance(content, Mapping) else {}
    for part in (*(entries.get(name) for name in NESTED), entries):
        if isinstance(part, Mapping):
            tensors = {str(k): v.detach() for k, v in part.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
    return {}


class _Placeholder:
    """Object that stands for anything in a pickle except tensors and plain values."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignores an item."""

    add = append


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds tensors and plain values, and placeholders for the rest."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in TENSOR_NAMES:
            return super().find_class(module, name)
        return _Placeholder


class _InertPickle:
    """Module `pickle` for `torch.load`."""

    Unpickler = _Unpickler
