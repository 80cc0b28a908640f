"""Fixture for all tests of sources: an empty cache of `datasets`."""

import pytest


@pytest.fixture(autouse=True)
def empty_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
