"""Networks, tokenizers and data of runs and models: loading and saving them."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tilewright import files
from tilewright.configs import escape
from tilewright.conversion import Conversion
from tilewright.errors import UserError, first_line, mismatch
from tilewright.runs import safe_build
from tilewright.runs.bases import base_folder
from tilewright.runs.folders import (
    ADAPTER,
    DVAE,
    FORMAT,
    MODEL_CONFIG,
    TOKENIZER,
    WEIGHTS,
    checkpoint,
    follow_latest,
    is_model,
    load_config,
    loss_networks,
    public_family,
    reads_features,
)
from tilewright.training.checkpoint_steps import read_steps
from tilewright.weight_files import limit_parameters, read_tensors, write_tensors

# Settings of a run's `model` that a model keeps.
MODEL_KEYS = ("network", "caption_dropout", "image_dropout")
SAMPLING = "tilewright.prior.Sampling"
ADAPTERS = "tilewright.training.LowRankAdapters"


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Reads a Lightning checkpoint without running any code that it may hold.

    Raises:
        UserError: the file is broken or truncated.
    """
    from tilewright.distributed import sharded_checkpoint

    try:
        return sharded_checkpoint.read_checkpoint(file)
    except Exception as error:  # a broken archive raises errors of many classes
        raise UserError(
            f"{file} cannot be read, it may be truncated: {first_line(error)}"
        ) from error


def trained_steps(folder: Path, kind: str = "best") -> int:
    """Returns the number of updates of a model or a checkpoint, or 0 if unknown, without torch.

    Args:
        folder: folder of the model or run.
        kind: "best", whose weights `load_weights` returns, or "last".

    Raises:
        UserError: the run has no checkpoint.
    """
    if is_model(folder):
        return load_config(folder).get("steps", 0)
    return read_steps(checkpoint(folder, kind))


def check_unfinished(file: Path, max_steps: int) -> None:
    """Checks that a run can continue from a checkpoint.

    Args:
        file: the checkpoint.
        max_steps: number of updates of the whole training; -1 has no end.

    Raises:
        UserError: the run has made all its updates, or the checkpoint is broken.
    """
    try:
        step = load_checkpoint(file)["global_step"]
    except UserError as error:
        raise UserError(f"{error}{_offer_other_checkpoint(file)}") from error
    if 0 <= max_steps <= step:
        raise UserError(
            f"{file.parents[1]} has made all its {step} updates: raise trainer.max_steps to "
            "continue"
        )


def _offer_other_checkpoint(broken: Path) -> str:
    """Returns advice to resume from the newest checkpoint that can be read, if one exists."""
    others = [file for file in broken.parent.glob("*.ckpt") if file != broken]
    for file in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            step = load_checkpoint(file)["global_step"]
        except UserError:
            continue
        return f"; resume={file} continues after {step} updates"
    return ""


def load_tokenizer(folder: str | Path, device: str = "cpu") -> Any:
    """Loads the text tokenizer of a run or model.

    Args:
        device: of a text encoder's weights, which are loaded with the first caption.

    Raises:
        UserError: the run does not exist, has no tokenizer, or its tokenizer does not match its
            config.
    """
    folder = follow_latest(folder)
    settings = load_config(folder).get("tokenizer")
    tokenizer = safe_build.build(settings, "tilewright.data", f"tokenizer in {folder}")
    tokenizer.load(folder / TOKENIZER)
    if hasattr(tokenizer, "to"):
        tokenizer.to(device)
    return tokenizer


def load_network(run: str | Path, device: str = "cpu") -> Any:
    """Loads the network of a run or model with its averaged weights, frozen, in eval mode.

    Adapters are merged, so the network has plain layers.

    Raises:
        UserError: the run or its checkpoint does not exist, is broken, or does not match the
            config.
    """
    run = follow_latest(run)
    config = load_config(run)
    settings = OmegaConf.select(config, "model.network")
    package = f"tilewright.{config.stage}"
    weights = load_weights(run)
    with limit_parameters(weights, run):
        network = safe_build.build(settings, package, f"model.network in {run}")
    load_into(network, weights, run)
    return network.to(device).eval().requires_grad_(False)


def load_sampling(folder: str | Path) -> Any:
    """Returns the `Sampling` that a run or model of stage=prior recommends.

    A run without a recommendation has the paper's.

    Raises:
        UserError: the run does not exist, or its `sampling` is not possible.
    """
    from tilewright.prior import Sampling

    settings = load_config(follow_latest(folder)).get("sampling")
    if settings is None:
        return Sampling()
    return _build_only(SAMPLING, settings, f"sampling in {folder}")


def _build_only(kind: str, settings: Any, where: str) -> Any:
    """Builds an object from settings that must name one class.

    Raises:
        UserError: they name another class, or a value is not possible.
    """
    package = kind.rpartition(".")[0]
    target = safe_build.check(settings, package, where)["_target_"]
    if target != kind:
        raise UserError(f"{where} has _target_={target!r}: set it to {kind}")
    return safe_build.build(settings, package, where)


def load_into(network: Any, weights: dict[str, Any], folder: Path) -> None:
    """Loads the weights of a run or model into a network, in place.

    Raises:
        UserError: the weights do not fit the network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {folder} do not fit the network of its configuration: "
            f"{mismatch(error)}"
        ) from error


def load_weights(folder: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Loads a network's weights: a model's, else the averaged ones of a run's best checkpoint.

    Adapters are merged with the weights of their base.

    Args:
        above: folders whose chain of bases leads to this one.

    Raises:
        UserError: the folder has no weights, or their file is broken. Or they are adapters whose
            base is missing, has other weights, or is an adapter of themselves.
    """
    weights, config = load_own_weights(folder), load_config(folder)
    if not config.get("base"):
        return weights
    from tilewright.training.adapters import merge_adapters

    adapters = load_adapters(folder, config)
    return merge_adapters(load_base(folder, config, above), weights, adapters.scale)


def load_adapters(folder: Path, config: DictConfig) -> Any:
    """Returns the `LowRankAdapters` of a run or an exported adapter.

    Raises:
        UserError: the settings are not possible.
    """
    return _build_only(ADAPTERS, config.get("lora"), f"lora in {folder}")


def load_base(folder: Path, config: DictConfig, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Loads the weights of the base of adapters.

    Args:
        folder: folder of the run or adapter.
        config: its configuration. A missing `base.digest` accepts any weights.
        above: see `load_weights`.

    Raises:
        UserError: the base is missing or has other weights than in training.
    """
    from tilewright.data.image_tokenizer import weights_digest

    base = base_folder(folder, config, above)
    weights = load_weights(base, (*above, folder))
    if config.base.digest not in (None, weights_digest(weights)):
        raise UserError(
            f"{folder} has adapters of {base}, whose weights have changed since: set base.path to "
            "a copy of the original weights"
        )
    return weights


def load_own_weights(folder: Path) -> dict[str, Any]:
    """Loads the weights that a run or model holds itself, which may be those of adapters.

    Raises:
        UserError: the folder has no weights, or their file is broken.
    """
    from tilewright.distributed.sharded_checkpoint import load_stored_tensors

    if family := public_family(folder):
        return family.convert(trust=False).weights
    for name in (WEIGHTS, ADAPTER):
        if (folder / name).is_file():
            return read_tensors(folder / name)
    state = load_checkpoint(checkpoint(folder))["state_dict"]
    prefix = "network."
    network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return load_stored_tensors(network)


def load_data(settings: DictConfig) -> Any:
    """Builds the images and captions that a run was trained on, without tokens and augmentation.

    Args:
        settings: `data` of the run's configuration.

    Raises:
        UserError: the settings name a class outside `tilewright.data`.
    """
    unused = {"tokenizer": None, "image_tokenizer": None, "train_transform": None}
    plain = {**OmegaConf.to_container(settings), **unused}  # type: ignore[dict-item]
    return safe_build.build(plain, "tilewright.data", "the run's data")


def save_model(
    folder: Path, run: Path, sampling: Mapping[str, Any] | None = None, adapter: bool = False
) -> None:
    """Saves the network of a run as a model: settings, averaged weights, tokenizer.

    Args:
        sampling: changes to the recommended sampling.
        adapter: True saves the adapters of the run alone, with the place of their base.
    """
    config = load_config(run)
    if sampling:
        recommended = dataclasses.replace(load_sampling(run), **sampling)
        names = ("temperature", "top_k", "top_p", "guidance")  # the rest depends on the machine
        values = {name: getattr(recommended, name) for name in names}
        config.sampling = {"_target_": SAMPLING, **values}
    if adapter:
        from tilewright.training.adapters import save_adapters

        config.base.path = escape(str(base_folder(run, config)))
        _save_config(folder, config, trained_steps(run), ("lora", "base"))
        save_adapters(
            folder / ADAPTER, load_own_weights(run), load_adapters(run, config), config.base.path
        )
    else:
        save_network(folder, config, load_weights(run), trained_steps(run))
    if (run / TOKENIZER).is_file():  # a converted model may leave it to its text encoder
        shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)


def save_network(folder: Path, config: DictConfig, weights: dict[str, Any], steps: int = 0) -> None:
    """Saves a model that `load_network` loads: `config.json` and `model.safetensors`.

    Args:
        folder: folder of the model.
        config: configuration of the run. Its paths and its data are not saved.
        weights: the network's state dict.
        steps: number of updates that the weights were trained for.
    """
    _save_config(folder, config, steps)
    write_tensors(folder / WEIGHTS, weights)


def _save_config(
    folder: Path, config: DictConfig, steps: int, more_keys: tuple[str, ...] = ()
) -> None:
    """Writes the part of a run's configuration that a model keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Any] = {
        "format": FORMAT,
        "stage": config.stage,
        "choices": config.choices,
        "steps": steps,
        # Without caption dropout, a prior refuses guidance. Fine-tuning keeps the image dropout.
        "model": {key: config.model[key] for key in MODEL_KEYS if key in config.model},
    }
    for key in ("tokenizer", "sampling", *more_keys):
        if config.get(key):
            saved[key] = config[key]
    if networks := loss_networks(config):
        saved["perceptual_networks"] = networks
    plain: Any = OmegaConf.to_container(OmegaConf.create(saved), resolve=True)
    if "path" in plain.get("tokenizer", {}) and not reads_features(config):
        plain["tokenizer"]["path"] = None  # private, and the model has its own tokenizer.json
    files.write_atomically(folder / MODEL_CONFIG, json.dumps(escape(plain), indent=2) + "\n")


def save_conversion(folder: Path, conversion: Conversion, name: str) -> None:
    """Saves a converted checkpoint as a model.

    Args:
        name: name of its family.
    """
    model: dict[str, Any] = {"network": conversion.network}
    if conversion.caption_dropout is not None:
        model["caption_dropout"] = conversion.caption_dropout
    if conversion.stage == "prior":
        model["image_dropout"] = 0.0  # published priors never saw dropped tokens
    settings = {
        "stage": conversion.stage,
        "choices": {"model": name, "family": name},
        "model": model,
        "tokenizer": conversion.tokenizer,
        "sampling": conversion.sampling and {"_target_": SAMPLING, **conversion.sampling},
    }
    config = OmegaConf.create(escape(settings))
    if conversion.stage == "prior":
        config.choices.caption = "encoder" if reads_features(config) else "joint"
    save_network(folder, config, conversion.weights)
    if conversion.tokenizer_json is not None:
        files.write_atomically(folder / TOKENIZER, conversion.tokenizer_json)
    if conversion.dvae is not None:
        save_conversion(folder / DVAE, conversion.dvae, name)


def copy_dvae(prior_run: Path, dvae_run: Path) -> None:
    """Copies the model of a trained dVAE into a prior's run."""
    save_model(prior_run / DVAE, dvae_run)
