"""The wheel and the source archive: their contents, and the installed `tilewright` command."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "trainer=cpu",
    "data.source.train=64",
    "data.source.validation=16",
    "data.source.zeroshot=16",
    "data.batch_size=8",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "~callbacks.frechet",
]


def run(*words, cwd, **env):
    process = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=300,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def build(backend_call, out, cwd=ROOT):
    """Builds with the backend of pyproject.toml and returns the archive."""
    pytest.importorskip("hatchling")
    out.mkdir()
    code = f"from hatchling.build import {backend_call} as build; build({str(out)!r})"
    run(sys.executable, "-c", code, cwd=cwd)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("build_wheel", tmp_path_factory.mktemp("wheel") / "out")


def files_in(folder, *patterns):
    paths = (path for pattern in patterns for path in (ROOT / folder).glob(pattern))
    return {path.relative_to(ROOT / folder).as_posix() for path in paths}


def test_wheel_contains_the_package_its_stubs_and_all_of_conf(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = files_in("src", "*/**/*.py", "*/**/*.pyi", "*/py.typed")
    conf = {f"tilewright/conf/{name}" for name in files_in("conf", "**/*.yaml")}
    assert names == package | conf
    assert "tilewright/py.typed" in names
    assert "tilewright/__init__.pyi" in names
    assert "hydra_plugins/tilewright_optuna_sweeper.py" in names


def test_wheel_of_the_source_archive_is_the_wheel_of_the_repository(wheel, tmp_path):
    archive = build("build_sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    tree = tmp_path / archive.name.removesuffix(".tar.gz")
    assert (tree / "src" / "train.py").is_file()
    assert (tree / "tests" / "test_packaging.py").is_file()
    assert (tree / "LICENSE").is_file()
    rebuilt = build("build_wheel", tmp_path / "wheel", cwd=tree)
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_installed_command_trains_and_generates_without_the_repository(wheel, tmp_path):
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", site, wheel, cwd=tmp_path)

    def tilewright(*words):
        return run(site / "bin" / "tilewright", *words, cwd=home, PYTHONPATH=str(site))

    print_path = "import tilewright; print(tilewright.__file__)"
    assert str(site) in run(sys.executable, "-c", print_path, cwd=home, PYTHONPATH=str(site))
    tilewright("train", "stage=dvae", *SMALL)
    tilewright("train", "stage=prior", "~callbacks.samples", *SMALL)
    tilewright("generate", "prompt=a large red circle", "n=2", "out=images")
    assert (home / "images" / "grid.png").is_file()
    (prior,) = (home / "logs" / "prior").glob("*/")
    assert (prior / "config.yaml").is_file()
