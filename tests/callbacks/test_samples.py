"""Samples callback: settings that it refuses before a training."""

from types import SimpleNamespace

import pytest

from helpers import tiny
from tilewright.callbacks import Samples
from tilewright.checks import format_value
from tilewright.errors import UserError
from tilewright.prior import Sampling


@pytest.mark.parametrize(("noise", "refused"), [(True, False), (False, True)])
def test_guidance_of_a_prior_without_caption_dropout_is_refused_at_the_start(
    tmp_path, noise, refused
):
    module, data, _ = tiny.make("prior", tmp_path, noise=noise)
    callback, trainer = Samples(sampling=Sampling(guidance=2)), SimpleNamespace(datamodule=data)
    if refused:
        with pytest.raises(UserError, match=r"guidance=2 needs .* model\.caption_dropout=0:"):
            callback.setup(trainer, module, "fit")
    else:
        callback.setup(trainer, module, "fit")


@pytest.mark.parametrize("captions", ["a red circle", 7, [7, 8], ["a red circle", None]])
def test_captions_that_are_not_a_list_of_text_are_refused_before_the_training(captions):
    with pytest.raises(UserError, match=r"^callbacks\.samples\.captions=.* is not a list"):
        Samples(captions=captions)


@pytest.mark.parametrize("key", ["count", "candidates"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_impossible_numbers_are_refused(key, value):
    setting = rf"callbacks\.samples\.{key}={format_value(value)}"
    with pytest.raises(UserError, match=f"^{setting} is not possible"):
        Samples(**{key: value})
