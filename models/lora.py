"""LoRA through peft: a few trained matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685).

A model keeps its class; only its linear layers change. policy.pt holds the adapter, and names the weights that it was
made for, with their hash; whoever loads one gets the merged model. The reference is the model with its adapter off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from models.optional import hush_bitsandbytes
from models.precision import cast_weights
from models.quantization import dequantize, quantize
from models.sharding import shards_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MARK = ".lora_"  # in peft's names of A and B


@dataclass(frozen=True)
class Adapter:
    """The shape of an adapter: a layer computes W x + (alpha / rank) B A x (section 4.1 of the paper).

    Attributes:
        rank: of A and B.
        alpha: the scale's numerator.
        dropout: on the input of A while training.
        targets: endings of the names of the linear layers that have one; None: all but the head.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: Sequence[str] | None = None


@dataclass(frozen=True)
class Base:
    """The weights that an adapter belongs to: how they were named, and the SHA-256 of what was loaded.

    `quantize` is how they were then quantized, or None; the hash is one of both.
    """

    name_or_path: str
    load_from: str | None
    seed: int
    digest: str
    quantize: str | None = None


def add_adapter(model: PreTrainedModel, adapter: Adapter, base: Base, dtype: torch.dtype, seed: int) -> None:
    """Freezes a model and puts a new adapter into it, in place: B is zero, so that the model computes what it did.

    Args:
        base: kept beside the adapter in every checkpoint.
        dtype: in which the frozen weights are kept, since nothing is ever added to them; the adapter is float32.
        seed: of A.

    Raises:
        ValueError: when no linear layer has a name that ends like one of `adapter.targets`, or the head has.
    """
    model.requires_grad_(False)
    cast_weights(model, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, adapter)
    for layer in (model.get_output_embeddings(), model.get_input_embeddings()):
        if any(_MARK in f".{name}" for name, _ in layer.named_parameters()):
            raise ValueError(
                f"model.lora.targets={list(adapter.targets or [])} takes in the head or the embeddings, which are "
                "computed without an adapter: name layers inside the blocks, or leave it at null."
            )
    for weight in adapter_weights(model).values():
        weight.data = weight.data.float()
    model.adapter, model.adapter_base = adapter, base


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether `add_adapter` has been here."""
    return getattr(model, "adapter", None) is not None


def adapter_weights(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """A and B of every layer that has them, by name."""
    return {name: weight for name, weight in model.named_parameters() if _MARK in name}


def saved_adapter(model: PreTrainedModel) -> dict[str, Any]:
    """What policy.pt holds of a model with an adapter, in the place of its weights: `state` and `adapter`."""
    weights, shards = adapter_weights(model), shards_of(model)
    if shards is None:
        state = {name: weight.detach().cpu() for name, weight in weights.items()}
    else:
        state = shards.whole_weights(weights)
    return {"state": state, "adapter": {**asdict(model.adapter), "base": asdict(model.adapter_base)}}


@contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes what it did before it had an adapter."""
    _switch(model, False)
    try:
        yield
    finally:
        _switch(model, True)


def merge_saved(
    contents: dict[str, Any], path: str, load_base: Callable[[Base], PreTrainedModel], digest: Callable[..., str]
) -> PreTrainedModel:
    """The model of a policy.pt that holds an adapter: its base with B A added to the weights.

    Of a quantized base these are the weights that its codes stand for, in float32: what the adapter was trained on.

    Args:
        contents: of the file at `path`.
        load_base: loads the weights that the adapter belongs to.
        digest: gives their hash.

    Raises:
        ValueError: when what is loaded is not what the adapter was trained on, or the file is damaged.
    """
    try:
        shape = dict(contents["adapter"])
        base = Base(**shape.pop("base"))
        adapter = Adapter(**shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds an adapter that this version does not understand ({error}).") from error
    model = load_base(base)
    if base.quantize is not None:
        quantize(model, base.quantize)
    if digest(model) != base.digest:
        start = base.name_or_path + (f" with the weights of {base.load_from}" if base.load_from else "")
        raise ValueError(
            f"{path} is an adapter for {start}, as it was when it was trained; what is there now has other weights, so "
            "the two do not fit together. Restore it, or name where it is now by ++model.name_or_path=..."
        )
    if base.quantize is not None:
        dequantize(model)
    tuner = _inject(model, adapter)
    own, state = adapter_weights(model), contents["state"]
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ValueError(f"{path} is damaged: its adapter's matrices are not those of its base's layers.")
    for name, weight in own.items():
        weight.data.copy_(state[name])
    return tuner.merge_and_unload().requires_grad_(True)


def _inject(model: PreTrainedModel, adapter: Adapter) -> Any:
    hush_bitsandbytes()
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    targets = "all-linear" if adapter.targets is None else list(adapter.targets)
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    names = sorted({name.rsplit(".", 1)[-1] for name, one in model.named_modules() if _is_linear(one)})
    try:
        return LoraModel(model, config, "default")
    except ValueError as error:
        raise ValueError(
            f"model.lora.targets={targets} does not do for this model, whose linear layers are named "
            f"{', '.join(names)}: {str(error).splitlines()[0]}"
        ) from error


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _switch(model: torch.nn.Module, on: bool) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)
