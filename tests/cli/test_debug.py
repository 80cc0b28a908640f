"""The options of debug= train, and do what they are for."""

from types import SimpleNamespace

import pytest

from helpers.command import command
from tilewright.runs import listing

SMALL = [
    "data.source.train=16",
    "data.source.validation=8",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=1",
    "~callbacks.frechet",
]


@pytest.fixture
def trains(tmp_path):
    """Trains a dVAE with these words; the run."""
    home = SimpleNamespace(data=tmp_path / "data", logs=tmp_path / "logs")

    def run(*words):
        named = ["stage=dvae", "trainer=cpu", "run_name=a"]
        assert command("train", [*named, *SMALL, *words], home) is None
        return home.logs / "dvae" / "a"

    return run


def test_profile_says_where_the_time_goes(trains):
    said = (trains("debug=profile") / "fit-profile.txt").read_text()
    assert "optimizer_step" in said
    assert "train_dataloader_next" in said


def test_anomaly_stops_at_the_gradient_that_is_no_number(trains):
    with pytest.raises(RuntimeError, match="returned nan values"):
        trains("debug=anomaly", "model.beta.start=nan")


def test_overfit_learns_its_batch_by_heart(trains):
    """And nothing else: the pictures of its validation are the eight that it is trained on."""
    run = trains(
        "debug=overfit",
        "trainer.max_steps=40",
        "trainer.val_check_interval=20",
        "data.batch_size=4",
    )
    record = listing.read(run)
    assert record.config.data.overfit_batches == 1
    first, last = (
        listing.figure(row, "validation/psnr") for row in record.rows if row["validation/psnr"]
    )
    assert last > first + 3
    losses = [listing.figure(row, "train/loss") for row in record.rows if row["train/loss"]]
    assert losses[-1] < losses[0] / 3
