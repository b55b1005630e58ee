"""policy.pt and the folder around it: written whole or not at all, read without executing anything."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOSS_STATE = "loss_state.safetensors"


def read_policy(path: str | Path) -> dict[str, Any]:
    """Reads {step_idx, state, metrics} with `weights_only=True`.

    Raises:
        ValueError: when the file would execute code, is damaged, or is not a policy.pt.
    """
    import torch

    try:
        # Memory-mapped: a checkpoint larger than what is free is read as it is used.
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: loading it would execute code, or it is not a checkpoint{what_it_asks_for(error)}."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({_first(error)}). Is it a policy.pt, and complete?") from error
    if not isinstance(contents, dict) or not isinstance(contents.get("state"), dict):
        raise ValueError(f"{path} is not a policy.pt: it has no weights under 'state'.")
    return contents


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


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def save_policy(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    step_idx: int,
    metrics: dict[str, float],
    loss_state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes policy.pt, and what is needed to use it: the model's config, its generation settings, the tokenizer.

    Of a model with a LoRA adapter policy.pt holds the adapter alone. A loss that has a state gets it back by
    `read_loss_state`.
    """
    import torch
    from safetensors.torch import save_file

    torch.save({"step_idx": step_idx, "metrics": metrics, **_weights(model)}, folder / "policy.pt")
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if loss_state:
        own = {name: value.detach().cpu().clone().contiguous() for name, value in loss_state.items()}
        save_file(own, folder / LOSS_STATE)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    from models.lora import has_adapter, saved_adapter

    if has_adapter(model):
        return saved_adapter(model)
    return {"state": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}}


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write into a temporary folder that then takes the name `target`, in one step.

    A reader of `target` finds a complete folder at any moment, the old one or the new one, except for the instant
    between two renames when an old one is replaced; a process killed in between leaves the old one under `.old`,
    which `repair_folder` puts back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        os.chmod(temporary, 0o755)
        try:
            fill(temporary)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            free = shutil.disk_usage(temporary).free / 2**30
            raise OSError(
                f"{target} could not be written ({_first(error)}); {free:.2f} GiB are free there. What was there "
                "before is as it was."
            ) from error
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
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def repair_folder(target: Path) -> None:
    """Puts the previous folder back when a process died between the two renames of `write_folder`."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.replace(old, target)
    for leftover in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
