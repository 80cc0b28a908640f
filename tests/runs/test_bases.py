"""Bases of adapters: whose dVAE an adapter has, and adapters that are their own base."""

import json

import pytest
from omegaconf import OmegaConf

from tilewright import runs
from tilewright.errors import UserError


def adapter(folder, base):
    """Exported adapter without files of weights."""
    folder.mkdir()
    config = {"format": 2, "stage": "prior", "choices": {}, "base": {"path": str(base)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_dvae_of_an_adapter_is_that_of_its_base(tmp_path):
    base, first, second = (tmp_path / name for name in ("base", "first", "second"))
    (base / runs.DVAE).mkdir(parents=True)
    adapter(first, base)
    adapter(second, first)
    assert runs.dvae_folder(second) == base / runs.DVAE


def test_a_base_that_is_not_on_the_hub_is_named_with_its_adapter(tmp_path, monkeypatch):
    def refuse(name):
        raise UserError(f"{name} cannot be downloaded")

    monkeypatch.setattr("tilewright.runs.hub.model_folder", refuse)
    folder = adapter(tmp_path / "first", "someone/base")
    with pytest.raises(UserError, match="someone/base cannot be downloaded") as caught:
        runs.dvae_folder(folder)
    assert f"set base.path in {folder / 'config.json'}" in str(caught.value)


def test_a_chain_of_bases_that_has_no_end_is_refused(tmp_path):
    first = adapter(tmp_path / "first", tmp_path / "second")
    adapter(tmp_path / "second", first)
    with pytest.raises(UserError, match="has adapters of itself"):
        runs.dvae_folder(first)


def test_a_base_is_found_after_the_folder_around_it_has_moved(tmp_path):
    run = tmp_path / "new" / "logs" / "prior" / "a"
    base = tmp_path / "new" / "models" / "base"
    run.mkdir(parents=True)
    base.mkdir(parents=True)
    for former in ("logs/prior/a", str(tmp_path / "old" / "logs" / "prior" / "a")):
        path = str(tmp_path / "old" / "models" / "base")
        config = OmegaConf.create({"run": former, "base": {"path": path}})
        assert runs.base_folder(run, config) == base.resolve()
