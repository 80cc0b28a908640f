"""Callbacks that measure every N validations."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from helpers import tiny
from tilewright.callbacks import AlignmentCallback, FrechetDistance, PeriodicMeasurement


class StepRecorder(PeriodicMeasurement):
    def __init__(self, every_n_validations):
        super().__init__(every_n_validations)
        self.steps = []

    def measure(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def validate(callback, steps, stop=None, sanity_checking=False):
    for step in steps:
        trainer = SimpleNamespace(
            sanity_checking=sanity_checking, global_step=step, should_stop=step == stop
        )
        callback.on_validation_epoch_end(trainer, None)
    return callback.steps


def test_it_measures_every_n_validations():
    assert validate(StepRecorder(3), range(1, 8)) == [3, 6]


def test_it_measures_at_the_last_validation():
    assert validate(StepRecorder(3), range(1, 6), stop=5) == [3, 5]


class StopAt(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == 10


def test_it_measures_when_a_training_ends_early(tmp_path):
    recorder = StepRecorder(9)
    tiny.train("prior", tmp_path, extra_callbacks=[recorder, StopAt()], val_check_interval=4)
    assert recorder.steps == [10]


def test_sanity_checks_do_not_count():
    callback = StepRecorder(2)
    assert validate(callback, [0, 0], sanity_checking=True) == []
    assert validate(callback, [1, 2, 3]) == [2]


@pytest.mark.parametrize("kind", [StepRecorder, AlignmentCallback, FrechetDistance])
def test_a_resumed_callback_continues_the_count(kind):
    before, after = StepRecorder(3), kind(every_n_validations=3)
    validate(before, [1, 2])
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == {"validations": 2}


def test_a_resumed_training_measures_at_the_same_updates():
    before, after = StepRecorder(3), StepRecorder(3)
    validate(before, range(1, 5))
    after.load_state_dict(before.state_dict())
    assert validate(after, range(5, 10)) == [6, 9]
