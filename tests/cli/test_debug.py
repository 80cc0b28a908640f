"""Options of debug=."""

import pytest

from helpers.command import command, run
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
DVAE = ["stage=dvae", "trainer=cpu", "run_name=first", *SMALL]


def test_profile_writes_the_time_of_each_part(home):
    run(home, "train", *DVAE, "debug=profile")
    report = (home.dvae / "fit-profile.txt").read_text()
    assert "optimizer_step" in report
    assert "train_dataloader_next" in report
    changes = ["stage=dvae", "resume=true", "trainer.max_steps=3"]
    run(home, "train", *changes, "debug=anomaly")
    assert listing.read(home.dvae).steps == 3


def test_anomaly_stops_at_a_gradient_that_is_nan(home):
    with pytest.raises(RuntimeError, match="returned nan values"):
        command("train", [*DVAE, "debug=anomaly", "model.learning_rate.then.start=1e30"], home)


def test_overfit_learns_its_batch_and_validates_on_it(home):
    changes = ["trainer.max_steps=100", "trainer.val_check_interval=20", "data.batch_size=4"]
    run(home, "train", *DVAE, "debug=overfit", *changes)
    record = listing.read(home.dvae)
    assert record.config.data.overfit_batches == 1
    first, *_, last = (
        listing.metric(row, "validation/psnr") for row in record.rows if row["validation/psnr"]
    )
    assert last > first + 3
    losses = [listing.metric(row, "train/loss") for row in record.rows if row["train/loss"]]
    assert losses[-1] < losses[0] / 3
