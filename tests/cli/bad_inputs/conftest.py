"""Runs and folders for bad input, without the network."""

import pytest


@pytest.fixture
def home(copied, tmp_path):
    """Copies of the runs, and an empty folder for bad files."""
    copied.files, copied.cache = tmp_path / "files", tmp_path
    copied.files.mkdir()
    return copied


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
