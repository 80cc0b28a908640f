"""Listing and comparing runs, from folders with the files of a training and an evaluation."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from helpers.command import ROOT, fail, make_home, run
from tilewright import runs
from tilewright.errors import UserError
from tilewright.runs import compare, listing
from tilewright.training import AtomicCheckpointIO


def make(logs, name, *, stage="dvae", data="shapes", overrides=(), losses=(3.0, 2.0), **config):
    """Writes a run with a validation loss after every ten updates, without checkpoints."""
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
    runs.set_latest(run)
    with (run / "metrics.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["step", "train/loss", "validation/loss", "validation/psnr"])
        for number, loss in enumerate(losses, 1):
            table.writerow([10 * number, loss, "", ""])
            table.writerow([10 * number, "", loss, 10 * number])
    return run


def evaluate(run, name, *rows):
    folder = run / "eval" / name
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(list(rows)))


def row(metric, value, split="validation", **settings):
    return {"metric": metric, "value": value, "split": split, **settings}


def printed(capsys, monkeypatch, function, *arguments):
    """Returns what a function prints on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    function(*arguments)
    return capsys.readouterr().out


def test_best_row_is_not_the_last_row(tmp_path):
    make(tmp_path, "a", losses=(3.0, 1.5, float("nan"), 2.0))
    (record,) = listing.records(tmp_path)
    best = record.validation_row()
    assert listing.metric(best, "validation/loss") == 1.5
    assert (int(best["step"]), record.steps) == (20, 40)


def test_updates_after_the_last_row_are_counted_from_the_checkpoint(tmp_path):
    folder = make(tmp_path, "a")
    (folder / "checkpoints").mkdir()
    for step, expected in ((300, 300), (9, 20)):
        state = {"epoch": 1, "global_step": step, "state_dict": {"weight": torch.ones(2)}}
        AtomicCheckpointIO().save_checkpoint(state, folder / "checkpoints" / "last.ckpt")
        assert listing.read(folder).steps == expected
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    assert listing.read(folder).steps == 20


def test_best_row_of_a_metric_to_maximize(tmp_path):
    make(tmp_path, "a", losses=(3.0, 1.5), callbacks={"best": {"mode": "max"}})
    (record,) = listing.records(tmp_path)
    assert listing.metric(record.validation_row(), "validation/loss") == 3.0


def test_a_run_without_a_best_checkpoint_has_its_last_validation(tmp_path, capsys, monkeypatch):
    losses = (3.0, 1.5, 2.0, float("nan"))
    make(tmp_path, "a", losses=losses, callbacks={"best": None})
    (record,) = listing.records(tmp_path)
    row = record.validation_row()
    assert (listing.metric(row, "validation/loss"), row["step"]) == (2.0, "30")
    out = printed(capsys, monkeypatch, listing.print_table, [record])
    assert "validation/loss 2 at 30" in out


def test_records_are_filtered_and_sorted_by_age(tmp_path):
    for age, (name, stage, data) in enumerate(
        [("a", "dvae", "shapes"), ("b", "dvae", "emoji"), ("c", "prior", "emoji")]
    ):
        folder = make(tmp_path, name, stage=stage, data=data)
        for file in folder.iterdir():
            os.utime(file, (1000 - age, 1000 - age))
    (tmp_path / "multirun" / "x").mkdir(parents=True)

    def names(*filters):
        return [record.name for record in listing.records(tmp_path, *filters)]

    assert names() == ["dvae/a", "dvae/b", "prior/c"]  # without `latest`
    assert names("dvae") == ["dvae/a", "dvae/b"]
    assert names(None, "emoji") == ["dvae/b", "prior/c"]
    assert names("dvae", "emoji") == ["dvae/b"]


def test_table_shows_metrics_evaluations_and_commit(tmp_path, capsys, monkeypatch):
    folder = make(tmp_path, "a", losses=(3.0, 1.5, 2.0))
    kinds = [row("alignment", share, category=kind) for share, kind in ((0.25, "a"), (0.75, "b"))]
    evaluate(folder, "alignment", *kinds, row("alignment", 0.01, "zeroshot", category="a"))
    evaluate(folder, "reconstruction", row("psnr", 20.5), row("ssim", "inf"))
    entry = {"commit": "0123456789", "dirty": True}
    (folder / "environment.json").write_text(json.dumps([{"commit": "abc"}, entry]))
    make(tmp_path, "untrained", losses=())
    out = printed(capsys, monkeypatch, listing.print_table, listing.records(tmp_path))
    for text in (
        *("dvae/a", "shapes", "30/20", "validation/loss 1.5 at 20", "alignment 0.25 to 0.75"),
        *("reconstruction: psnr 20.5, ssim inf", "0123456+", "dvae/untrained", "0/20"),
    ):
        assert text in out


def test_names_with_brackets_and_colons_are_printed_as_typed(tmp_path, capsys, monkeypatch):
    name = "a[r]:smile:"
    runs_of_names = [listing.read(make(tmp_path, n, losses=(1.0, 3.0))) for n in (name, "b[red]")]
    out = printed(capsys, monkeypatch, listing.print_table, runs_of_names)
    out += printed(capsys, monkeypatch, compare.print_comparison, runs_of_names)
    assert out.count(f"dvae/{name} ") == 2
    assert out.count("dvae/b[red] ") == 2


def test_values_of_older_weights_are_not_shown(tmp_path):
    folder = make(tmp_path, "a")
    old, new = row("psnr", 10.0, steps=5, seed=1), row("psnr", 20.0, steps=9, seed=0)
    evaluate(folder, "reconstruction", old, new)
    assert listing.evaluations(listing.read(folder)) == ["reconstruction: psnr 20"]


def test_values_of_weights_before_a_resume_are_left_out(tmp_path):
    folder = make(tmp_path, "a")
    evaluate(folder, "fid", row("fid", 10.0, steps=5))
    evaluate(folder, "reconstruction", row("psnr", 9.0, steps=5), row("psnr", 20.0, steps=9))
    (folder / "checkpoints").mkdir()
    for steps, lines in ((9, ["reconstruction: psnr 20"]), (12, [])):
        state = {"epoch": 1, "global_step": steps, "state_dict": {"weight": torch.ones(2)}}
        AtomicCheckpointIO().save_checkpoint(state, folder / "checkpoints" / "best.ckpt")
        record = listing.read(folder)
        assert listing.evaluations(record) == lines
        assert record.num_earlier_results == 3 - len(lines)


def test_references_and_values_on_other_data_are_not_the_runs(tmp_path):
    folder = make(tmp_path, "a", stage="prior")
    sets = {"generated": 3.2, "real": 9.8}
    values = [row("is", value, image_set=name, data="shapes") for name, value in sets.items()]
    evaluate(folder, "is", *values, row("is", 1.0, image_set="generated", data="emoji"))
    assert listing.evaluations(listing.read(folder)) == ["is 3.2"]


def test_only_categories_become_a_range(tmp_path):
    folder = make(tmp_path, "a", stage="prior")
    shares = ((1, "one", 0.2, 9), (1, "two", 0.1, 5), (4, "one", 0.6, 9), (4, "two", 0.5, 5))
    best_of = [
        row("alignment", share, best_of=count, category=kind, images=images)
        for count, kind, share, images in shares
    ]
    evaluate(folder, "best_of", *best_of)
    top = [row("identification", k / 10, "zeroshot", top=k) for k in (1, 5)]
    evaluate(folder, "identification", *top)
    evaluate(folder, "fid", row("fid", 9.0, **{"data.source.path": "/moved"}))
    assert listing.evaluations(listing.read(folder)) == [
        "best_of: alignment/best_of=1 0.1 to 0.2, alignment/best_of=4 0.5 to 0.6",
        "fid/data.source.path=/moved 9",
        "identification/zeroshot/top=1 0.1, identification/zeroshot/top=5 0.5",
    ]


@pytest.mark.parametrize(
    ("key", "first", "second"),
    [("images", 100, 1000), ("seed", 0, 1), ("top_k", None, 8), ("extractor", "a", "b")],
)
def test_values_of_different_settings_are_compared_without_a_change(
    tmp_path, capsys, monkeypatch, key, first, second
):
    shared = {"steps": 20, "split": "validation", "interval": [1, 2]}
    for name, value, setting in (("a", 80.0, first), ("b", 40.0, second)):
        settings = {**shared, key: setting, "requested_images": 1000, "run": name}
        same = row("psnr", value, **{**shared, "requested_images": value})
        evaluate(make(tmp_path, name), "fid", row("fid", value, **settings), same)
    out = comparison(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split() for line in out.splitlines()]
    shown = "null" if first is None else first
    fid = ["fid/validation", "80", f"({key}={shown})", "40", f"({key}={second})"]
    assert fid in lines
    assert ["fid/psnr/validation", "80", "40", "-50.0%"] in lines


def test_values_of_several_settings_are_compared_by_setting(tmp_path):
    for name, seeds in (("a", (0, 1)), ("b", (0, 1, 2))):
        rows = [row("fid", 10.0 * seed, seed=seed, steps=len(seeds)) for seed in seeds]
        evaluate(make(tmp_path, name), "fid", *rows)
    compared = compare.evaluation_metrics([listing.read(tmp_path / "dvae" / n) for n in "ab"])
    assert compared == {
        "fid/validation/seed=0": [0.0, 0.0],
        "fid/validation/seed=1": [10.0, 10.0],
    }


def test_age_is_in_the_largest_unit():
    assert [listing.age(s) for s in (-1, 59, 60, 7200, 86400 * 9)] == [
        *("0 s", "59 s", "1 min", "2 h", "9 d")
    ]


def test_run_is_found_by_name_or_path(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b")
    make(tmp_path, "a", stage="prior")
    for name in ("b", "dvae/b", "dvae/latest", str(tmp_path / "dvae" / "b")):
        assert listing.find_record(tmp_path, name).name == "dvae/b"
    assert listing.find_record(tmp_path, "a", "prior").name == "prior/a"
    with pytest.raises(UserError, match="use one of dvae/a, prior/a"):
        listing.find_record(tmp_path, "a")
    with pytest.raises(UserError, match="there is no run c"):
        listing.find_record(tmp_path, "c")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", r"a/config\.yaml cannot be read"),
        ("config.yaml", "other: 1", r"a/config\.yaml is not a run's configuration"),
        ("config.yaml", "stage: dvae", r"a/config\.yaml was saved by Tilewright 0\.1"),
        ("eval/fid/results.json", "[", "dvae/a cannot be read: Expecting value"),
        *(
            ("eval/fid/results.json", content, "dvae/a cannot be read")
            for content in (
                "3",
                "[3]",
                "[{}]",
                '[{"metric": 1, "value": "x", "split": 1, "images": 1}]',
            )
        ),
        ("metrics.csv", "step,a\nx,1\n", "dvae/a cannot be read"),
        ("metrics.csv", "step,a\n1,x\n", "dvae/a cannot be read"),
        ("metrics.csv", "step,a\n1,2,3\n", "dvae/a cannot be read"),
        pytest.param("metrics.csv", "1" * 200_000, "dvae/a cannot be read", id="long value"),
    ],
)
def test_run_that_cannot_be_read_is_skipped_in_a_list_and_an_error_by_name(
    tmp_path, caplog, file, content, message
):
    folder = make(tmp_path, "a")
    make(tmp_path, "b")
    evaluate(folder, "fid", row("fid", 1.0))
    (folder / file).write_text(content)
    assert [record.name for record in listing.records(tmp_path)] == ["dvae/b"]
    (warning,) = caplog.messages
    assert warning.startswith("Skipping dvae/a: ")
    assert re.search(message, warning)
    with pytest.raises(UserError, match=message):
        listing.read(folder)


def comparison(tmp_path, capsys, monkeypatch, *names):
    records = [listing.find_record(tmp_path, name) for name in names]
    return printed(capsys, monkeypatch, compare.print_comparison, records)


def test_comparison_separates_settings_from_their_consequences(tmp_path, capsys, monkeypatch):
    make(tmp_path, "a", model={"rate": 1.0, "steps": 20})
    more = {"trainer": {"max_steps": 40}, "model": {"rate": 1.0, "steps": 40}}
    b = make(tmp_path, "b", overrides=["trainer.max_steps=40"], losses=(3.0, 1.5), **more)
    evaluate(b, "fid", row("fid", 9.0))
    out = comparison(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split() for line in out.splitlines()]
    settings, consequences, metrics = (
        next(index for index, line in enumerate(lines) if line[:2] == start)
        for start in (["settings", "that"], ["consequences,", "or"], ["metrics", "at"])
    )
    assert settings < lines.index(["trainer.max_steps", "20", "40"]) < consequences
    assert consequences < lines.index(["model.steps", "20", "40"]) < metrics
    assert ["validation/loss", "2", "1.5", "-25.0%"] in lines
    assert "model.rate" not in out
    assert "default_root_dir" not in out
    assert "fid" not in out  # only one of them has it
    assert "dvae/b has the best validation/loss: 1.5, and dvae/a has 2" in out
    assert "One setting differs: trainer.max_steps" in out


def test_comparison_has_no_percentage_of_a_loss_below_zero(tmp_path, capsys, monkeypatch):
    make(tmp_path, "a", losses=(3.0, 0.25))
    make(tmp_path, "b", losses=(3.0, -0.5))
    lines = comparison(tmp_path, capsys, monkeypatch, "a", "b").splitlines()
    assert ["validation/loss", "0.25", "-0.5"] in [line.split() for line in lines]


def test_comparison_prints_a_command_for_each_of_several_settings(tmp_path, capsys, monkeypatch):
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
    out = comparison(tmp_path, capsys, monkeypatch, "b", "a")
    assert "2 settings differ: model.dim, seed" in out
    assert "train.py stage=dvae data.batch_size=8 seed=2\n" in out
    assert "train.py stage=dvae data.batch_size=8 seed=1 model.dim=8\n" in out


@pytest.mark.parametrize(
    ("best", "title"),
    [
        ((None, None), "metrics at the last validation"),
        (({}, None), "metrics at the best validation/loss the last validation"),
    ],
)
def test_comparison_calls_no_run_better_by_a_metric_that_does_not_select_its_weights(
    tmp_path, capsys, monkeypatch, best, title
):
    for name, seed, kept in zip("ab", (1, 2), best, strict=True):
        settings = {"overrides": [f"seed={seed}"], "seed": seed, "callbacks": {"best": kept}}
        make(tmp_path, name, losses=(1.0, 1.0 + seed), **settings)
    out = comparison(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split() for line in out.splitlines()]
    assert title.split() in lines
    assert ["validation/loss", "1" if best[0] is not None else "2", "3"] in [x[:3] for x in lines]
    assert "has the best" not in out
    unselected = "dvae/b" if best[0] is not None else "dvae/a, dvae/b"
    assert f"by validation/loss, which does not select the weights of {unselected}\n" in out
    assert "One setting differs: seed" in out


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {"monitor": "validation/psnr"},
            "No run is better, because they monitor validation/{} and validation/{}",
        ),
        ({"loss": {"perceptual": {"weight": 1}}}, "which depends on loss.perceptual"),
    ],
)
def test_comparison_calls_no_run_better_by_metrics_of_different_meaning(
    tmp_path, capsys, monkeypatch, order, more, reason
):
    make(tmp_path, "a", losses=(3.0,), loss={"perceptual": None})
    make(tmp_path, "b", losses=(1.0,), **{"loss": {"perceptual": None}, **more})
    out = comparison(tmp_path, capsys, monkeypatch, *order)
    names = ["loss", "psnr"] if order == "ab" else ["psnr", "loss"]
    assert f"{reason.format(*names)}\n" in out
    assert "has the best" not in out
    lines = [line.split() for line in out.splitlines()]
    (values,) = (line[1:] for line in lines if line[0:1] == ["validation/loss"])
    has_same_meaning = "monitor" in more
    assert len(values) == (3 if has_same_meaning else 2)  # with the change
    if has_same_meaning:
        titles = (f"the best validation/{name}" for name in names)
        assert f"metrics at {' '.join(titles)}".split() in lines


def test_metric_of_every_few_validations_is_compared_with_its_step(tmp_path):
    for name, losses in (("a", (3.0, 2.0, 1.0)), ("b", (3.0, 1.0, 2.0))):
        table = make(tmp_path, name, losses=losses) / "metrics.csv"
        lines = table.read_text().splitlines()
        values = iter(["", "40", "", "30", "", ""])  # at steps 10 and 20
        frechet = ["validation/frechet", *(next(values) for _ in lines[1:])]
        lines = [f"{line},{value}" for line, value in zip(lines, frechet, strict=True)]
        table.write_text("\n".join(lines) + "\n")
    metrics = compare.training_metrics([listing.find_record(tmp_path, name) for name in "ab"])
    assert metrics["at step"] == [30, 20]
    assert metrics["validation/frechet"] == [30, 30]
    assert metrics["validation/frechet at step"] == [20, None]
    assert "validation/psnr at step" not in metrics


def test_option_of_a_group_is_a_setting_and_its_keys_are_consequences(
    tmp_path, capsys, monkeypatch
):
    for name, loss in (("small", 2.0), ("large", 1.0)):
        folder = make(
            tmp_path, name, overrides=[f"model={name}"], losses=(loss,), model={"dim": loss}
        )
        config = runs.load_config(folder)
        config.choices.model = name
        runs.create(folder, config)
    out = comparison(tmp_path, capsys, monkeypatch, "small", "large")
    assert "One setting differs: model" in out
    assert out.index("consequences, or") < out.index("model.dim")


def test_comparison_shows_code_and_machine(tmp_path, capsys, monkeypatch):
    for name, commit, cores in (("a", "1111111", 2), ("b", "2222222", 4)):
        folder = make(tmp_path, name, losses=(float(cores),))
        machine = {"cpu": "same", "cores": cores}
        entry = {"commit": commit, "dirty": False, "machine": machine, "packages": {"torch": "3"}}
        (folder / "environment.json").write_text(json.dumps([entry]))
    out = comparison(tmp_path, capsys, monkeypatch, "a", "b")
    lines = [line.split()[:3] for line in out.splitlines()]
    assert ["commit", "1111111", "2222222"] in lines
    assert ["cores", "2", "4"] in lines
    assert "torch" not in out
    assert "same" not in out
    assert "They were trained by different code" in out
    assert "No setting differs" in out


def test_comparison_needs_runs_of_one_stage(tmp_path):
    make(tmp_path, "a")
    make(tmp_path, "b", stage="prior")
    with pytest.raises(UserError, match="stage=dvae and stage=prior"):
        compare.print_comparison([listing.find_record(tmp_path, name) for name in ("a", "b")])


@pytest.fixture
def home(tmp_path):
    """Two runs of a dVAE, which differ in their data."""
    home = make_home(tmp_path)
    make(home.logs, "a")
    make(home.logs, "b", data="emoji", losses=(1.0,))
    return home


def test_command_lists_filters_and_compares(home):
    out = run(home, "runs")
    assert "dvae/a" in out
    assert "dvae/b" in out
    out = run(home, "runs", "stage=dvae", "data=emoji")
    assert "dvae/a" not in out
    assert "dvae/b" in out
    assert "One setting differs: data" in run(home, "runs", "compare=a", "compare=b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage=prior"], "has no run of stage=prior"),
        (["compare=a", "compare=c"], "there is no run c"),
        (["compare=[a,b]"], "compare=[a,b] is only one run: repeat the key"),
        (["stage=nope"], "stage/nope"),
    ],
)
def test_command_explains_what_it_cannot_find(home, arguments, message):
    assert message in fail(home, "runs", *arguments)


def test_script_starts_although_its_name_is_that_of_a_module(home):
    """`src/runs.py` must not shadow `tilewright.runs`."""
    script = [sys.executable, "src/runs.py", f"paths.logs={home.logs}"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "dvae/a" in done.stdout
