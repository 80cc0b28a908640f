"""What decays, and how the learning rate reaches the optimiser."""

import io

import pytest
import torch
from torch import nn

from tilewright.optimisers import clip_variance, decay_matrices_only, scheduled
from tilewright.prior import Stream, Transformer
from tilewright.schedules import Cosine, WarmUp


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
        self.gain = nn.Parameter(torch.ones(2, 2))  # a matrix, but no linear layer's


def test_linear_weights_and_only_they_decay():
    module = Mixed()
    decaying, rest = decay_matrices_only(module, 0.3)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in decaying["params"]} == {
        id(module.layers[0].weight),
        id(module.layers[1].weight),
    }


@pytest.mark.parametrize(
    "module",
    [Mixed(), Transformer(Stream(4, 8, 2, 6), dim=8, depth=2, heads=2)],
    ids=["mixed", "transformer"],
)
def test_every_parameter_is_in_one_group_once(module):
    grouped = [id(p) for group in decay_matrices_only(module, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in module.parameters()}


def make():
    module = Mixed()
    optimiser = torch.optim.AdamW(decay_matrices_only(module, 0.1), lr=1.0)
    schedule = WarmUp(3, Cosine(4.5e-4, 1e-6, 10))
    return module, optimiser, schedule, scheduled(optimiser, schedule)


def update(module, optimiser, scheduler):
    sum(p.square().sum() for p in module.parameters()).backward()
    optimiser.step()
    optimiser.zero_grad()
    scheduler.step()


def test_the_rate_is_the_schedules_value_at_every_update():
    module, optimiser, schedule, configured = make()
    assert configured["optimizer"] is optimiser
    assert configured["lr_scheduler"]["interval"] == "step"
    for step in range(15):
        rates = [group["lr"] for group in optimiser.param_groups]
        assert rates == pytest.approx([schedule(step)] * 2, rel=1e-12)
        update(module, optimiser, configured["lr_scheduler"]["scheduler"])


def test_the_state_is_plain_data_and_resumes_the_rate():
    module, optimiser, schedule, configured = make()
    scheduler = configured["lr_scheduler"]["scheduler"]
    for _ in range(5):
        update(module, optimiser, scheduler)
    file = io.BytesIO()
    torch.save({"optimiser": optimiser.state_dict(), "rate": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    module, optimiser, schedule, configured = make()
    scheduler = configured["lr_scheduler"]["scheduler"]
    optimiser.load_state_dict(saved["optimiser"])
    scheduler.load_state_dict(saved["rate"])
    update(module, optimiser, scheduler)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(schedule(6), rel=1e-12)


def test_the_running_variance_is_clipped_by_value():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.AdamW([weight], lr=0.0, betas=(0.9, 0.96))
    clip_variance(optimiser, 5.0)
    for _ in range(200):
        weight.grad = torch.tensor([3.0, 1.0])  # whose variances would settle at 9 and 1
        optimiser.step()
    torch.testing.assert_close(
        optimiser.state[weight]["exp_avg_sq"], torch.tensor([5.0, 1.0]), rtol=1e-3, atol=0
    )
