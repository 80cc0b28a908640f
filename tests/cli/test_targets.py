"""Names of classes in conf/ and in saved runs: public ones only, so that modules can move."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from omegaconf import OmegaConf

from helpers import untrained
from tilewright.cli import app

FILES = sorted(app.CONF.rglob("*.yaml"))


def targets(value):
    """Returns every `_target_` inside a configuration."""
    if isinstance(value, dict):
        names = [value["_target_"]] if value.get("_target_") else []
        return names + [name for item in value.values() for name in targets(item)]
    if isinstance(value, list):
        return [name for item in value for name in targets(item)]
    return []


def is_public(target):
    """Returns True for `tilewright.<package>.<name>`, if the package exports that name.

    The package may be inside another one. A constructor such as `ContrastiveRanker.from_run` may
    follow the name.
    """
    _, package, name, *rest = [*target.split("."), "", ""]
    module = importlib.import_module(f"tilewright.{package}")
    if (Path(module.__file__).parent / name / "__init__.py").is_file():
        module, name = importlib.import_module(f"{module.__name__}.{name}"), rest[0]
    exported = getattr(module, "__all__", None)
    found = getattr(module, name, None)
    if exported is not None and name not in exported:
        return False
    return found is not None and not isinstance(found, ModuleType)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(app.CONF).as_posix())
def test_conf_names_public_classes(file):
    for target in targets(yaml.safe_load(file.read_text())):
        if target.startswith("tilewright."):
            assert is_public(target), target


@pytest.mark.parametrize(
    "target",
    [
        "tilewright.prior.transformer.Transformer",
        "tilewright.prior.transformer",
        "tilewright.prior.NoSuchName",
        "tilewright.runs.json",
        "tilewright.dvae.pretrained",
        "tilewright.dvae.pretrained.taming.Taming",
    ],
)
def test_private_names_are_recognized(target):
    assert not is_public(target)


def test_runs_and_models_name_public_classes(trained, tmp_path):
    for run in (trained.dvae, trained.prior, trained.ranker, trained.prior / "dvae"):
        file = run / ("config.yaml" if (run / "config.yaml").exists() else "config.json")
        names = targets(OmegaConf.to_container(OmegaConf.load(file)))
        own = [name for name in names if name.startswith("tilewright.")]
        assert own
        assert all(map(is_public, own))


def test_untrained_runs_of_the_tests_name_public_classes(tmp_path):
    logs = untrained.all_stages(tmp_path)
    for file in logs.rglob("config.*"):
        assert all(map(is_public, targets(OmegaConf.to_container(OmegaConf.load(file)))))
