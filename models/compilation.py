"""torch.compile of a model's blocks: fewer passes over memory, for a first step that takes longer."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface

from models import tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compile_blocks(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compiles every transformer block for packs of any length, in place; attention over packs stays as it is.

    Args:
        backend: of torch.compile.

    Raises:
        ValueError: when the model is no stack of blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} is no stack of blocks: set model.compile=false.")
    AttentionInterface.register(tree_attention.NAME, torch.compiler.disable(tree_attention.attend))
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    model.has_compiled_blocks = True


def blocks_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """A model's transformer blocks in their order; none where it is no stack of them."""
    stacks = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    layers = model.config.get_text_config().num_hidden_layers
    return list(next((one for one in stacks if len(one) == layers), max(stacks, key=len, default=[])))


def refuse_without_compiler(device: torch.device) -> None:
    """ValueError where torch.compile would have nothing to compile with."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"model.compile=true needs a C++ compiler, and there is no {compiler}: install one, name it by the "
            "environment variable CXX, or set model.compile=false."
        )
    if device.type == "mps":
        raise ValueError("model.compile=true was not tried on mps: set model.compile=false.")
