"""A model of whose weights every process holds a part: FSDP2 gathers a block where it computes, the rest once a step.

The blocks are torch's `fully_shard`: each one's weights are gathered for its forward and its backward pass, and its
gradients are summed where they are made. What lies outside of the blocks (embeddings, the last norm, the head), the
engine uses by itself and many times a step, and sums its gradients in place: these ends are gathered whole, once for
all passes of a step, and their gradients, summed in float32, are reduced once.

Whoever looks at the model between steps sees DTensors; the optimizer gets this process's part of each weight as a plain
tensor, so that each optimizer works as ever. A weight is cut along its first dimension as torch.chunk does it.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from models.compilation import blocks_of
from models.logprobs import branch_logps
from models.precision import adder
from models.tree_rows import NOTHING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Some = TypeVar("_Some")


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        device: of this process.
        dtype: compute dtype; weights keep theirs.
        reduce_dtype: in which gradients of blocks are summed over processes; None: in the weights' dtype.
        reshard_after_forward: False keeps the weights of all blocks from the forward pass on (ZeRO-2), so that the
            backward pass gathers nothing.
        cpu_offload: keeps weights, gradients and the optimizer's state of blocks in the CPU's memory.
        hybrid: shards over the processes of a host, and keeps a replica on every host.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    reduce_dtype: torch.dtype | None = None
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    hybrid: bool = False


class _Sum:
    """The gradient that all passes of a step give a gathered weight: see `models.precision.summed_gradient`."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.grad: torch.Tensor | None = None


@dataclass
class _End:
    """A weight outside of the blocks, and where the model has it; `sum` is None for a frozen one."""

    weight: nn.Parameter
    slots: list[tuple[nn.Module, str]]
    sum: _Sum | None = None


@dataclass
class Shards:
    """A sharded model's parts; `shard` makes one.

    Attributes:
        parameters: this process's part of each trained weight, in the model's order. They share the memory of the
            model's DTensors, and get their gradients by `collect_gradients`.
    """

    model: PreTrainedModel
    sharding: Sharding
    mesh: DeviceMesh
    parameters: list[nn.Parameter] = field(default_factory=list)
    _weights: list[nn.Parameter] = field(default_factory=list)  # the DTensors of `parameters`
    _ends: list[_End] = field(default_factory=list)
    _depth: int = 0

    def __post_init__(self) -> None:
        self._group = self.mesh.get_group("shard")
        self._count = distributed.get_world_size(self._group)
        self._place = distributed.get_rank(self._group)
        self._replicas = self.mesh.get_group("replicate") if self.mesh.ndim == 2 else None
        self.placements = [*([Replicate()] if self.mesh.ndim == 2 else []), Shard(0)]

    # Parts and wholes ----------------------------------------------------------------------------------------------

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's part of a whole tensor."""
        parts = whole.chunk(self._count)
        return parts[self._place] if self._place < len(parts) else whole[:0]

    @torch.no_grad()
    def whole(self, part: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole of a tensor of this shape from everybody's part of it; all processes call it.

        Args:
            part: this process's; a DTensor's local one.
            dtype: of the result; None: that of the part.
        """
        rows = -(-shape[0] // self._count)
        own = part.new_zeros(rows, *shape[1:], dtype=dtype or part.dtype, device=self.sharding.device)
        own[: len(part)].copy_(part)
        gathered = own.new_empty(rows * self._count, *shape[1:])
        distributed.all_gather_single(gathered, own, group=self._group)
        return gathered[: shape[0]]

    def saved(self, part: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
        """The same in the CPU's memory of the first process; None for the others."""
        whole = self.whole(part, shape)
        if distributed.get_rank():
            return None
        return whole.clone() if whole.device.type == "cpu" else whole.cpu()

    def whole_weights(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
        """Weights (and buffers, which nobody shards) as one process has them: `saved` for each, tied ones once."""
        made: dict[int, torch.Tensor | None] = {}
        for weight in weights.values():
            if id(weight) not in made:
                value = weight.detach()
                is_part = isinstance(value, DTensor)
                made[id(weight)] = self.saved(value.to_local(), value.shape) if is_part else value.to("cpu", copy=True)
        return {name: made[id(weight)] for name, weight in weights.items()}

    def put(self, weight: torch.Tensor, whole: torch.Tensor) -> None:
        """Lets a weight (or a buffer) of the model have this value, of which every process has the whole."""
        if isinstance(weight, DTensor):
            weight.to_local().copy_(self.part(whole))
        else:
            weight.copy_(whole)

    def shape_of(self, parameter: torch.Tensor) -> torch.Size | None:
        """The whole shape of one of `parameters`; None for what is none of them."""
        known = {id(own): weight.shape for own, weight in zip(self.parameters, self._weights, strict=True)}
        return known.get(id(parameter))

    def total(self, value: float) -> float:
        """The sum of a number over the processes that share a model."""
        summed = torch.tensor([value], dtype=torch.float64, device=self.sharding.device)
        distributed.all_reduce(summed, group=self._group)
        return float(summed)

    # Computing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the model computes: all processes, each with as many passes (see `in_step`)."""
        self._depth += 1
        try:
            if self._depth == 1:
                self._gather()
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._scatter()

    def _gather(self) -> None:
        for end in self._ends:
            dtype = self.sharding.dtype if end.weight.is_floating_point() else None
            value = self.whole(end.weight.detach().to_local(), end.weight.shape, dtype)
            copy = nn.Parameter(value, requires_grad=end.sum is not None)
            if end.sum is not None:
                copy.copy_of = end.sum
                copy.register_post_accumulate_grad_hook(adder(end.sum))
            for module, name in end.slots:
                module._parameters[name] = copy

    def _scatter(self) -> None:
        for end in self._ends:
            for module, name in end.slots:
                module._parameters[name] = end.weight
        if not self.sharding.reshard_after_forward:
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Gives `parameters` the gradients of the step, summed over processes; all processes call it."""
        sums = {id(end.weight): end.sum for end in self._ends if end.sum is not None}
        for own, weight in zip(self.parameters, self._weights, strict=True):
            if own.data_ptr() != weight.to_local().data_ptr():
                raise RuntimeError("FSDP2 moved a weight: the optimizer would change a copy of it")
            if (summed := sums.get(id(weight))) is not None:
                own.grad = self._reduced(summed, weight.shape, own)
            else:
                own.grad = None if weight.grad is None else weight.grad.to_local()
                weight.grad = None

    def _reduced(self, summed: _Sum, shape: Sequence[int], own: torch.Tensor) -> torch.Tensor:
        """This process's part of the sum of everybody's gradients of an end."""
        rows = -(-shape[0] // self._count)
        given, summed.grad = summed.grad, None
        if given is None or len(given) < rows * self._count:
            whole = torch.zeros(rows * self._count, *shape[1:], dtype=own.dtype, device=self.sharding.device)
            if given is not None:
                whole[: shape[0]] = given
            given = whole
        part = given.new_empty(rows, *shape[1:])
        distributed.reduce_scatter_single(part, given, group=self._group)
        if self._replicas is not None:
            distributed.all_reduce(part, group=self._replicas)
        return part[: len(own)]


def shards_of(model: nn.Module) -> Shards | None:
    """A model's shards; None where it is whole."""
    return getattr(model, "shards", None)


def gathered(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, a model that may be sharded computes."""
    shards = shards_of(model)
    return nullcontext() if shards is None else shards.gathered()


def in_step(model: nn.Module, passes: Sequence[_Some]) -> list[_Some | None]:
    """The forward passes over a model, on all processes as many where it is sharded: None stands for one too few."""
    if shards_of(model) is None:
        return list(passes)
    most = torch.tensor([len(passes)], device=shards_of(model).sharding.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return [*passes, *[None] * (int(most) - len(passes))]


def any_process(value: bool, device: torch.device) -> bool:
    """Whether it is true for any process."""
    flag = torch.tensor([int(value)], device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


# Making one --------------------------------------------------------------------------------------------------------


def shard(model: PreTrainedModel, sharding: Sharding) -> None:
    """Shards a model in place; all processes call it.

    The first process has the weights, which it gives away one after the other: no process ever has a second copy of
    all of them. The others have the same model without values, on the meta device (or with them, which are not used).

    Raises:
        ValueError: when the model cannot be sharded, or processes have different ones.
    """
    blocks = blocks_of(model)
    _refuse(model, blocks)
    mesh = _mesh(sharding.device.type, sharding.hybrid)
    shards = Shards(model, sharding, mesh)
    sources = {name: weight.data for name, weight in model.named_parameters()}
    _refuse_different({name: (tuple(one.shape), str(one.dtype)) for name, one in sources.items()})
    tensors = list(_tensors(model))
    slots = _take_weights(model)
    inner = {id(weight) for block in blocks for weight in block.parameters()}
    ends = {name: weight for name, weight in model.named_parameters() if id(weight) not in inner}
    _fully_shard(model, blocks, set(ends.values()), mesh, sharding)
    for name in list(sources):
        whole = _received(sources.pop(name), sharding.device)
        if name in ends:
            end = _end(shards, ends[name], whole)
            end.slots = slots[id(ends[name])]
            for module, key in end.slots:
                module._parameters[key] = end.weight
            shards._ends.append(end)
        else:
            model.get_parameter(name).detach().to_local().copy_(shards.part(whole))
    for owner, key, tensor in tensors:
        owner[key] = _received(tensor, sharding.device)
    shards._weights = [weight for weight in model.parameters() if weight.requires_grad]
    shards.parameters = [nn.Parameter(weight.detach().to_local()) for weight in shards._weights]
    model.shards = shards
    # FSDP2 looks at the weights in its first pass, and must see which are trained: a reference may come first, that is
    # this model with its adapter off.
    with torch.no_grad(), shards.gathered():
        branch_logps(model, [NOTHING])


def _end(shards: Shards, empty: nn.Parameter, whole: torch.Tensor) -> _End:
    part = DTensor.from_local(
        shards.part(whole).clone(), shards.mesh, shards.placements, run_check=False, shape=whole.shape,
        stride=whole.stride(),
    )  # fmt: skip
    weight = nn.Parameter(part, requires_grad=empty.requires_grad)
    return _End(weight, [], _Sum(weight.dtype) if weight.requires_grad else None)


@functools.cache  # for policy and reference one: each has communicators of its own
def _mesh(kind: str, hybrid: bool) -> DeviceMesh:
    """All processes, or hosts by processes of a host."""
    count = distributed.get_world_size()
    if not hybrid:
        return init_device_mesh(kind, (count,), mesh_dim_names=("shard",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count % local:
        raise ValueError(
            f"distributed.hybrid=true needs as many processes on every host, and {count} are not a multiple of the "
            f"{local} of this one: set distributed.hybrid=false."
        )
    return init_device_mesh(kind, (count // local, local), mesh_dim_names=("replicate", "shard"))


def _fully_shard(
    model: PreTrainedModel, blocks: Sequence[nn.Module], ends: set[nn.Parameter], mesh: DeviceMesh, sharding: Sharding
) -> None:
    """FSDP2 on every block, and on what holds them, for whose weights it does not care."""
    low = sharding.dtype if sharding.dtype in (torch.bfloat16, torch.float16) else None
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(low, sharding.reduce_dtype, cast_forward_inputs=False),
        "reshard_after_forward": sharding.reshard_after_forward,
        "offload_policy": CPUOffloadPolicy(sharding.device.type == "cuda") if sharding.cpu_offload else OffloadPolicy(),
    }
    # A lean norm's output is a view of its own memory; nothing is ever added to it in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    backbone = model.base_model if model.base_model is not model else model.get_decoder()
    for module in (*blocks, backbone):
        fully_shard(module, ignored_params=ends, **options)
        module.set_gradient_divide_factor(1.0)  # losses are divided by the count of the whole step already
        module.set_force_sum_reduction_for_comms(True)
    backbone.set_reduce_scatter_unused_params(True)  # of experts, say: not every process has a token for each
    for block in blocks:
        block.to_empty(device="cpu" if sharding.cpu_offload else sharding.device)


def _tensors(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Buffers, and what else modules keep (frequencies of rotary positions): where they are, and their values."""
    for module in model.modules():
        for owner in (module._buffers, module.__dict__):
            yield from ((owner, key, value) for key, value in owner.items() if isinstance(value, torch.Tensor))


def _take_weights(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Leaves the model without values; returns where each weight belongs, by its id from now on."""
    empty: dict[nn.Parameter, nn.Parameter] = {}
    slots: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if weight not in empty:
                    empty[weight] = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
                slots.setdefault(id(empty[weight]), []).append((module, name))
                module._parameters[name] = empty[weight]
    return slots


def _received(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The first process's tensor, on every process."""
    first = distributed.get_rank() == 0
    whole = tensor.to(device).contiguous() if first else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    distributed.broadcast(whole, src=0)
    return whole


def _refuse(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> None:
    owners: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for weight in block.parameters():
            if owners.setdefault(id(weight), number) != number:
                raise ValueError(f"{type(model).__name__} shares weights between its blocks: set distributed=ddp.")
    outside = {id(weight) for module in model.modules() for weight in module._parameters.values()} - owners.keys()
    if not outside:
        raise ValueError(f"{type(model).__name__} has no weights outside of its blocks: set distributed=ddp.")
    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            raise ValueError(f"{name} is a single number, which cannot be sharded: set distributed=ddp.")


def _refuse_different(signature: dict[str, Any]) -> None:
    """Before anything is sent: what one process sends, the others must expect."""
    everybody: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everybody, signature)
    for other in everybody:
        if list(other.items()) != list(everybody[0].items()):
            name = next((name for name in other if other[name] != everybody[0].get(name)), "their order")
            raise ValueError(f"processes have different models ({name} differs): set distributed=ddp.")
