"""metrics.csv of a resumed run."""

import csv

import pytest

from tilewright.training.loggers import AppendingCSVLogger


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
