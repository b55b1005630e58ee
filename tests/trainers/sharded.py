"""What `test_sharding.py` compares: by one process, and with sharded models by some gloo processes together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dataloaders.pretraining import PretrainingDataLoader
from launch.compose import compose
from launch.train import run
from models.lora import Adapter, Base, add_adapter, without_adapter
from models.reference import Reference
from models.sharding import Sharding, shard
from tests import tiny
from tests.trainers import processes_worker, steps
from trainers import distributed
from trainers.basic import BasicTrainer
from trainers.metrics import Averages, MetricsLog
from trainers.resume import read_resume

COUNTS = (2, 3)
FEW = ("sft", "dpo", "kto", "kto-simple", "aot", "mpo", "grpo", "rrhf", "tokens", "state")
CASES = {
    **{(name, 7): 2 for name in processes_worker.CASES},
    **{(name, 2): 3 for name in FEW},
}
"""Loss and rows of a step, and by how many processes it is computed: 7 rows by 2, and by 3 so few that one has none."""
OPTIONS: dict[str, dict[str, Any]] = {
    "kept": {"reshard_after_forward": False},
    "offloaded": {"cpu_offload": True},
    "hybrid": {"hybrid": True},
    "gpt2": {},
    "gemma2": {},
    "bfloat16": {"compute": torch.bfloat16},
    "reduced": {"reduce_dtype": torch.bfloat16},
    "recomputed": {"recomputed": True},
}
"""Other ways to shard, other architectures, precisions, and activation checkpointing; all of KTO."""
TRAININGS = ("sft", "dpo", "kto", "bco", "aot", "ppo", "grpo", "rrhf", "mpo", "awr", "lora", "following")
"""A loss of each family, an adapter, and a reference that follows the policy."""
REPLICAS = {"dpo": (2, 3), "kto": (2,), "awr": (2,)}
"""What replicas train too, and how many of them."""
BY_THREE = ("dpo", "kto", "lora")
RESUMED = ("bco", "following")
STEPS, HALF = 10, 5
RUN = [
    "model=tiny", "loss=kto", "datasets.everyday.n_examples=10", "model.batch_size=5", "n_eval_examples=5",
    "exp_name=run", "lr=1e-3", "device=cpu",
]  # fmt: skip
"""A whole run as a command has it, of a few steps."""


def sharding(dtype: torch.dtype, **options: Any) -> Sharding | None:
    """None for one process."""
    return Sharding(torch.device("cpu"), dtype, **options) if distributed.processes() > 1 else None


def whole(trainer: BasicTrainer, parts: list[torch.Tensor]) -> torch.Tensor:
    """One vector of tensors that belong to the policy's trained weights, which may be parts of them."""
    shards = trainer.computer.shards
    if shards is not None:
        parts = [shards.whole(part, shards.shape_of(own)) for part, own in zip(parts, shards.parameters, strict=True)]
    return torch.cat([part.detach().reshape(-1) for part in parts]).clone()


def trained(trainer: BasicTrainer) -> list[torch.Tensor]:
    """The policy's trained weights, or this process's parts of them."""
    shards = trainer.computer.shards
    if shards is not None:
        return shards.parameters
    return [weight for weight in trainer.policy.parameters() if weight.requires_grad]


def step(
    name: str, count: int, family: str = "llama", compute: torch.dtype = torch.float64, recomputed: bool = False,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Gradient and training metrics of a step, and the evaluation's metrics."""
    kind, loss = processes_worker.CASES[name]
    rows = processes_worker.rows_of(name, count)
    low = compute == torch.bfloat16
    dtype = torch.float32 if low else compute
    how = sharding(compute, **options)
    policy = tiny.tiny_model(family, dtype=dtype)
    if recomputed:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    if how is not None:
        shard(policy, how)
    whole_precision = None if how is None else replace(how, dtype=dtype)
    reference = Reference(lambda: tiny.tiny_model(family, 1, dtype), sharding=whole_precision)
    trainer = tiny.trainer(
        kind, loss, policy=policy, reference=reference, eval_rows=rows, model__tokens_per_microbatch=60,
        model__policy_dtype="bfloat16" if low else "float32",
    )  # fmt: skip
    policy.train(recomputed)  # nothing is recomputed in eval mode
    averages = Averages()
    result = trainer.computer.gradients(trainer.own(rows))
    trainer._collect(result, averages)
    trainer.remember(**trainer.computer.everywhere(result))
    train = averages.means() | {name: value.item() for name, value in trainer.loss_state.items()}
    gradients = [weight.grad for weight in trained(trainer)]
    return {"gradient": whole(trainer, gradients), "train": train, "eval": trainer.evaluate()}


def make(name: str, folder: Path, replicas: bool = False) -> BasicTrainer:
    """A trainer of ten steps that logs each and saves after five and ten.

    At its learning rate weights whose gradient is rounding alone, which AdamW makes a whole step of, stay below 1e-5.
    """
    loss = {"lora": "kto", "following": "dpo"}.get(name, name)
    kind = processes_worker.CASES[loss][0]
    on_documents = isinstance(steps.LOADERS[loss], type) and issubclass(steps.LOADERS[loss], PretrainingDataLoader)
    loader = tiny.loader(steps.LOADERS[loss], 5 * STEPS if on_documents else 12, batch_size=5, n_epochs=4)
    sizes = loader.sizes()
    loader.n_examples = sum(sizes[:STEPS])
    how = None if replicas else sharding(torch.float32)
    policy = tiny.tiny_model()
    reference = Reference(lambda: tiny.tiny_model(seed=1), sharding=how)
    if name == "lora":
        add_adapter(policy, Adapter(3, 6.0), Base("random", None, 0, "none"), torch.float32, 0)
        reference = Reference(lambda: policy, sharding=how)
        reference.borrow(policy, lambda: without_adapter(policy))
    if how is not None:
        shard(policy, how)
    folder.mkdir(parents=True, exist_ok=True)
    return tiny.trainer(
        kind, loss, policy=policy, reference=reference, train_loader=loader, eval_rows=loader.fixed_rows(7),
        folder=folder, metrics_log=MetricsLog(folder) if distributed.rank() == 0 else None, lr=1e-4, eval_every=10**6,
        save_every=sum(sizes[:HALF]), keep_last=2, model__tokens_per_microbatch=80,
        **({"loss__sync_reference": True} if name == "following" else {}),
    )  # fmt: skip


def train(name: str, folder: Path, start: Path | None = None, replicas: bool = False) -> None:
    """Trains, from the checkpoint in the middle of another training if one is named.

    By then every example was seen, by one process or another, so that nobody has to compute its reference value again.
    """
    trainer = make(name, folder, replicas)
    middle = None
    if start is not None:
        latest = (start / "LATEST").resolve().name
        middle = next(file.parent for file in start.glob("step-*/resume.pt") if file.parent.name != latest)
    trainer.train(None if middle is None else replace(read_resume(middle), own=False))
    if start is not None and name != "following":
        computed = distributed.total(trainer.computer.reference.cache.misses)
        assert not computed, f"{computed} reference values were computed again after a resume"
    distributed.barrier()
    if trainer.metrics_log is not None:
        trainer.metrics_log.close()


def whole_run(folder: Path, *more: str) -> None:
    """The command RUN, sharded where there are processes."""
    how = ["distributed=fsdp"] if distributed.processes() > 1 else []
    run(compose([*RUN, f"cache_dir={folder}", *how, *more]))
    distributed.barrier()


def everything(folder: Path) -> dict[str, Any]:
    """Steps as tensors, trainings in folders; those of one process lie beside, in `alone`."""
    count, alone = distributed.processes(), folder.parent / "alone"
    made: dict[str, Any] = {
        f"{name} {rows}": step(name, rows) for (name, rows), by in CASES.items() if count in (1, by)
    }
    for name, options in OPTIONS.items():
        if count < 3:
            made[name] = step("kto", 7, name if name.startswith("g") else "llama", **options)
    for name in TRAININGS:
        if count < 3 or name in BY_THREE:
            train(name, folder / name)
    for name in RESUMED:
        if count == 3:  # what one process began, and what two did
            train(name, folder / f"{name} alone", alone / name)
            train(name, folder / f"{name} two", folder.parent / "2" / name)
    if count < 3:
        whole_run(folder)
    if count == 2:
        whole_run(folder, "exp_name=loaded", f"model.load_from={alone / 'run' / 'LATEST' / 'policy.pt'}")
    return made
