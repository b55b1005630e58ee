"""Compiled blocks compute what the model computes; what they gain is for benchmarks to say."""

import shutil

import numpy as np
import pytest
import torch

from models.compilation import compile_blocks, refuse_without_compiler
from models.logprobs import branch_logps
from models.precision import WorkingCopy
from models.probe import use_tree_rows
from models.tree_rows import Branch, TreeRow
from tests import tiny


def forest(*lengths: int) -> list[TreeRow]:
    branches = [Branch(np.arange(3, 3 + length), np.ones(length, dtype=bool)) for length in lengths]
    return [TreeRow(np.arange(20, 30), branches)]


def gradients(backend: str | None, checkpoints: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and the gradient over packs of several lengths, in float32, then under a working copy."""
    model = tiny.tiny_model("llama").train()
    if backend is not None:
        compile_blocks(model, backend)
    if checkpoints:
        model.activation_checkpointing_enable({"use_reentrant": False})
    assert use_tree_rows(model)
    values = [torch.cat(branch_logps(model, forest(*lengths))) for lengths in ((4, 9), (7,), (12, 3, 5))]
    torch.cat(values).square().sum().backward()
    with WorkingCopy(model, torch.bfloat16).installed():
        values.append(torch.cat(branch_logps(model, forest(4, 9))))
        (values[-1].sum() * 0.01).backward()
    return torch.cat(values).detach(), tiny.gradients(model)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_compiled_blocks_change_nothing(checkpoints: bool):
    """Prevents compiled blocks that forget the tree of a later pack, the copied weights, or a gradient."""
    torch.compiler.reset()
    plain, compiled = gradients(None), gradients("aot_eager", checkpoints)
    assert torch.allclose(plain[0], compiled[0], atol=0.02) and torch.allclose(
        plain[0][:-13], compiled[0][:-13], atol=1e-5
    )
    assert tiny.relative(plain[1], compiled[1]) < 1e-3


def test_lengths_do_not_compile_anew():
    """Prevents a compilation for each length of a pack, which would take longer than the training."""
    torch.compiler.reset()
    model = tiny.tiny_model("llama")
    compile_blocks(model, "eager")
    use_tree_rows(model)
    branch_logps(model, forest(4, 9))
    branch_logps(model, forest(5, 9))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for length in range(3, 12):
        branch_logps(model, forest(length, 2 * length))
    assert before > 0 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_inductor_on_this_machine():
    """Prevents an option that fails with the compiler that a run would use."""
    torch.compiler.reset()
    plain, compiled = gradients(None), gradients("inductor")
    assert tiny.relative(plain[1], compiled[1]) < 1e-2


def test_a_missing_compiler_is_named(monkeypatch):
    """Prevents a traceback of the compiler's after the models are loaded."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        refuse_without_compiler(torch.device("cpu"))
    refuse_without_compiler(torch.device("cuda"))
