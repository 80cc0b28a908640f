"""Likelihoods that train saved weights.

The weights fix what the decoder's maps mean. The error of pixel values, squared or absolute, and
its scale are settings of each training.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

# Interchangeable likelihoods, with the kind of maps that settings without `maps` have.
DEFAULT_MAPS = {"tilewright.dvae.Gaussian": "logits", "tilewright.dvae.Laplace": "unit"}


def own_likelihood(network: DictConfig) -> DictConfig | None:
    """Returns the likelihood in the settings of a network, or None if it has none.

    The settings of converted weights leave out the default of their class.
    """
    likelihood: Any = network.get("likelihood")
    if likelihood is None and network.get("_target_") == "tilewright.dvae.VQGAN":
        likelihood = {"_target_": "tilewright.dvae.Laplace", "scale": 0.1}
        likelihood["maps"] = network.get("pixels", "signed")
    elif likelihood is None and network.get("_target_") == "tilewright.dvae.DiscreteVAE":
        likelihood = {"_target_": "tilewright.dvae.LogitLaplace", "min_log_scale": None}
    if likelihood is None:
        return None
    maps = DEFAULT_MAPS.get(likelihood.get("_target_"))
    return OmegaConf.create({**({"maps": maps} if maps else {}), **likelihood})


def fit_likelihood(requested: DictConfig | None, network: DictConfig) -> DictConfig | None:
    """Returns the likelihood that trains saved weights, or None if their network has none.

    It is the requested one with the maps of the weights. Weights whose maps it cannot read keep
    their own.

    Args:
        requested: likelihood of the new training.
        network: settings of the saved network.
    """
    own = own_likelihood(network)
    if not own or not requested:
        return own
    if not {own._target_, requested._target_} <= DEFAULT_MAPS.keys():
        return own
    return OmegaConf.create({**requested, "maps": own.maps})
