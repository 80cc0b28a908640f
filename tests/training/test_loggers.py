"""metrics.csv of a run that is resumed."""

import csv

from tilewright.training.loggers import ContinuedCSVLogger


def test_a_second_logger_adds_to_the_figures_of_the_first(tmp_path):
    for step, figures in enumerate(({"loss": 3.0}, {"loss": 2.0, "kl": 0.5})):
        logger = ContinuedCSVLogger(tmp_path, name="", version="")
        logger.log_metrics(figures, step=step)
        logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["kl"]) for row in rows] == [
        ("0", "3.0", ""),
        ("1", "2.0", "0.5"),
    ]
