"""Record of the environment of a run."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tilewright.runs import environment


def test_every_start_and_resume_adds_an_entry(tmp_path):
    arguments = ["stage=dvae", "run_name=a b"]
    environment.record(tmp_path, arguments)
    environment.record(tmp_path, arguments, tmp_path / "checkpoints" / "last.ckpt")
    first, second = environment.load(tmp_path)
    assert first["command"] == "python src/train.py stage=dvae 'run_name=a b'"
    assert (first["resumed_from"], second["resumed_from"]) == (None, "last.ckpt")
    assert torch.__version__.startswith(first["packages"]["torch"])
    assert first["machine"]["threads"] == torch.get_num_threads()
    assert first["machine"]["cores"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_record_has_no_private_names_or_paths(tmp_path):
    environment.record(tmp_path, [])
    text = (tmp_path / "environment.json").read_text()
    home, here = str(Path.home()), str(Path(environment.__file__).parents[3])
    for private in (socket.gethostname() + ".", home + "/", here, str(tmp_path), sys.executable):
        assert private not in text


@pytest.mark.parametrize("content", [None, "", "[{", "3", "[3]"])
def test_missing_or_broken_record_has_no_entries(tmp_path, content):
    if content is not None:
        (tmp_path / environment.ENVIRONMENT).write_text(content)
    assert environment.load(tmp_path) == []


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Makes a repository that contains this module."""
    package = tmp_path / "src" / "tilewright"
    package.mkdir(parents=True)
    (tmp_path / "conf").mkdir()
    shutil.copy(environment.__file__, package)
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    return tmp_path


def test_commit_is_dirty_only_if_code_or_settings_have_changed(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "all")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not code")
    assert environment.code() == {"commit": commit, "dirty": False}
    (checkout / "conf" / "new.yaml").write_text("a: 1")
    assert environment.code() == {"commit": commit, "dirty": True}


def test_commit_of_another_project_is_ignored(checkout):
    """The package may be installed inside a repository that does not track it."""
    (checkout / "other.txt").write_text("")
    git(checkout, "add", "other.txt")
    git(checkout, "commit", "-qm", "other")
    assert environment.code() == {"commit": None, "dirty": None}


def test_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.code() == {"commit": None, "dirty": None}
    json.dumps(environment.code())
