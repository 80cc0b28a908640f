"""Benchmark of the number of training pairs, on tiny networks and sets."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.command import command

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import data_size

from tilewright.errors import UserError

DVAE = "experiment=dvae_laptop,model.network.n_hid=8,model.network.n_init=8"
PRIOR = (
    "experiment=prior_laptop,model.network.dim=16,model.network.depth=1,model.network.heads=2,"
    "callbacks.samples=null"
)
TRAINING = [
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "data.batch_size=4",
    "data.crops_per_image=1",
    "+data.source.limit=100",
    "compile=false",
    "~callbacks.frechet",
]


@pytest.mark.slow
def test_every_size_is_trained_and_measured_once(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    commands = []

    def run_here(name, *arguments):
        commands.append(name)
        assert command(name, arguments) is None

    monkeypatch.setattr(data_size, "run_command", run_here)
    arguments = [
        "sizes=[4,8]",
        f"dvae=[{DVAE}]",
        f"prior=[{PRIOR}]",
        "among=3",
        "captions=4",
        f"logs={tmp_path / 'logs'}",
        f"out={tmp_path / 'sizes.json'}",
        f"paths.data={tmp_path / 'data'}",
    ]
    monkeypatch.setattr("sys.argv", ["data_size.py", *arguments, *TRAINING])
    for _ in range(2):  # the second time, everything has been trained and measured
        data_size.main()
    assert commands == ["train", "train", "eval", "eval"] * 2
    results = json.loads((tmp_path / "sizes.json").read_text())["results"]
    assert [result["pairs"] for result in results] == [4, 8]
    for result in results:
        assert result["last_update"] == 2
        assert set(result["shares"]) == {
            f"{kind} captions, {image_set}, first 1"
            for kind in ("known", "new")
            for image_set in ("generated", "reconstructed")
        }
    for name in ("sizes.png", "data_size_curve.png"):
        assert (tmp_path / name).is_file()


def test_a_run_of_another_recipe_is_refused(tmp_path):
    run = tmp_path / "dvae" / "pairs_4"
    data_size.check_recipe(run, ["experiment=dvae_laptop", "seed=0"])
    run.mkdir()
    data_size.check_recipe(run, ["experiment=dvae_laptop", "seed=0"])
    with pytest.raises(UserError, match=r"experiment=dvae_laptop.*set another logs="):
        data_size.check_recipe(run, ["experiment=dvae_emoji", "seed=0"])
    with pytest.raises(UserError, match="unknown recipe"):
        data_size.check_recipe(tmp_path / "dvae", ["seed=0"])


def test_only_records_of_the_same_settings_are_reported(tmp_path):
    settings = SimpleNamespace(logs=tmp_path, among=100, captions=200, seed=0)
    folder = data_size.prior_run(settings, 4) / "eval" / "identification"
    folder.mkdir(parents=True)
    same = {"among": 100, "requested_images": 200, "seed": 0, "split": "validation"}
    others = [same | {key: 1} for key in ("among", "requested_images", "seed")]
    (folder / "results.json").write_text(json.dumps([*others, same]))
    assert data_size.records(settings, 4) == [same]
