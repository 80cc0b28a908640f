"""What runs.py lists, from folders as a training and an evaluation leave them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tilewright import runs
from tilewright.errors import UserError
from tilewright.runs import compare, listing

ROOT = Path(__file__).parents[2]


def make(logs, name, *, stage="dvae", data="shapes", overrides=(), losses=(3.0, 2.0), **config):
    """A run of so many validations, ten updates apart, without its checkpoints."""
    run = logs / stage / name
    saved = {
        "stage": stage,
        "run": str(run),
        "run_name": name,
        "monitor": "validation/loss",
        "choices": {"stage": stage, "data": data},
        "overrides": [f"stage={stage}", *overrides],
        "trainer": {"max_steps": 20, "default_root_dir": str(run)},
    }
    runs.create(run, OmegaConf.merge(saved, config))
    with (run / "metrics.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["step", "train/loss", "validation/loss", "validation/psnr"])
        for number, loss in enumerate(losses, 1):
            table.writerow([10 * number - 1, loss, "", ""])
            table.writerow([10 * number - 1, "", loss, 10 * number])
    return run


def evaluate(run, name, *rows):
    folder = run / "eval" / name
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(list(rows)))


def row(metric, value, split="validation", **settings):
    return {"metric": metric, "value": value, "split": split, **settings}


def shown(capsys, monkeypatch, function, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    function(*arguments)
    return capsys.readouterr().out


def test_the_best_figure_and_not_the_last(tmp_path):
    make(tmp_path, "a", losses=(3.0, 1.5, float("nan"), 2.0))
    (record,) = listing.records(tmp_path)
    best = record.best()
    assert listing.figure(best, "validation/loss") == 1.5
    assert (int(best["step"]) + 1, record.steps) == (20, 40)


def test_a_figure_of_which_the_highest_is_best(tmp_path):
    make(tmp_path, "a", losses=(3.0, 1.5), callbacks={"best": {"mode": "max"}})
    (record,) = listing.records(tmp_path)
    assert listing.figure(record.best(), "validation/loss") == 3.0


def test_filters_and_order(tmp_path):
    for age, (name, stage, data) in enumerate(
        [("a", "dvae", "shapes"), ("b", "dvae", "emoji"), ("c", "prior", "emoji")]
    ):
        run = make(tmp_path, name, stage=stage, data=data)
        for file in run.iterdir():
            os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "multirun" / "x").mkdir(parents=True)

    def names(*wanted):
        return [record.name for record in listing.records(tmp_path, *wanted)]

    assert names() == ["dvae/a", "dvae/b", "prior/c"]  # latest is no run of its own
    assert names("dvae") == ["dvae/a", "dvae/b"]
    assert names(None, "emoji") == ["dvae/b", "prior/c"]
    assert names("dvae", "emoji") == ["dvae/b"]


def test_the_table(tmp_path, capsys, monkeypatch):
    run = make(tmp_path, "a", losses=(3.0, 1.5, 2.0))
    kinds = [row("alignment", 0.25, captions="two"), row("alignment", 0.75, captions="one")]
    evaluate(run, "alignment", *kinds, row("alignment", 0.01, "zeroshot", captions="one"))
    evaluate(run, "reconstruction", row("psnr", 20.5), row("ssim", "inf"))
    entry = {"commit": "0123456789", "dirty": True}
    (run / "environment.json").write_text(json.dumps([{"commit": "abc"}, entry]))
    make(tmp_path, "untrained", losses=())
    out = shown(capsys, monkeypatch, listing.show, listing.records(tmp_path))
    for words in (
        *("dvae/a", "shapes", "30/20", "validation/loss 1.5 at 20", "alignment 0.25 to 0.75"),
        *("reconstruction: psnr 20.5, ssim inf", "0123456+", "dvae/untrained", "0/20"),
    ):
        assert words in out


def test_ages():
    assert [listing.age(s) for s in (-1, 59, 60, 7200, 86400 * 9)] == [
        *("0 s", "59 s", "1 min", "2 h", "9 d")
    ]


def test_found_by_name_or_path(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b")
    make(tmp_path, "a", stage="prior")
    for wanted in ("b", "dvae/b", "dvae/latest", str(tmp_path / "dvae" / "b")):
        assert listing.find(tmp_path, wanted).name == "dvae/b"
    assert listing.find(tmp_path, "a", "prior").name == "prior/a"
    with pytest.raises(UserError, match="say which, dvae/a, prior/a"):
        listing.find(tmp_path, "a")
    with pytest.raises(UserError, match="there is no run c"):
        listing.find(tmp_path, "c")


def test_a_configuration_that_is_broken_is_named(tmp_path):
    run = make(tmp_path, "a")
    broken = {"a: [": r"a/config\.yaml cannot be read", "other: 1": r"a/config\.yaml .* no stage"}
    for content, told in broken.items():
        (run / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=told):
            listing.records(tmp_path)


def compared(tmp_path, capsys, monkeypatch, *names):
    found = [listing.find(tmp_path, name) for name in names]
    return shown(capsys, monkeypatch, compare.show, found)


def test_the_one_setting_that_made_the_better_run(tmp_path, capsys, monkeypatch):
    """What follows from the setting is told apart from it, and the run's own paths are nothing."""
    make(tmp_path, "a", model={"rate": 1.0, "steps": 20})
    more = {"trainer": {"max_steps": 40}, "model": {"rate": 1.0, "steps": 40}}
    b = make(tmp_path, "b", overrides=["trainer.max_steps=40"], losses=(3.0, 1.5), **more)
    evaluate(b, "fid", row("fid", 9.0))
    out = compared(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split() for line in out.splitlines()]
    given, follows, figures = (
        next(n for n, line in enumerate(lines) if line[:2] == start)
        for start in (["settings", "that"], ["what", "follows"], ["figures", "at"])
    )
    assert given < lines.index(["trainer.max_steps", "20", "40"]) < follows
    assert follows < lines.index(["model.steps", "20", "40"]) < figures
    assert ["validation/loss", "2", "1.5", "-25.0%"] in lines
    assert "model.rate" not in out
    assert "default_root_dir" not in out
    assert "fid" not in out  # only one of them has it
    assert "dvae/b has the best validation/loss: 1.5, and dvae/a 2" in out
    assert "One setting differs: trainer.max_steps" in out


def test_several_settings_are_to_be_tried_one_at_a_time(tmp_path, capsys, monkeypatch):
    shared = ["data.batch_size=8"]
    make(tmp_path, "a", overrides=[*shared, "seed=1"], seed=1, model={"dim": 4})
    better = {"seed": 2, "model": {"dim": 8}}
    make(
        tmp_path,
        "b",
        overrides=[*shared, "seed=2", "model.dim=8"],
        losses=(1.0,),
        **better,
    )
    out = compared(tmp_path, capsys, monkeypatch, "b", "a")
    assert "2 settings differ: model.dim, seed" in out
    assert "train.py stage=dvae data.batch_size=8 seed=2\n" in out
    assert "train.py stage=dvae data.batch_size=8 seed=1 model.dim=8\n" in out


def test_options_of_groups_are_settings_and_their_keys_follow(tmp_path, capsys, monkeypatch):
    for name, loss in (("small", 2.0), ("large", 1.0)):
        run = make(tmp_path, name, overrides=[f"model={name}"], losses=(loss,), model={"dim": loss})
        config = runs.load_config(run)
        config.choices.model = name
        runs.create(run, config)
    out = compared(tmp_path, capsys, monkeypatch, "small", "large")
    assert "One setting differs: model" in out
    assert out.index("what follows") < out.index("model.dim")


def test_code_and_machine_are_compared(tmp_path, capsys, monkeypatch):
    for name, commit, cores in (("a", "1111111", 2), ("b", "2222222", 4)):
        run = make(tmp_path, name, losses=(float(cores),))
        machine = {"cpu": "same", "cores": cores}
        entry = {"commit": commit, "dirty": False, "machine": machine, "packages": {"torch": "3"}}
        (run / "environment.json").write_text(json.dumps([entry]))
    out = compared(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split()[:3] for line in out.splitlines()]
    assert ["commit", "1111111", "2222222"] in lines
    assert ["cores", "2", "4"] in lines
    assert "torch" not in out
    assert "same" not in out
    assert "They were trained by different code" in out
    assert "No setting was given to one alone" in out


def test_runs_that_cannot_be_compared(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", stage="prior")
    for names, words in ((["a"], "only one"), (["a", "b"], "stage=dvae and stage=prior")):
        with pytest.raises(UserError, match=words):
            compare.show([listing.find(tmp_path, name) for name in names])


def command(*words):
    done = [sys.executable, "src/runs.py", *words]
    return subprocess.run(done, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_command(tmp_path):
    """src/runs.py stands in the way of no import: `tilewright.runs` is another module."""
    make(tmp_path, "a")
    make(tmp_path, "b", data="emoji", losses=(1.0,))
    place = f"paths.logs={tmp_path}"
    done = command(place)
    assert done.returncode == 0, done.stderr
    assert "dvae/a" in done.stdout
    assert "dvae/b" in done.stdout
    done = command(place, "stage=dvae", "data=emoji")
    assert "dvae/a" not in done.stdout
    assert "dvae/b" in done.stdout
    done = command(place, "compare=[a,b]")
    assert "One setting differs: data" in done.stdout
    for words, message in (
        (["stage=prior"], "has no run of stage=prior"),
        (["compare=[a,c]"], "there is no run c"),
        (["stage=nope"], "stage/nope"),
    ):
        done = command(place, *words)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
