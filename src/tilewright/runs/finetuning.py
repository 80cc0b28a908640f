"""New runs that start from the weights of another run or model (`init=`)."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.checks import check_number, format_value
from tilewright.configs import escape
from tilewright.errors import UserError
from tilewright.runs import fixed_keys, safe_build
from tilewright.runs.likelihoods import fit_likelihood, own_likelihood

log = logging.getLogger(__name__)

# Groups whose option is that of the source. The model card names the family.
GROUPS = ("model", "tokenizer", "caption", "family")


def adopt(config: DictConfig, source: Path, keys: Iterable[str]) -> None:
    """Sets the network, tokenizer and dVAE of a new run to those of a trained run or model.

    Logs the source, and differences in its data and image size.

    Args:
        config: of the new run, with interpolations. Changed in place.
        source: run or model of the same stage whose weights the new run starts from.
        keys: keys and groups set on the command line.

    Raises:
        UserError: a key on the command line contradicts the weights, or the source names a class
            that may not be built.
    """
    saved, keys = runs.load_config(source), list(keys)
    _check_safe(source, saved)
    image_size = runs.image_size(source)
    _check_conflicts(config, source, keys, saved, image_size)
    _log_differences(config, source, saved, image_size)
    with open_dict(config):
        config.init = escape(str(source))
        _adopt_choices(config, saved)
        adopt_network(config, saved, keys)
        if networks := runs.loss_networks(saved):  # judges of the weights
            config.perceptual_networks = networks
        config.data.image_size = image_size
        if saved.stage == "prior":
            _adopt_prior(config, source, saved, keys)


def adopt_network(config: DictConfig, saved: DictConfig, keys: Iterable[str]) -> None:
    """Sets the network and the text side to those of a saved configuration.

    The likelihood keeps its value as far as it fits the network.

    Args:
        config: with interpolations. Changed in place.
        saved: configuration of a run or model of the same stage.
        keys: keys whose value in `config` is kept.
    """
    kept = {key: OmegaConf.select(config, key) for key in keys if fixed_keys.follows_weights(key)}
    config.model.network = saved.model.network
    if saved.get("tokenizer"):
        config.tokenizer = saved.tokenizer
    if saved.stage == "prior":
        config.caption = None
        if runs.reads_features(saved):
            config.caption, config.tokenizer = saved.tokenizer, "${caption}"
    if likelihood := fit_likelihood(config.get("likelihood"), saved.model.network):
        config.likelihood, config.model.network.likelihood = likelihood, "${likelihood}"
    for key, value in kept.items():
        OmegaConf.update(config, key, escape(value))


def _check_safe(source: Path, saved: DictConfig) -> None:
    """Checks that the settings to adopt build no class that could run a stranger's code.

    Raises:
        UserError: they name such a class.
    """
    network = OmegaConf.select(saved, "model.network")
    safe_build.check(network, f"tilewright.{saved.stage}", f"model.network in {source}")
    if saved.get("tokenizer"):
        safe_build.check(saved.tokenizer, "tilewright.data", f"tokenizer in {source}")


def _adopted_groups(config: DictConfig, saved: DictConfig) -> tuple[str, ...]:
    """Returns the groups whose option is that of the source.

    The likelihood is one of them if that of this command line does not fit the weights.
    """
    likelihood = fit_likelihood(config.get("likelihood"), saved.model.network)
    requested = OmegaConf.select(config, "likelihood._target_")
    is_replaced = likelihood is not None and likelihood._target_ != requested
    return (*GROUPS, "likelihood") if is_replaced else GROUPS


def _adopt_choices(config: DictConfig, saved: DictConfig) -> None:
    """Records the options of the weights in place of those of this command line."""
    for group in _adopted_groups(config, saved):
        config.choices.pop(group, None)
        if option := saved.choices.get(group):
            config.choices[group] = option


def _adopt_prior(config: DictConfig, source: Path, saved: DictConfig, keys: list[str]) -> None:
    """Adopts the dVAE of a prior, its image dropout and its sampling, except for typed keys.

    Raises:
        UserError: the image dropout is not a number.
    """
    config.dvae = escape(str(runs.dvae_folder(source)))
    if "model.image_dropout" not in keys and "image_dropout" in saved.model:
        check_number(f"model.image_dropout in {source}", saved.model.image_dropout, 0, 1)
        config.model.image_dropout = saved.model.image_dropout
    if saved.get("sampling"):
        recommended = vars(runs.load_sampling(source))
        for key in config.sampling.keys() & recommended.keys():
            if f"sampling.{key}" not in keys:
                config.sampling[key] = recommended[key]


def _check_conflicts(
    config: DictConfig, source: Path, keys: list[str], saved: DictConfig, image_size: int
) -> None:
    """Checks that the command line agrees with the weights.

    Raises:
        UserError: a key contradicts the weights.
    """
    trained: dict[str, Any] = {
        "model": {"network": saved.model.network},
        "data": {"image_size": image_size},
    }
    if saved.get("tokenizer"):
        trained["tokenizer"] = saved.tokenizer
        trained["caption"] = saved.tokenizer if runs.reads_features(saved) else None
    if likelihood := fit_likelihood(config.get("likelihood"), saved.model.network):
        trained["likelihood"] = likelihood
    expected = OmegaConf.create(trained)
    for group in _adopted_groups(config, saved):
        if group == "model" and saved.choices.get("family"):
            continue  # converted weights have no option, so any gives the settings of the training
        chosen, required = config.choices.get(group), saved.choices.get(group)
        if group in keys and chosen != required:
            need = f"need {group}={required}" if required else f"have a {group} of their own"
            raise UserError(f"the weights of init={source} {need}: leave {group}={chosen} out")
    for key in keys:
        if key == "dvae":
            raise UserError(f"init={source} contains its dVAE: leave dvae=… out")
        if key == "model.network":
            raise UserError(f"init={source} contains its network: leave model.network=… out")
        if fixed_keys.is_fixed_by_weights(key) or key.startswith("likelihood."):
            requested, required = OmegaConf.select(config, key), OmegaConf.select(expected, key)
            if requested != required:
                raise UserError(
                    f"the weights of init={source} need {key}={format_value(required)}: leave "
                    f"{key}={format_value(requested)} out"
                )
        elif key.startswith(("tokenizer.", "caption.")) and OmegaConf.select(expected, key) is None:
            raise UserError(
                f"{key}= has no effect on the text tokenizer of init={source}: leave it out"
            )


def _log_differences(config: DictConfig, source: Path, saved: DictConfig, image_size: int) -> None:
    log.info("Starting from the weights of %s", source)
    data = runs.TrainingData.from_settings(config.choices.get("data"), config.data)
    trained = runs.TrainingData.from_run(saved)  # of a converted model, unknown
    if trained.name and (difference := data.difference(trained)):
        log.info("%s was trained on other data: %s", source, difference)
    if image_size != config.data.image_size:
        log.info(
            "data.image_size=%s becomes %s, the size that the weights are made for",
            config.data.image_size,
            image_size,
        )
    own = own_likelihood(saved.model.network)
    likelihood = fit_likelihood(config.get("likelihood"), saved.model.network)
    if likelihood != own:
        log.info("The likelihood of %s is %s, and this run trains with %s", source, own, likelihood)
    elif own and own._target_ != OmegaConf.select(config, "likelihood._target_"):
        log.info("The weights of %s keep their likelihood, %s", source, own)
