"""Likelihoods of saved weights, and those that train them."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tilewright.dvae import VQGAN, DiscreteVAE
from tilewright.runs.likelihoods import fit_likelihood, own_likelihood

LAPLACE, GAUSSIAN = "tilewright.dvae.Laplace", "tilewright.dvae.Gaussian"
LOGIT_LAPLACE = {"_target_": "tilewright.dvae.LogitLaplace", "min_log_scale": None}
VQGAN_SETTINGS = {
    "_target_": "tilewright.dvae.VQGAN",
    "image_size": 16,
    "grid": 8,
    "widths": [8, 8],
    "attention": [],
    "groups": 4,
}
DVAE_SETTINGS = {"_target_": "tilewright.dvae.DiscreteVAE", "image_size": 16, "grid": 8, "n_hid": 8}


@pytest.mark.parametrize(
    "settings", [{**VQGAN_SETTINGS, "pixels": "unit"}, VQGAN_SETTINGS, DVAE_SETTINGS]
)
def test_settings_without_a_likelihood_have_that_of_their_class(settings):
    network = instantiate(settings)
    assert isinstance(network, VQGAN | DiscreteVAE)
    assert instantiate(own_likelihood(OmegaConf.create(settings))) == network.likelihood


def test_a_network_of_another_kind_has_none():
    assert fit_likelihood(OmegaConf.create({"_target_": GAUSSIAN}), OmegaConf.create()) is None


@pytest.mark.parametrize(
    ("own", "requested", "trained"),
    [
        (None, {"_target_": GAUSSIAN, "sigma": 0.3}, {"_target_": GAUSSIAN, "sigma": 0.3}),
        (None, {"_target_": LAPLACE, "scale": 0.2}, {"_target_": LAPLACE, "scale": 0.2}),
        (None, {"_target_": GAUSSIAN, "maps": "logits"}, {"_target_": GAUSSIAN}),
        (None, LOGIT_LAPLACE, {"_target_": LAPLACE, "scale": 0.1}),
        (None, None, {"_target_": LAPLACE, "scale": 0.1}),
        (
            {"_target_": GAUSSIAN, "sigma": 0.1, "maps": "signed"},
            {"_target_": GAUSSIAN, "sigma": 0.2, "maps": "logits"},
            {"_target_": GAUSSIAN, "sigma": 0.2},
        ),
    ],
)
def test_the_error_is_the_requested_one_on_the_maps_of_the_weights(own, requested, trained):
    network = OmegaConf.create({**VQGAN_SETTINGS, "likelihood": own})
    requested = requested and OmegaConf.create(requested)
    assert fit_likelihood(requested, network) == {**trained, "maps": "signed"}


def test_weights_whose_settings_are_older_than_maps_keep_them():
    own = OmegaConf.create({"likelihood": {"_target_": LAPLACE, "scale": 0.1}})
    requested = OmegaConf.create({"_target_": GAUSSIAN, "sigma": 0.2, "maps": "logits"})
    assert fit_likelihood(requested, own) == {**requested, "maps": "unit"}
    own.likelihood = {"_target_": GAUSSIAN, "sigma": 0.1}
    assert fit_likelihood(requested, own) == requested


def test_six_maps_keep_their_likelihood():
    network = OmegaConf.create(DVAE_SETTINGS)
    assert fit_likelihood(OmegaConf.create({"_target_": GAUSSIAN}), network) == LOGIT_LAPLACE
