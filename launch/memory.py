"""mode=memory: what a training takes of each process's memory, reckoned from the model's shape; nothing is loaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from launch.combinations import check_settings
from models.footprint import Parts, adapter_size, parts_of, transient_bytes
from trainers.optimization import OPTIMIZER_BYTES

GRADIENT_BUCKET = 2**26
"""Numbers that replicas sum at a time (see `trainers.distributed.sum_gradients`)."""
SIZES = (24, 40, 80)
"""GiB of what people have."""
WIDTH = 62
"""Of the first column of the table of what could be chosen."""
NF4 = 0.53
"""Bytes of a weight in 4 bits, with the scale of each 64."""
KEPT_FREE = 0.08
"""Of a device: libraries, and what an allocator cannot use."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process by what takes them, in the order in which they are shown.

    Attributes:
        reference: the reference model, which is not loaded once its values are cached.
        passes: activations and what the head needs, at the peak of a pack.
        exchanged: with sharding, weights and gradients that are whole for a moment; else gradients being summed.
        copy: in the CPU's memory of the first process, of what is being written in the background, or gathered for it.
        offloaded: in the CPU's memory of each process: weights, gradients and optimizer state of the blocks.
    """

    weights: float
    working_copy: float
    gradients: float
    optimizer: float
    reference: float
    exchanged: float
    passes: float
    copy: float
    offloaded: float = 0.0

    @property
    def total(self) -> float:
        """All of the device."""
        own = (self.weights, self.working_copy, self.gradients, self.optimizer)
        return sum(own) + self.reference + self.exchanged + self.passes


def estimate(config: DictConfig) -> Estimate:
    """What a config takes, on each of `distributed.processes`.

    Raises:
        ValueError: distributed.hybrid without the number of processes of a host.
    """
    import torch

    model, shape = config.model, config.model.shape
    size = _bytes(model.policy_dtype)
    dtype = torch.bfloat16 if size == 2 else torch.float32
    parts, adapter = parts_of(shape), model.lora.rank is not None
    count, shards = _processes(config)
    sharded = config.distributed.name == "fsdp" and count > 1
    inside = parts.block * parts.blocks
    trained = adapter_size(shape, model.lora.rank) if adapter else parts.all
    frozen = inside * (NF4 if model.lora.quantize is not None else size) if adapter else 0.0
    borrowed = adapter and model.reference_dtype == model.policy_dtype
    other = _bytes(model.reference_dtype) if config.loss.use_reference_model and not borrowed else 0
    moments = OPTIMIZER_BYTES[config.optimizer]
    trained_inside = trained if adapter else inside
    of_blocks = (4 * trained_inside + frozen, 4 * trained_inside, moments * trained_inside, other * inside)
    outside = (size if adapter else 4, *((0, 0) if adapter else (4, moments)), other)
    offloads = sharded and config.distributed.get("cpu_offload", False)
    weights, gradients, optimizer, reference = (
        ((0 if offloads else block) + end * parts.outside) / shards
        for block, end in zip(of_blocks, outside, strict=True)
    )
    return Estimate(
        weights=weights,
        working_copy=0.0 if sharded or size == 4 else size * trained,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        exchanged=_exchanged(config, parts, trained, count, size),
        passes=transient_bytes(shape, model.tokens_per_microbatch, dtype, model.activation_checkpointing),
        copy=(4 + moments) * trained if config.save_in_background or sharded else 0.0,
        offloaded=sum(of_blocks) / shards if offloads else 0.0,
    )


def _processes(config: DictConfig) -> tuple[int, int]:
    """How many there are, and over how many of them weights are sharded: with hybrid, over those of a host."""
    options = config.distributed
    count = max(1, options.processes or 1)
    if options.name != "fsdp":
        return count, 1
    if not options.get("hybrid", False):
        return count, count
    local = options.get("processes_per_host")
    if local is None or count % local:
        raise ValueError(
            "mode=memory with distributed.hybrid=true: set distributed.processes_per_host, over which it shards, to a "
            f"part of distributed.processes={count}."
        )
    return count, local


def _exchanged(config: DictConfig, parts: Parts, trained: int, count: int, size: int) -> float:
    """Bytes of what processes exchange at a time, `size` being those of a number in passes.

    Of blocks, FSDP2 has two gathered and the next one on its way, and the gradient of one made and another one's being
    summed; of what is outside of them, weights and gradients are whole. Replicas sum gradients in flat buckets.
    """
    if count == 1:
        return 0.0
    gradients = 0 if config.model.lora.rank is not None else 4
    if config.distributed.name != "fsdp":
        largest = int(config.model.shape.vocabulary) * int(config.model.shape.hidden_size)
        return 4.0 * min(trained, max(GRADIENT_BUCKET, largest if gradients else 0))
    kept = 3 * parts.block if config.distributed.get("reshard_after_forward", True) else parts.block * parts.blocks
    return (kept + parts.outside) * size + gradients * (2 * parts.block + parts.outside)


def report(config: DictConfig) -> str:
    """What mode=memory prints: the parts, and what else could be chosen."""
    names = {
        "weights": "weights in float32" if config.model.lora.rank is None else "weights, and an adapter",
        "working_copy": "their copy in bfloat16",
        "gradients": "gradients in float32",
        "optimizer": f"state of {config.optimizer}",
        "reference": "the reference (nothing once its values are cached)",
        "exchanged": "what processes gather or sum at a time",
        "passes": f"a pass over {config.model.tokens_per_microbatch} tokens",
    }
    found = estimate(config)
    count, shards = _processes(config)
    kind = f"{count} x distributed={config.distributed.name}"
    if config.distributed.get("hybrid", False):
        kind += f", sharded over the {shards} of a host"
    unit, size = ("GiB", 2**30) if found.total >= 2**30 else ("MiB", 2**20)
    lines = [f"{config.model.name}, loss={config.loss.name}, {kind}: {unit} a process"]
    lines += [f"  {getattr(found, key) / size:8.2f}  {name}" for key, name in names.items() if getattr(found, key)]
    lines.append(f"  {found.total / size:8.2f}  in all")
    if found.offloaded:
        lines.append(f"  {found.offloaded / size:8.2f}  in its CPU memory, of blocks (distributed.cpu_offload)")
    if found.copy:
        lines.append(f"  {found.copy / size:8.2f}  in the first process's CPU memory while a checkpoint is written")
    lines += ["", f"{f'{unit} a process':<{WIDTH}}{'replicas':>10}{'sharded':>10}"]
    for name, changes in _alternatives(config).items():
        cells = [_cell(_changed(config, kind, changes), size) for kind in ("ddp", "fsdp")]
        lines.append(f"{name:<{WIDTH}}" + "".join(f"{cell:>10}" for cell in cells))
    sizes = ", ".join(map(str, SIZES[:-1])) + f" and {SIZES[-1]} GiB"
    fits = next((card for card in SIZES if found.total < (1 - KEPT_FREE) * card * 2**30), None)
    room = f"{fits} GiB is the smallest of {sizes} with room for it" if fits else f"None of {sizes} has room for it"
    lines += [
        "",
        f"{room}, {100 * KEPT_FREE:.0f} % left free." + ("" if fits else " The table has what could be chosen."),
    ]
    return "\n".join(lines)


def _alternatives(config: DictConfig) -> dict[str, dict[str, object]]:
    """What else could be chosen, each by itself: as it is written, and its settings. What is chosen is left out."""
    model = config.model
    found: dict[str, dict[str, object]] = {"as it is": {}}
    if model.policy_dtype == "float32":
        low: dict[str, object] = {"model.policy_dtype": "bfloat16", "model.reference_dtype": "bfloat16"}
        found[" ".join(f"{key}={value}" for key, value in low.items())] = low
    single: list[tuple[str, object]] = [
        ("model.tokens_per_microbatch", model.tokens_per_microbatch // 2),
        ("model.activation_checkpointing", True),
        ("distributed.cpu_offload", True),
    ]
    for key, value in single:
        if OmegaConf.select(config, key) != value:
            found[f"{key}={str(value).lower()}"] = {key: value}
    for quantize in (None, "nf4"):
        name = "model.lora.rank=16" + (f" model.lora.quantize={quantize}" if quantize else "")
        found[name] = {"model.lora.rank": 16, "model.lora.quantize": quantize}
    return found


def _cell(config: DictConfig, size: int) -> str:
    """What a config takes, in units of so many bytes; a dash for one that would be refused."""
    try:
        check_settings(config, "train.py")
    except ValueError:
        return "-"
    if config.distributed.name == "ddp" and config.distributed.get("cpu_offload", False):
        return "-"  # replicas keep everything where it is
    return f"{estimate(config).total / size:.1f}"


def _changed(config: DictConfig, kind: str, changes: dict[str, object]) -> DictConfig:
    changed = copy.deepcopy(config)
    for key, value in {"distributed.name": kind, **changes}.items():
        OmegaConf.update(changed, key, value)
    return changed


def _bytes(dtype: str) -> int:
    """Of a number; `auto` stands for bfloat16, which most accelerators have."""
    return 4 if dtype == "float32" else 2
