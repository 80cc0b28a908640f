"""Throughput: images per second, and the share of the time spent waiting for data."""

import time
from types import SimpleNamespace

import pytest

from tilewright.callbacks.throughput import Throughput


@pytest.mark.parametrize("interval", [1, 3])
def test_waiting_between_all_steps_counts(monkeypatch, interval):
    now, logged = [0.0], {}
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    module = SimpleNamespace(log=lambda name, value: logged.setdefault(name, []).append(value))
    callback = Throughput()
    for step in range(1, 7):
        trainer = SimpleNamespace(global_step=step, log_every_n_steps=interval, world_size=2)
        now[0] += 3  # waits 3 seconds, also before the first step, which is no wait for a batch
        callback.on_train_batch_start(trainer)
        now[0] += 1
        callback.on_train_batch_end(trainer, module, None, {"caption": ["a"] * 4}, 0)
    assert logged["speed/waiting_for_data"][-1] == pytest.approx(3 / 4)
    assert logged["speed/images_per_second"][-1] == pytest.approx(8 / 4)


def test_a_validation_does_not_count_as_waiting(monkeypatch):
    now, logged = [0.0], {}
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    module = SimpleNamespace(log=lambda name, value: logged.update({name: value}))
    callback = Throughput()
    for step in range(1, 3):
        trainer = SimpleNamespace(global_step=step, log_every_n_steps=2, world_size=1)
        callback.on_train_batch_start(trainer)
        now[0] += 1
        callback.on_train_batch_end(trainer, module, None, {"caption": ["a"]}, 0)
        callback.on_validation_start(trainer, None)
        now[0] += 50
    assert logged == {"speed/waiting_for_data": 0, "speed/images_per_second": 1}
