"""policy.pt and the folder around it: written whole or not at all, read without executing anything."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.files import first_sentence, unwritten

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSS_STATE = "loss_state.safetensors"
RESUME = "resume.pt"


def read_policy(path: str | Path) -> dict[str, Any]:
    """Reads {step_idx, state, metrics} with `weights_only=True`.

    Raises:
        ValueError: when the file would execute code, is damaged, or is not a policy.pt.
    """
    contents = read_safely(path)
    if not isinstance(contents, dict) or not isinstance(contents.get("state"), dict):
        raise ValueError(f"{path} is not a policy.pt: it has no weights under 'state'.")
    return contents


def read_safely(path: str | Path) -> Any:
    """What torch saved, with `weights_only=True`.

    Raises:
        ValueError: when the file would execute code, or is damaged.
    """
    import torch

    try:
        # Memory-mapped: a checkpoint larger than what is free is read as it is used.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: loading it would execute code, or it is not a checkpoint{what_it_asks_for(error)}."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({first_sentence(error)}). Is it a {Path(path).name}, and complete?"
        ) from error


def what_it_asks_for(error: Exception) -> str:
    """What a refused pickle would have called. No more of torch's message: it goes on to advise loading it unsafely."""
    called = re.search(r"GLOBAL (\S+)", str(error))
    return f" (it asks for {called[1]})" if called else ""


def load_errors() -> tuple[type[Exception], ...]:
    """What transformers lets through of weights that are damaged or would execute code."""
    from safetensors import SafetensorError

    return OSError, EOFError, pickle.UnpicklingError, SafetensorError


def read_loss_state(policy: str | Path) -> dict[str, torch.Tensor]:
    """What the loss remembered when a policy.pt was written; empty for a loss without a state."""
    from safetensors.torch import load_file

    path = Path(policy)
    path = path / LOSS_STATE if path.is_dir() else path.with_name(LOSS_STATE)
    return load_file(path) if path.exists() else {}


@dataclass
class Checkpoint:
    """A policy as it is at one moment, ready to be written.

    Args:
        step_idx: optimizer steps that it has made.
        metrics: what is known of it.
        loss_state: what the loss remembers; a loss that has a state gets it back by `read_loss_state`.
        resume: what going on with the training needs beside all that (see `trainers.resume`); None: nothing is kept.
        copied: the weights are a copy, so that training may go on while it is written.
        contents: `policy_contents` of a sharded model, which all processes have to make; it and `resume` are in memory
            of their own then.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    step_idx: int
    metrics: dict[str, float]
    loss_state: dict[str, torch.Tensor] = field(default_factory=dict)
    resume: dict[str, Any] | None = None
    copied: bool = False
    contents: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        keep = copied if self.copied else on_cpu
        self._loss_state = keep(self.loss_state)
        if self.contents is not None:
            keep = on_cpu
        weights = policy_contents(self.model) if self.contents is None else self.contents
        self._contents = keep({"step_idx": self.step_idx, "metrics": self.metrics, **weights})
        self.resume, self.contents = keep(self.resume), None

    def write(self, folder: Path) -> None:
        """Writes policy.pt, and what is needed to use it: the model's config, its generation settings, the tokenizer.

        Of a model with a LoRA adapter policy.pt holds the adapter alone.
        """
        import torch
        from safetensors.torch import save_file

        torch.save(self._contents, folder / "policy.pt")
        self.model.config.save_pretrained(folder)
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self._loss_state:
            own = {name: value.clone().contiguous() for name, value in self._loss_state.items()}
            save_file(own, folder / LOSS_STATE)
        if self.resume is not None:
            torch.save(self.resume, folder / RESUME)
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=1, sort_keys=True))


def on_cpu(value: Any) -> Any:
    """Dicts, lists and tuples with their tensors detached and on the CPU, whose memory they may share."""
    return _mapped(value, lambda tensor: tensor.detach().cpu())


def copied(value: Any) -> Any:
    """The same as `on_cpu`, in memory of its own; tensors that are the same one (tied weights) stay so."""
    copies: dict[tuple, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in copies or not tensor.numel():
            copies[place] = tensor.detach().to("cpu", copy=True)
        return copies[place]

    return _mapped(value, copy)


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(one, function) for one in value)
    return value


def policy_contents(model: PreTrainedModel) -> dict[str, Any]:
    """What policy.pt holds of a model: `state`, and of one with an adapter `adapter`.

    Of a sharded model all processes call it, and the first one gets the weights, the others None for each.
    """
    from models.lora import has_adapter, saved_adapter
    from models.sharding import shards_of

    if has_adapter(model):
        return saved_adapter(model)
    shards = shards_of(model)
    if shards is None:
        return {"state": dict(model.state_dict())}
    return {"state": shards.whole_weights(model.state_dict(keep_vars=True))}


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write into a temporary folder that then takes the name `target`, in one step.

    A reader of `target` finds a complete folder at any moment, the old one or the new one, except for the instant
    between two renames when an old one is replaced; a process killed in between leaves the old one under `.old`,
    which `repair_folder` puts back.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        os.chmod(temporary, 0o755)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
        raise unwritten(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def repair_folder(target: Path) -> None:
    """Puts the previous folder back when a process died between the two renames of `write_folder`."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    for leftover in target.parent.glob(f".{target.name}.*"):
        if leftover.is_symlink():
            leftover.unlink()
        shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder so that nobody finds a part of it under its name."""
    leaving = folder.with_name(f".{folder.name}.leaving")
    os.replace(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run, `step-N`, the newest first; what somebody put aside under another name is none."""
    steps = {path.name.removeprefix("step-"): path for path in folder.glob("step-*")}
    return [steps[name] for name in sorted(filter(str.isdecimal, steps), key=int, reverse=True)]


def examples_of(folder: Path) -> int:
    """The N of a checkpoint `step-N`."""
    return int(folder.name.removeprefix("step-"))


def switch_link(name: Path, target: Path) -> None:
    """Lets `name` be a link to the folder `target` beside it, in one step; what it was before is replaced."""
    temporary = name.with_name(f".{name.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    if name.is_dir() and not name.is_symlink():  # a run of an older version
        remove_folder(name)
    os.replace(temporary, name)
