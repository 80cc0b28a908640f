"""Weight decay groups, learning rates, Muon and variance clipping."""

import io
import math

import pytest
import torch
from torch import nn

from tilewright.errors import UserError
from tilewright.prior import Stream, Transformer
from tilewright.training.optimizers import (
    MuonAdamW,
    check_adam_bits,
    check_optimizer,
    clip_variance,
    fused_adamw,
    scheduled,
    transformer_optimizer,
    weight_decay_groups,
)
from tilewright.training.schedules import Constant, Cosine, WarmUp


class SmallModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3, bias=False))
        self.gain = nn.Parameter(torch.ones(2, 2))  # a matrix, but not of a linear layer


def test_only_weights_of_linear_layers_decay():
    module = SmallModel()
    matrices, others = weight_decay_groups(module, 0.3)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in matrices["params"]} == {
        id(module.layers[0].weight),
        id(module.layers[1].weight),
    }


@pytest.mark.parametrize(
    "module",
    [SmallModel(), Transformer(Stream(4, 8, 2, 6), dim=8, depth=2, heads=2)],
    ids=["small model", "transformer"],
)
def test_every_parameter_is_in_exactly_one_group(module):
    grouped = [id(p) for group in weight_decay_groups(module, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in module.parameters()}


def make():
    module = SmallModel()
    optimizer = torch.optim.AdamW(weight_decay_groups(module, 0.1), lr=1.0)
    schedule = WarmUp(3, Cosine(4.5e-4, 1e-6, 10))
    return module, optimizer, schedule, scheduled(optimizer, schedule)


def update(module, optimizer, scheduler):
    sum(p.square().sum() for p in module.parameters()).backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()


def test_the_learning_rate_equals_the_schedule_at_every_update():
    module, optimizer, schedule, configured = make()
    assert configured["optimizer"] is optimizer
    assert configured["lr_scheduler"]["interval"] == "step"
    for step in range(15):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([schedule(step)] * 2, rel=1e-12)
        update(module, optimizer, configured["lr_scheduler"]["scheduler"])


def test_the_state_loads_with_weights_only_and_resumes_the_rate():
    module, optimizer, schedule, configured = make()
    scheduler = configured["lr_scheduler"]["scheduler"]
    for _ in range(5):
        update(module, optimizer, scheduler)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "rate": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    module, optimizer, schedule, configured = make()
    scheduler = configured["lr_scheduler"]["scheduler"]
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["rate"])
    update(module, optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(6), rel=1e-12)


@pytest.mark.parametrize("create", [MuonAdamW, fused_adamw], ids=["muon", "adamw"])
def test_settings_and_schedule_of_a_resumed_training_replace_the_saved_ones(create):
    def make(decay, betas, eps, rate):
        matrices, others = weight_decay_groups(SmallModel(), decay)
        if create is MuonAdamW:
            optimizer = MuonAdamW(matrices, others, betas=betas, eps=eps)
        else:
            optimizer = fused_adamw([matrices, others], decay, betas, eps)
        return optimizer, scheduled(optimizer, Cosine(rate, 0.0, 4))["lr_scheduler"]["scheduler"]

    trained, trained_rate = make(0.1, (0.9, 0.96), 1e-8, 1.0)
    trained.step()
    trained_rate.step()
    resumed, resumed_rate = make(0.3, (0.8, 0.99), 1e-6, 0.5)
    resumed.load_state_dict(trained.state_dict())
    resumed_rate.load_state_dict(trained_rate.state_dict())
    matrices, others = resumed.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert (others["betas"], others["eps"]) == ((0.8, 0.99), 1e-6)
    assert matrices["lr"] == others["lr"] == Cosine(0.5, 0.0, 4)(1) == resumed_rate.get_last_lr()[0]


def test_the_running_variance_is_clipped():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], lr=0.0, betas=(0.9, 0.96))
    clip_variance(optimizer, 5.0)
    for _ in range(200):
        weight.grad = torch.tensor([3.0, 1.0])  # unclipped variances would approach 9 and 1
        optimizer.step()
    torch.testing.assert_close(
        optimizer.state[weight]["exp_avg_sq"], torch.tensor([5.0, 1.0]), rtol=1e-3, atol=0
    )


def make_muon():
    torch.manual_seed(0)
    module = SmallModel()
    return module, MuonAdamW(*weight_decay_groups(module, 0.3), lr=0.1)


def loss(module):
    states = module.layers(
        module.norm(module.embedding(torch.arange(5))) @ module.gain.repeat(2, 2)
    )
    return states.square().sum()


def descend(module, optimizer, updates):
    for _ in range(updates):
        optimizer.zero_grad()
        optimizer.step(lambda: loss(module).backward())


def test_muon_moves_matrices_by_orthogonal_matrices():
    module, optimizer = make_muon()
    weight = module.layers[0].weight
    before = weight.detach().clone()
    weight.grad = torch.randn(4, 4) * torch.tensor([[1.0], [1.0], [1e-2], [1e-2]])
    optimizer.step()
    # Without the decay, the update is lr * 0.2 * sqrt(4) times singular values near 1.
    moved = torch.linalg.svdvals((before * (1 - 0.1 * 0.3) - weight.detach()) / (0.1 * 0.2 * 2))
    assert moved.min() > 0.6
    assert moved.max() < 1.3


def test_all_other_parameters_of_muon_are_updated_by_adamw():
    module, optimizer = make_muon()
    torch.manual_seed(0)
    other = SmallModel()
    plain = fused_adamw(weight_decay_groups(other, 0.3), 0.0, (0.9, 0.96), 1e-8, lr=0.1)
    descend(module, optimizer, 1)
    descend(other, plain, 1)
    for name in ("embedding.weight", "norm.weight", "layers.0.bias", "gain"):
        assert torch.equal(module.get_parameter(name), other.get_parameter(name))
    for name in ("layers.0.weight", "layers.1.weight"):
        assert not torch.equal(module.get_parameter(name), other.get_parameter(name))


def test_muon_resumes_to_the_same_bits():
    uninterrupted, optimizer = make_muon()
    descend(uninterrupted, optimizer, 5)

    first, optimizer = make_muon()
    descend(first, optimizer, 2)
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer = make_muon()
    second.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    descend(second, optimizer, 3)
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def make_eight_bit(weight_decay=0.1):
    """Returns a layer large enough for moments of 8 bits, and its optimizer."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    module = nn.Linear(64, 128)
    optimizer = transformer_optimizer(module, weight_decay, (0.9, 0.96), 1e-8, False, adam_bits=8)
    scheduled(optimizer, Constant(1e-2))
    return module, optimizer


def descend_linear(module, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        module.weight.grad = torch.randn(128, 64, generator=generator)
        module.bias.grad = torch.randn(128, generator=generator)
        optimizer.step()


def test_adam_with_eight_bits_follows_adam_with_32():
    module, optimizer = make_eight_bit()
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.1
    descend_linear(module, optimizer, 10)
    assert optimizer.state[module.weight]["state1"].dtype == torch.uint8
    other, _ = make_eight_bit()
    exact = fused_adamw(weight_decay_groups(other, 0.1), 0.1, (0.9, 0.96), 1e-8, lr=1e-2)
    descend_linear(other, exact, 10)
    moved = (make_eight_bit()[0].weight - other.weight).abs().mean()
    assert (module.weight - other.weight).abs().mean() < 0.05 * moved
    torch.testing.assert_close(module.bias, other.bias)  # a small tensor keeps 32 bits


def test_adam_with_eight_bits_resumes_to_the_same_bits_with_new_settings():
    uninterrupted, optimizer = make_eight_bit()
    descend_linear(uninterrupted, optimizer, 2)
    descend_linear(uninterrupted, optimizer, 3)

    first, optimizer = make_eight_bit()
    descend_linear(first, optimizer, 2)
    file = io.BytesIO()
    torch.save({"module": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer = make_eight_bit()
    second.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    descend_linear(second, optimizer, 3)
    assert torch.equal(uninterrupted.weight, second.weight)
    assert torch.equal(uninterrupted.bias, second.bias)

    _, optimizer = make_eight_bit(weight_decay=0.2)
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, False), r"adam_bits=16 is not possible: set 32 or 8"),
        ((8, True), r"set model\.muon=false"),
        ((8, False, 5.0), r"variance_clip=5\.0 .* set model\.variance_clip=null"),
    ],
)
def test_impossible_settings_of_eight_bits_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        check_adam_bits(*arguments)


def test_missing_bitsandbytes_is_a_user_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tilewright\[adam8bit\]'"):
        check_adam_bits(8, False)
    check_adam_bits(32, True)


def test_the_learning_rates_of_muon_and_adamw_are_set_by_the_groups():
    module, optimizer = make_muon()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: value.clone() for name, value in module.state_dict().items()}
    descend(module, optimizer, 1)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_fused_adamw_equals_torchs_default():
    fused, default = SmallModel(), SmallModel()
    default.load_state_dict(fused.state_dict())
    for module, make in ((fused, fused_adamw), (default, torch.optim.AdamW)):
        settings = {"weight_decay": 0.1, "betas": (0.9, 0.96), "eps": 1e-8, "lr": 0.1}
        descend(module, make(module.parameters(), **settings), 5)
    for actual, expected in zip(fused.parameters(), default.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "model.learning_rate=0.1 is not a schedule"),
        ({"learning_rate": None}, "model.learning_rate=None is not a schedule"),
        ({"learning_rate": WarmUp(5, Constant(-1.0))}, "model.learning_rate.then.value=-1.0 is"),
        ({"learning_rate": Cosine(math.inf, 0.0, 5)}, "model.learning_rate.start=inf is not"),
        ({"weight_decay": -1}, "model.weight_decay=-1 is not possible"),
        ({"weight_decay": math.nan}, "model.weight_decay=nan is not possible"),
        ({"eps": -1e-8}, "model.eps=-1e-08 is not possible"),
        ({"betas": [0.9]}, "two numbers below 1"),
        ({"betas": 0.9}, "model.betas=0.9 is not possible"),
        ({"betas": ["a", 0.9]}, "two numbers below 1"),
        ({"betas": [0.9, 1.0]}, "two numbers below 1"),
    ],
)
def test_an_impossible_setting_is_one_line_before_the_run_begins(changes, message):
    settings = {"learning_rate": Constant(0.1), "weight_decay": 0.1, "betas": (0.9, 0.99)}
    settings |= {"eps": 1e-8}
    check_optimizer(**settings)
    with pytest.raises(UserError) as caught:
        check_optimizer(**settings | changes)
    assert message in str(caught.value)
