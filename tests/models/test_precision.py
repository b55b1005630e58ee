"""bfloat16 compute leaves float32 weights, and sums gradients in float32."""

import pytest
import torch

from launch.build import settle_dtypes
from models.precision import WorkingCopy, fastest_dtype
from tests import tiny
from tests.trainers.steps import LOADERS, step
from trainers.paired import DPOTrainer


def test_inside_the_copies_compute_and_outside_the_weights_are_untouched():
    """Prevents a model that stays in bfloat16, also after an error, or whose weights are rounded on the way."""
    model = tiny.tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = WorkingCopy(model, torch.bfloat16)
    with pytest.raises(RuntimeError, match="stop"), copy.installed():
        assert model.dtype == torch.bfloat16
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight, "tied ones stay tied"
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 vaes", torch.bfloat16),
        ("flags\t\t: fpu amx_bf16 amx_tile", torch.bfloat16),
        ("Features\t: fp asimd bf16 i8mm", torch.bfloat16),
        ("flags\t\t: fpu avx2 avx512f f16c", torch.float32),
        ("model name\t: bf16 wonder", torch.float32),
    ],
)
def test_bfloat16_where_it_is_native(line: str, dtype: torch.dtype, tmp_path):
    """Prevents emulated bfloat16, which is slower than float32, and a CPU that is asked on a system that cannot say."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t:\n")
    cpu = torch.device("cpu")
    assert fastest_dtype(cpu, tmp_path / "cpuinfo") == dtype
    assert fastest_dtype(cpu, tmp_path / "nothing") == fastest_dtype(torch.device("mps")) == torch.float32


def test_auto_is_settled_before_it_is_saved(tmp_path, monkeypatch):
    """Prevents a saved config that does not say in which precision a run was computed."""
    monkeypatch.setattr("models.precision.fastest_dtype", lambda device: torch.bfloat16)
    config = tiny.config("dpo", model__policy_dtype="auto")
    settle_dtypes(config, torch.device("cpu"))
    assert (config.model.policy_dtype, config.model.reference_dtype) == ("bfloat16", "float32")


def test_the_copies_follow_the_weights():
    """Prevents a policy that computes with its first weights for ever."""
    model = tiny.tiny_model()
    copy = WorkingCopy(model, torch.bfloat16)
    for _ in range(2):
        with copy.installed():
            seen = model.get_input_embeddings().weight.detach().clone()
        assert torch.equal(seen, model.get_input_embeddings().weight.to(torch.bfloat16))
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1)


def test_gradients_are_summed_in_float32():
    """Prevents a sum of 257 ones that stays at 256, as in bfloat16."""
    model = torch.nn.Linear(1, 1, bias=False)
    copy = WorkingCopy(model, torch.bfloat16)
    with copy.installed():
        for _ in range(257):
            model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad.item() == 257 and model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "simple_kto"])
def test_a_step_in_bfloat16_is_close_and_leaves_float32_weights(name: str):
    """Prevents a bfloat16 step that is another step: same direction of the gradient, loss within 2 %."""
    loss = "kto" if name == "simple_kto" else name
    rows = next(tiny.loader(LOADERS[loss], 5, batch_size=100).epoch(0))
    policy = tiny.tiny_model()
    exact, metrics = step(name, rows, dtype=torch.float32)
    rough, others = step(name, rows, 100, policy=policy, dtype=torch.float32, model__policy_dtype="bfloat16")
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.99
    assert others["loss"] == pytest.approx(metrics["loss"], rel=0.02)
    assert not torch.equal(exact, rough), "computed in float32 after all"
    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())


def test_a_training_in_bfloat16_learns():
    """Prevents updates too small for bfloat16 from being lost: the weights that are stepped are float32."""
    made = tiny.loader(LOADERS["dpo"], 8, batch_size=4, n_epochs=2)
    policy = tiny.tiny_model()
    before = policy.get_input_embeddings().weight.detach().clone()
    trainer = tiny.trainer(DPOTrainer, "dpo", policy=policy, train_loader=made, lr=1e-6, model__policy_dtype="bfloat16")
    trainer.train()
    change = (policy.get_input_embeddings().weight - before).abs().max().item()
    assert 0 < change < 1e-4
