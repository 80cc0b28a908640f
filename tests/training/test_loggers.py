"""metrics.csv of a resumed run."""

import csv

from tilewright.training.loggers import AppendingCSVLogger


def test_a_second_logger_appends_to_the_metrics_of_the_first(tmp_path):
    for step, metrics in enumerate(({"loss": 3.0}, {"loss": 2.0, "kl": 0.5})):
        logger = AppendingCSVLogger(tmp_path, name="", version="")
        logger.log_metrics(metrics, step=step)
        logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["kl"]) for row in rows] == [
        ("0", "3.0", ""),
        ("1", "2.0", "0.5"),
    ]
