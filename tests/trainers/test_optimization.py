"""Optimizers, schedules and clipping, by hand."""

import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from trainers.optimization import clip_gradients, make_optimizer, optimization, schedule
from trainers.paired import DPOTrainer

SETTINGS = {"lr": 0.1, "weight_decay": 0.3, "beta1": 0.7, "beta2": 0.8, "eps": 1e-3}


def factors(name: str, steps: int, warmup: int) -> list[float]:
    return [round(schedule(name, steps, warmup)(step), 6) for step in range(steps)]


def test_schedules_by_hand():
    """Prevents a first step of size 0, a warm-up that is off by one and a decay that ends early or late."""
    assert factors("constant", 5, 2) == [0.5, 1, 1, 1, 1]
    assert factors("constant", 3, 0) == [1, 1, 1]
    assert factors("linear", 6, 2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert factors("cosine", 4, 0) == [1, round((1 + math.cos(math.pi / 4)) / 2, 6), 0.5, 0.146447]
    assert schedule("linear", 6, 2)(6) == 0
    assert schedule("linear", 2, 5)(1) == 0.4, "a warm-up longer than the training"


def test_the_learning_rate_of_each_step_is_the_schedules():
    """Prevents a scheduler that runs one step ahead, or warm-up steps that are ignored: 10 % of 20 steps are 2."""
    trainer = tiny.trainer(DPOTrainer, "dpo", lr=1.0, scheduler="linear")
    _, rate = optimization(trainer.config, trainer.parameters, 20)
    rates = [rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.0, 1 - 1 / 18])
    assert rates[-1] == pytest.approx(1 / 18)
    trainer.config.warmup_steps = 4
    assert optimization(trainer.config, trainer.parameters, 20)[1](0) == 0.25


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AdamW", {"lr": 0.1, "betas": (0.7, 0.8), "eps": 1e-3}),
        ("Adam", {"lr": 0.1, "betas": (0.7, 0.8), "eps": 1e-3}),
        ("RMSprop", {"lr": 0.1, "momentum": 0, "alpha": 0.99, "eps": 1e-3}),
        ("SGD", {"lr": 0.1, "momentum": 0}),
    ],
)
def test_settings_reach_the_optimizers_that_have_them(name: str, expected: dict):
    """Prevents a key of the config that is not read; weight decay acts on matrices alone."""
    matrix, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = make_optimizer(name, [matrix, bias, frozen], **SETTINGS)
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def descended(name: str, steps: int) -> tuple[torch.optim.Optimizer, torch.Tensor, torch.nn.Parameter]:
    """In a valley of unequal curvatures: an optimizer after some steps, the way of one matrix, and the matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(256, 256))
        target, curvature = torch.randn(256, 256), torch.rand(256, 256) + 0.1
    optimizer = make_optimizer(name, [weight], lr=0.02, weight_decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8)
    way = [weight.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        (curvature * (weight - target).square()).sum().backward()
        optimizer.step()
        way.append(weight.detach().clone())
    return optimizer, torch.stack(way), weight


def state_bytes(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> int:
    tensors = [value for value in optimizer.state[weight].values() if torch.is_tensor(value)]
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="requirements-bitsandbytes.txt is not installed"
)
@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit"])
def test_eight_bits_follow_adamw(name: str):
    """Prevents another optimizer under that name (lost decay, betas or learning rate), and state that saves nothing."""
    exact, way, weight = descended("AdamW", 5)
    ours, found, own = descended(name, 5)
    assert tiny.relative(way[-1] - way[0], found[-1] - found[0]) < 0.04  # without the decay it is 0.09
    assert ours.param_groups[0]["betas"] == (0.9, 0.99)
    assert state_bytes(ours, own) < 0.3 * state_bytes(exact, weight)
    saved = ours.state_dict()
    other, _, again = descended(name, 0)
    other.load_state_dict(saved)
    again.data.copy_(own.data)
    for optimizer, one in ((ours, own), (other, again)):
        one.grad = torch.ones_like(one)
        optimizer.step()
    assert torch.equal(own, again), "a resume from its saved state"


def test_eight_bit_optimizers_are_those_of_bitsandbytes(monkeypatch):
    """Prevents settings that do not reach them, where bitsandbytes is not installed to try it."""
    library = SimpleNamespace(optim=torch.optim)
    monkeypatch.setattr("trainers.optimization.bitsandbytes", lambda setting: library)
    monkeypatch.setattr(torch.optim, "AdamW8bit", torch.optim.AdamW, raising=False)
    optimizer = make_optimizer("AdamW8bit", [torch.nn.Parameter(torch.ones(2, 2))], **SETTINGS)
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.8) and optimizer.param_groups[0]["weight_decay"] == 0.3
    with pytest.raises(ValueError, match="optimizer=AdamX8bit is not a class"):
        make_optimizer("AdamX8bit", [torch.nn.Parameter(torch.ones(1))], **SETTINGS)


def test_an_unknown_optimizer_is_named():
    """Prevents an AttributeError for a misspelled name."""
    with pytest.raises(ValueError, match="optimizer=AdamX"):
        make_optimizer("AdamX", [torch.nn.Parameter(torch.ones(1))], **SETTINGS)


def test_clipping_is_by_the_global_norm():
    """Prevents clipping each tensor by itself: (3, 0) and (4,) have the norm 5, clipped to 1 they are 0.6, 0.8."""
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([first, second], None) == pytest.approx(5)
    assert second.grad.item() == 4
    assert clip_gradients([first, second], 1.0) == pytest.approx(5)
    assert [first.grad[0].item(), second.grad.item()] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert clip_gradients([first, second], 7.0) == pytest.approx(1)
    assert second.grad.item() == pytest.approx(0.8, rel=1e-5), "a smaller gradient is left alone"
