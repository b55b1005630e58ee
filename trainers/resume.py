"""What going on with a training needs beside its weights: packed into a checkpoint's resume.pt, and taken up again.

Everything that the next step depends on is either a function of the config and the step's number (the data's order,
mismatched responses, the learning rate) or in here. So a run that is taken up computes the bits that it would have
computed, on the same hardware with the same number of threads.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import OmegaConf

from models.checkpoints import RESUME, copied, read_loss_state, read_policy, read_safely, step_folders
from models.lora import adapter_weights, has_adapter
from trainers import distributed

if TYPE_CHECKING:
    from models.sharding import Shards
    from trainers.basic import BasicTrainer
    from trainers.metrics import Averages

log = logging.getLogger(__name__)

FORMAT = 2
"""Of resume.pt. A version that reads another one says so here."""
CONTENTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step_idx", "examples", "steps", "metrics_bytes", "threads"), (int,)),
    **dict.fromkeys(("data", "config", "torch"), (str,)),
    **dict.fromkeys(("optimizer", "averages"), (dict,)),
    **dict.fromkeys(("passed", "random"), (list,)),
    "reference": (dict, NoneType),
    "best": (float, int, NoneType),
    "best_examples": (int, NoneType),
    "wandb": (str, NoneType),
}
"""What resume.pt has to hold, and of which types."""
DECIDE_BEST = ("keep_best", "n_eval_examples")
"""Keys without which values of the best checkpoint's metric cannot be compared."""
OTHER_WAYS = (
    "Go on from another checkpoint with resume=FOLDER, train from the beginning with resume=never, or take over the "
    "weights alone of a checkpoint in a new run: exp_name=NAME model.load_from=FOLDER/policy.pt."
)


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    Attributes:
        folder: a step-N, or a link to one.
        state: the contents of its resume.pt.
        own: it is one of this run, not of another one.
    """

    folder: Path
    state: dict[str, Any]
    own: bool = True

    @property
    def examples(self) -> int:
        """Training examples that were seen."""
        return self.state["examples"]

    @property
    def owed_since(self) -> int | None:
        """Examples before a step after which something was due that is not done yet; None where all is done."""
        return self.state.get("owed_since")


def find_resume(folder: Path) -> Path | None:
    """The checkpoint that a run goes on from: LATEST, or where that is none, the newest step-N that can be resumed."""
    latest = [folder / "LATEST"] if own_latest(folder) else []
    found = (path for path in (*latest, *step_folders(folder)) if (path / RESUME).is_file())
    return next(found, None)


def own_latest(folder: Path) -> bool:
    """Whether a run's LATEST is one of its own checkpoints: a link may have been made to lead elsewhere."""
    latest = folder / "LATEST"
    return not latest.is_symlink() or (folder / latest.readlink()).parent.resolve() == folder.resolve()


def checkpoint_in(folder: Path) -> Path:
    """The folder of a checkpoint itself, or of a run the checkpoint that it would go on from."""
    return folder if (folder / RESUME).is_file() else find_resume(folder) or folder


def read_resume(folder: Path, own: bool = True) -> Resume:
    """Reads a checkpoint's resume.pt.

    Raises:
        ValueError: it is missing, damaged, would execute code or has another format; the message says what to do.
    """
    if not folder.exists():
        there = [path.name for path in step_folders(folder.parent)]
        beside = f" Beside it are {', '.join(there)}." if there else ""
        raise ValueError(f"there is no {folder}: resume is auto, never, or the folder of a checkpoint.{beside}")
    if folder.is_file():
        raise ValueError(f"{folder} is a file: resume takes the folder that it is in, {folder.parent}.")
    if not (folder / RESUME).is_file():
        raise ValueError(f"{folder} has no {RESUME}, so no run can go on from it. {OTHER_WAYS}")
    try:
        state = read_safely(folder / RESUME)
    except ValueError as error:
        raise ValueError(f"{error} {OTHER_WAYS}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ValueError(
            f"{folder / RESUME} has format {found}, and this version of Aureole reads format {FORMAT}. {OTHER_WAYS}"
        )
    wrong = [key for key, kinds in CONTENTS.items() if not isinstance(state.get(key, ...), kinds)]
    if not isinstance(state.get("owed_since"), int | NoneType):  # checkpoints of before have none
        wrong.append("owed_since")
    if wrong:
        raise ValueError(f"{folder / RESUME} is damaged: {', '.join(wrong)} missing or of a wrong type. {OTHER_WAYS}")
    return Resume(folder, state, own)


def refuse_shorter(resume: Resume, sizes: Sequence[int]) -> None:
    """Refuses a run that would end before the place from where it goes on.

    Args:
        sizes: examples of each optimizer step that the run has now.

    Raises:
        ValueError: naming the keys.
    """
    steps, examples = resume.state["step_idx"], resume.examples
    if steps > len(sizes) or examples > sum(sizes):
        raise ValueError(
            f"{resume.folder} is after {steps} steps with {examples} examples, and n_epochs and n_examples end the run "
            f"after {len(sizes)} steps with {sum(sizes)}: raise them."
        )


@dataclass(frozen=True)
class Owed:
    """What was due after a step and was not done to its end, since the run was told to stop.

    Attributes:
        before: examples before the step.
        metrics_bytes: length of metrics.jsonl before what was due.
    """

    before: int
    metrics_bytes: int


def pack(
    trainer: BasicTrainer,
    optimizer: torch.optim.Optimizer,
    averages: Averages,
    data: str,
    owed: Owed | None = None,
) -> dict[str, Any]:
    """The contents of resume.pt. All processes call it.

    Args:
        averages: of the steps since the last record of metrics.
        data: the digest of the training data.
        owed: what the run does first when it goes on.
    """
    averages.settle()
    reference, log = trainer.computer.reference, trainer.metrics_log
    metrics_bytes = 0 if log is None else log.bytes_on_disk()
    return {
        "format": FORMAT,
        "step_idx": trainer.step_idx,
        "examples": trainer.examples,
        "steps": len(trainer.train_loader.sizes()),
        "best": trainer.checkpoints.best,
        "best_examples": trainer.checkpoints.best_examples,
        "optimizer": _whole(optimizer, trainer.computer.shards),
        "averages": averages.state(),
        "passed": [int(count) for count in trainer.computer.passed],
        "random": distributed.gather_objects(_random_state(trainer.policy.device)),
        "reference": None if reference is None else _of_all(reference.state()),
        "metrics_bytes": metrics_bytes if owed is None else owed.metrics_bytes,
        "owed_since": None if owed is None else owed.before,
        "wandb": None if log is None else log.wandb_id,
        "data": data,
        "loader": trainer.train_loader.state(trainer.step_idx),
        "config": OmegaConf.to_yaml(trainer.config, resolve=True),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def refuse_unfit(trainer: BasicTrainer, resume: Resume, data: str) -> None:
    """Refuses a checkpoint that the run cannot go on from, before the run in the folder is touched.

    Args:
        data: the digest of the training data.

    Raises:
        ValueError: the training data or the weights are others, or the weights cannot be read.
    """
    folder = resume.folder
    if resume.state["data"] != data:
        raise ValueError(
            f"{folder} was trained on other data: the files of the data sets, or what is made of them, have changed "
            "since. Restore them, or start another run: exp_name=NAME, with model.load_from for the weights."
        )
    try:
        state = read_policy(folder / "policy.pt")["state"]
    except ValueError as error:
        raise ValueError(f"{error} {OTHER_WAYS}") from error
    own = _weights(trainer)
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ValueError(f"{folder / 'policy.pt'} has other weights than this run's model: is it of another run?")


def take_up(trainer: BasicTrainer, optimizer: torch.optim.Optimizer, averages: Averages, resume: Resume) -> None:
    """Puts a trainer back to where it was when the checkpoint was written, which `refuse_unfit` has seen.

    Raises:
        ValueError: the optimizer is another one.
    """
    folder, state = resume.folder, resume.state
    _load_weights(trainer, folder)
    trainer.load_state_of_loss(read_loss_state(folder))
    try:
        optimizer.load_state_dict(_own(state["optimizer"], optimizer, trainer.computer.shards))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder / RESUME} holds the optimizer's state of another model ({error}).") from error
    trainer.step_idx, trainer.examples = state["step_idx"], state["examples"]
    if state.get("loader") is not None:
        trainer.train_loader.take_up(state["loader"])
    if resume.own:
        trainer.checkpoints.go_back(folder, state["examples"], *_best(trainer, state))
    averages.load_state(state["averages"])
    trainer.computer.passed[:] = state["passed"]
    states = state["random"]
    if len(states) == distributed.processes():
        _set_random_state(states[distributed.rank()], trainer.policy.device)
    if trainer.computer.reference is not None and state["reference"] is not None:
        values = state["reference"]["values"]
        if len(values) == distributed.processes():  # each knows what it knew; of another number all know everything
            values = values[distributed.rank() : distributed.rank() + 1]
        trainer.computer.reference.load_state(state["reference"] | {"values": values})


def _of_all(reference: dict[str, Any]) -> dict[str, Any]:
    """A reference's state with the values of all processes, in order of rank: each has those of its rows."""
    everybody = distributed.gather_objects(reference["values"])
    return reference | {"values": [values for some in everybody for values in some]}


def _best(trainer: BasicTrainer, state: dict[str, Any]) -> tuple[float | None, int | None]:
    """The best value so far and its examples; none where what is measured has changed since."""
    before = OmegaConf.create(state["config"])
    changed = [key for key in DECIDE_BEST if OmegaConf.select(before, key) != trainer.config[key]]
    if not changed:
        return state["best"], state["best_examples"]
    if state["best"] is not None and distributed.rank() == 0:
        log.info("%s changed: which checkpoint is BEST is found out anew", " and ".join(changed))
    return None, None


def _weights(trainer: BasicTrainer) -> dict[str, torch.Tensor]:
    """Those that a checkpoint has."""
    return adapter_weights(trainer.policy) if has_adapter(trainer.policy) else trainer.policy.state_dict()


@torch.no_grad()
def _load_weights(trainer: BasicTrainer, folder: Path) -> None:
    own, state = _weights(trainer), read_policy(folder / "policy.pt")["state"]
    shards = trainer.computer.shards
    for name, weight in own.items():
        if shards is None:
            weight.copy_(state[name])
        else:
            shards.put(weight, state[name])


def _whole(optimizer: torch.optim.Optimizer, shards: Shards | None) -> dict[str, Any]:
    """An optimizer's state as one process has it; of a sharded model the first process gets it, in memory of its own.

    The others get None for each tensor. All processes call it.
    """
    state = optimizer.state_dict()
    if shards is None:
        return state

    def whole(parameter: torch.Tensor, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shape = shards.shape_of(parameter)
        if shape is None or value.shape != parameter.shape:  # of what is not sharded; a number of steps
            return value.detach().to("cpu", copy=True)
        return shards.saved(value, shape)

    return state | {"state": _with_parameters(whole, state["state"], optimizer)}


def _own(state: dict[str, Any], optimizer: torch.optim.Optimizer, shards: Shards | None) -> dict[str, Any]:
    """The reverse: what an optimizer takes up, from what a checkpoint has."""
    if shards is None:
        return copied(state)

    def own(parameter: torch.Tensor, value: Any) -> Any:
        shape = shards.shape_of(parameter)
        is_cut = isinstance(value, torch.Tensor) and shape is not None and value.ndim > 0
        if is_cut and value.shape != shape:
            raise ValueError(f"{tuple(value.shape)} in the place of {tuple(shape)}")
        return copied(shards.part(value) if is_cut else value)

    return state | {"state": _with_parameters(own, state["state"], optimizer)}


def _with_parameters(
    change: Callable[[torch.Tensor, Any], Any], states: dict[int, dict[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """The states of parameters, which are numbered, with `change(parameter, value)` for each value."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {key: change(parameters[number], value) for key, value in states[number].items()}
        for number in sorted(states)
    }


def _random_state(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
