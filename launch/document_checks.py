"""What can be wrong between the keys of a loss on documents; nothing is imported for it."""

from __future__ import annotations

from omegaconf import DictConfig, ListConfig


def check_revision(name: str, options: DictConfig) -> None:
    """Refuses a list of revisions that is not one for each repository.

    Raises:
        ValueError: naming the key and how many there are.
    """
    revision, hub = options.get("revision"), options.get("hub")
    if not isinstance(revision, ListConfig):
        return
    if not isinstance(hub, ListConfig):
        raise ValueError(f"datasets.{name}.revision={list(revision)}: {name} is one repository: give one revision.")
    if len(revision) != len(hub):
        raise ValueError(
            f"datasets.{name}.revision has {len(revision)} revisions, and datasets.{name}.hub has {len(hub)} "
            "repositories: give one for each, in their order, or one for all."
        )


def check_documents(config: DictConfig, script: str) -> None:
    """Refuses a loss on documents whose keys do not fit each other.

    Raises:
        ValueError: naming the keys and the fix.
    """
    loss, task, model = config.loss, config.task, config.model
    if script == "train.py" and "quantile" in loss and loss.get("mode") != "soft":
        if loss.threshold is None and loss.quantile is None:
            raise ValueError(
                f"loss={loss.name} must know which scores are good: set loss.threshold, or loss.quantile=0.5, say."
            )
        if loss.threshold is not None and loss.quantile is not None:
            raise ValueError(
                f"loss.threshold={loss.threshold:g} and loss.quantile={loss.quantile:g} say the same in two ways: set "
                "one of them to null."
            )
    if {"alpha", "weight_max"} <= {*loss} and not 0 < loss.alpha < 1:
        raise ValueError(
            f"loss.alpha={loss.alpha:g} must be above 0 and below 1: it weighs the likelihood against the value's "
            "error, and it needs both (loss=rwr has no value)."
        )
    if "aligned_prefix" in loss:
        if loss.aligned_prefix == loss.misaligned_prefix:
            raise ValueError(
                f"loss.aligned_prefix and loss.misaligned_prefix are both {loss.aligned_prefix!r}: the model could not "
                "tell them apart. Give each a name of its own."
            )
        if model.lora.rank is not None:
            raise ValueError(
                f"loss={loss.name} gives the model new tokens, whose embeddings an adapter does not train: leave out "
                "model.lora.rank."
            )
    if script == "train.py" and task.phase == "finetune" and model.load_from is None and model.name_or_path == "random":
        raise ValueError(
            f"task.phase=finetune goes on from a model, and model={model.name} begins with random weights: set "
            "model.load_from=RUN/LATEST/policy.pt, a run of loss=mle."
        )
