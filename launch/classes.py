"""The classes that a loss's YAML names, imported: whether they are of the right kinds, and fit each other."""

from __future__ import annotations

from omegaconf import DictConfig

from dataloaders.base import DataLoader
from dataloaders.resolve import did_you_mean, resolve
from dataloaders.row_facts import FACTS
from launch.loss_checks import missing_setting, silent_rows
from trainers.basic import BasicTrainer
from trainers.rehearsal import refuse_signatures, rehearse_class

FAMILIES = "PairedPreferenceTrainer, UnpairedPreferenceTrainer, ScoredTrainer and SFTTrainer"


def trainer_class(config: DictConfig) -> type[BasicTrainer]:
    """The loss's trainer, once it is known that its loss can be computed on what the loss's DataLoader gives.

    Raises:
        ValueError: naming the class and the fix.
    """
    kind = resolve(config.loss.trainer, "trainers")
    loader = resolve(config.loss.dataloader, "dataloaders")
    for key, value, base in (("trainer", kind, BasicTrainer), ("dataloader", loader, DataLoader)):
        if not isinstance(value, type) or not issubclass(value, base):
            raise ValueError(
                f"loss.{key}={config.loss[key]} is no subclass of {base.__module__}.{base.__name__}: derive it from "
                "that, or name another class."
            )
        roles = getattr(value, "roles", None)
        if not isinstance(roles, tuple | list) or not all(isinstance(role, str) for role in roles):
            families = f" or derive it from a family ({FAMILIES})" if key == "trainer" else ""
            raise ValueError(
                f'{value.__name__} has roles={roles!r}: name the responses of its rows, as in `roles = ("target",)`,'
                f"{families}."
            )
    if kind.couples(config.loss) and config.model.lora.rank is not None and config.model.lora.dropout:
        raise ValueError(
            f"{kind.__name__} couples examples, so each step computes log-probabilities twice, and with "
            "model.lora.dropout they would not be the same: set it to 0."
        )
    _refuse_loader(kind, loader, config.loss)
    refuse_signatures(kind, config.loss)
    rehearse_class(kind, config)
    return kind


def _refuse_loader(kind: type[BasicTrainer], loader: type[DataLoader], loss: DictConfig) -> None:
    """Refuses a DataLoader that does not give what the trainer trains on and its loss names."""
    missing = [role for role in kind.roles if role not in loader.roles]
    if missing:
        raise ValueError(
            f"loss={loss.name}: {kind.__name__} trains on {', '.join(kind.roles)}, and {loader.__name__} gives "
            f"{', '.join(loader.roles)}. Choose another loss.dataloader."
        )
    facts = [*kind.reads]
    for need in kind.requirements(loss):
        if kind.select(need.role, [])[0] not in loader.roles:
            known = [name for name in {*loader.roles, "chosen", "rejected"} if kind.select(name, [])[0] in loader.roles]
            raise ValueError(
                f"{kind.__name__}.loss asks for {need.parameter}, and {loader.__name__} gives no response "
                f"{need.role!r}{did_you_mean(need.role, known)}; there are {', '.join(sorted(known))}."
            )
        facts += [FACTS[need.kind]] if need.kind in FACTS else []
    silent = [fact for fact in facts if fact not in loader.gives]
    if silent:
        raise ValueError(silent_rows(f"loss={loss.name}: {kind.__name__}", loader.__name__, silent[0], None))
    for key in loader.settings:
        if key not in loss:
            raise ValueError(missing_setting(loss, key))
