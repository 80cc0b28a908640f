"""Classes that a saved configuration may build, and everything else that it may not."""

import sys

import pytest
from omegaconf import OmegaConf

from tilewright import dvae
from tilewright.data import BytePairTokenizer
from tilewright.dvae import quantizers
from tilewright.errors import UserError
from tilewright.runs import safe_build

TOKENIZER = {"_target_": "tilewright.data.BytePairTokenizer", "vocab_size": 300}
STREAM = {"_target_": "tilewright.prior.Stream", "text_vocab": 300}
PRIOR = {"_target_": "tilewright.prior.Transformer", "stream": STREAM, "dim": 8, "heads": 2}


def refusal(settings, package="tilewright.prior"):
    """Returns the message with which the settings are refused."""
    with pytest.raises(UserError) as caught:
        safe_build.build(settings, package, "here")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_of_the_package_are_built():
    tokenizer = safe_build.build(OmegaConf.create(TOKENIZER), "tilewright.data", "here")
    assert isinstance(tokenizer, BytePairTokenizer)
    assert tokenizer.vocab_size == 300
    prior = safe_build.build({**PRIOR, "depth": 1}, "tilewright.prior", "here")
    assert prior.stream.text_vocab == 300


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "tilewright.runs.os.system",  # a module that one of ours imports
        "tilewright.prior.transformer.torch.load",
        "tilewright.prior.sampler.dataclass",  # imported, not defined there
        "tilewright.prior.transformer.Literal",
        "tilewright.prior.sampler.sample",  # a function
        "tilewright.prior.transformer.Transformer.load_state_dict",
        "tilewright.prior.nothing",
        "tilewright.prior.nothing.Thing",
        "tilewright.priors.Thing",
        "tilewright.dvae.DiscreteVAE",  # another package
        "Transformer",
        "",
        None,
        7,
        ["os.system"],
    ],
)
def test_any_other_target_is_refused_by_name(target):
    for settings in (
        {"_target_": target, "command": "x"},
        {**PRIOR, "stream": {"_target_": target}},
        {**PRIOR, "stream": {**STREAM, "grid": [{"_target_": target}]}},
    ):
        line = refusal(settings)
        assert f"_target_={target!r}" in line
        assert line.startswith("here")


def test_module_that_is_not_trusted_is_not_imported(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    (tmp_path / "strange.py").write_text(f"open({str(mark)!r}, 'w')\nclass Network: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "TILEWRIGHT_TRUST=strange" in refusal({"_target_": "strange.Network"})
    assert not mark.exists()
    monkeypatch.setenv("TILEWRIGHT_TRUST", "another,strange")
    safe_build.build({"_target_": "strange.Network"}, "tilewright.prior", "here")
    assert mark.exists()


@pytest.mark.parametrize("key", ["color", "_partial_", "_args_", "_recursive_"])
def test_unknown_key_is_refused_by_name(key):
    assert f"here has {key}, which is not an argument of Transformer" in refusal(
        {**PRIOR, key: True}
    )
    assert "here.stream" in refusal({**PRIOR, "stream": {**STREAM, key: True}})


def test_interpolation_is_refused(monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    line = refusal({**PRIOR, "pattern": "${oc.env:SECRET}"})
    assert "here.pattern" in line
    assert "hidden" not in line
    refusal(OmegaConf.create({**PRIOR, "pattern": "${oc.env:SECRET}"}))


@pytest.mark.parametrize("settings", [None, {}, [], "x", 7, {"dim": 8}])
def test_settings_without_a_target_are_refused(settings):
    assert "no _target_" in refusal(settings)


def test_error_of_a_constructor_keeps_its_message():
    assert "here: pattern must be paper or one of" in refusal({**PRIOR, "pattern": "nope"})
    assert refusal({**PRIOR, "dim": "wide"}).startswith("here: ")
    assert "missing 1 required positional argument: 'stream'" in refusal(
        {"_target_": "tilewright.prior.Transformer"}
    )


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.delitem(sys.modules, "tilewright.dvae.quantizers.vq", raising=False)
    for package in (dvae, quantizers):  # which keep what they have imported
        monkeypatch.delitem(vars(package), "VectorQuantizer", raising=False)
    settings = {"_target_": "tilewright.dvae.VectorQuantizer", "num_tokens": 8}
    line = refusal(settings, "tilewright.dvae")
    assert "needs the module vector_quantize_pytorch, which cannot be imported" in line
