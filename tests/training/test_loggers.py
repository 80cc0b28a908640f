"""metrics.csv and TensorBoard's events of a resumed run."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import tiny
from tilewright.training.loggers import AppendingCSVLogger, StepTensorBoardLogger


def log(folder, step, **metrics):
    """Logs metrics as a new process does."""
    logger = AppendingCSVLogger(folder, name="", version="")
    logger.log_metrics(metrics, step=step)
    logger.save()


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_second_logger_appends_to_the_metrics_of_the_first(tmp_path):
    log(tmp_path, 0, loss=3.0)
    log(tmp_path, 1, loss=2.0, kl=0.5)
    assert [(row["step"], row["loss"], row["kl"]) for row in rows(tmp_path)] == [
        ("1", "3.0", ""),
        ("2", "2.0", "0.5"),
    ]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (0, [("40", "1.0"), ("60", "0.5")]),
        (4, [("60", "0.5")]),  # characters that a kill did not write
        (12, [("60", "0.5")]),
    ],
)
def test_a_row_that_a_kill_has_cut_does_not_join_the_next_one(tmp_path, cut, expected):
    log(tmp_path, 39, loss=1.0)
    file = tmp_path / "metrics.csv"
    written = file.read_bytes()
    file.write_bytes(written[: len(written) - cut])
    log(tmp_path, 59, loss=0.5)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == expected


def test_a_kill_while_a_column_is_added_keeps_the_rows(tmp_path, monkeypatch):
    log(tmp_path, 0, loss=1.0)
    before = (tmp_path / "metrics.csv").read_bytes()

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(KeyboardInterrupt):
            log(tmp_path, 1, kl=1.0)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    log(tmp_path, 1, kl=1.0)
    assert [(row["step"], row["loss"], row["kl"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""),
        ("2", "", "1.0"),
    ]


def test_a_run_that_resumes_after_a_kill_logs_each_update_once(tmp_path):
    def train(steps):
        places = {"name": "", "version": ""}
        loggers = [kind(tmp_path, **places) for kind in (AppendingCSVLogger, StepTensorBoardLogger)]
        tiny.train("dvae", tmp_path, steps=steps, logger=loggers)

    last = tmp_path / "checkpoints" / "last.ckpt"
    train(7)
    checkpoint = last.read_bytes()
    train(9)
    logged = [row["train/loss"] for row in rows(tmp_path) if row["train/loss"]]
    last.write_bytes(checkpoint)  # a killed run has logged two updates after its checkpoint
    train(8)
    kept = [row for row in rows(tmp_path) if row["train/loss"]]
    assert [(int(row["step"]), row["train/loss"]) for row in kept] == [*enumerate(logged[:8], 1)]
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        (step, pytest.approx(float(loss))) for step, loss in enumerate(logged[:8], 1)
    ]


def test_a_run_that_resumes_without_a_table_begins_one(tmp_path):
    logger = AppendingCSVLogger(tmp_path, name="", version="")
    logger.drop_after(2)
    logger.log_metrics({"loss": 1.0}, step=2)
    logger.save()
    assert [row["step"] for row in rows(tmp_path)] == ["3"]


def test_a_run_that_is_extended_several_times_logs_its_number_of_updates(tmp_path):
    for steps in (6, 8, 10, 12):
        logger = AppendingCSVLogger(tmp_path, name="", version="")
        tiny.train("dvae", tmp_path, steps=steps, logger=logger, log_every_n_steps=2)
    logged = {
        name: [int(row["step"]) for row in rows(tmp_path) if row[f"{name}/loss"]]
        for name in ("train", "validation")
    }
    assert logged == {"train": [2, 4, 6, 8, 10, 12], "validation": [6, 7, 8, 10, 12]}
