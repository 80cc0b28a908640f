"""What a run says of its making."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tilewright.runs import environment


def test_each_beginning_of_a_run_has_an_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/train.py", "stage=dvae", "run_name=a b"])
    environment.record(tmp_path)
    environment.record(tmp_path, tmp_path / "checkpoints" / "last.ckpt")
    first, second = environment.load(tmp_path)
    assert first["command"] == "python src/train.py stage=dvae 'run_name=a b'"
    assert (first["resumed_from"], second["resumed_from"]) == (None, "last.ckpt")
    assert torch.__version__.startswith(first["packages"]["torch"])
    assert first["machine"]["threads"] == torch.get_num_threads()
    assert first["machine"]["cores"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_nothing_of_the_place_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/train.py"])
    environment.record(tmp_path)
    text = (tmp_path / "environment.json").read_text()
    home, here = str(Path.home()), str(Path(environment.__file__).parents[3])
    for private in (socket.gethostname() + ".", home + "/", here, str(tmp_path), sys.executable):
        assert private not in text


@pytest.mark.parametrize("content", [None, "", "[{"])
def test_no_record_is_no_entries(tmp_path, content):
    if content is not None:
        (tmp_path / environment.ENVIRONMENT).write_text(content)
    assert environment.load(tmp_path) == []


def git(folder, *words):
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *names, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with this module in it, which says where it is from there."""
    package = tmp_path / "src" / "tilewright"
    package.mkdir(parents=True)
    (tmp_path / "conf").mkdir()
    shutil.copy(environment.__file__, package)
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    return tmp_path


def test_the_commit_and_whether_the_code_differs_from_it(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "all")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("no part of the code")
    assert environment.code() == {"commit": commit, "dirty": False}
    (checkout / "conf" / "new.yaml").write_text("a: 1")
    assert environment.code() == {"commit": commit, "dirty": True}


def test_another_projects_commit_is_not_this_ones(checkout):
    """A package that is installed inside some repository, and no part of it."""
    (checkout / "other.txt").write_text("")
    git(checkout, "add", "other.txt")
    git(checkout, "commit", "-qm", "other")
    assert environment.code() == {"commit": None, "dirty": None}


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.code() == {"commit": None, "dirty": None}
    json.dumps(environment.code())
