"""A loss on made-up values, before there is a model: what it asks for, what it returns, what it changes.

A loss of one's own fails in minutes otherwise: after a model is loaded, when an old run may be gone already.
"""

from __future__ import annotations

import copy
import inspect
import logging
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dataloaders.batches import Row
from dataloaders.examples import Example
from dataloaders.resolve import did_you_mean
from trainers import distributed
from trainers.basic import BasicTrainer
from trainers.coupling import refuse_undeclared_coupling
from trainers.naming import Logps, Naming
from trainers.outputs import Tensors
from trainers.step import StepComputer

log = logging.getLogger(__name__)

TOKENS = (3, 5, 2, 4, 6, 3, 2, 5)
"""Scored tokens of the made-up responses, a row each."""
_WORTHS = ("rewards", "token_advantages")
"""Kinds of tensors that say what a response is worth."""


def refuse_signatures(kind: type[BasicTrainer], loss: Any) -> None:
    """Refuses a trainer that cannot be made, or whose `remember` does not take what `loss` takes.

    Args:
        loss: its section of the config.

    Raises:
        ValueError: naming what to write.
    """
    parameters = [*inspect.signature(BasicTrainer.__init__).parameters][:-1]  # the metrics log comes later
    if not _takes(kind.__init__, [None for _ in parameters], {}):
        raise ValueError(
            f"{kind.__name__}.__init__ does not take what trainers are made of: write `def __init__(self, *args, "
            "**kwargs)`, and pass both on by super().__init__(*args, **kwargs)."
        )
    names = [need.parameter for need in kind.requirements(loss)]
    if kind.remember is not BasicTrainer.remember and not _takes(kind.remember, [None], dict.fromkeys(names)):
        raise ValueError(
            f"{kind.__name__}.remember is given what loss names ({', '.join(names)}), and takes something else: name "
            "the same, or **tensors."
        )


def _takes(function: Any, args: list[None], kwargs: dict[str, None]) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def rehearse_class(kind: type[BasicTrainer], config: Any) -> None:
    """Rehearses the loss of a class before there is a model; one that makes more of itself waits for `rehearse`.

    Raises:
        ValueError: see `rehearse`.
    """
    if kind.__init__ is BasicTrainer.__init__:
        trainer = kind.__new__(kind)
        trainer.config, trainer.loss_state, trainer.step_idx, trainer.examples = config, {}, 0, 0
        trainer.couples_examples, trainer.needs = kind.couples(config.loss), kind.requirements(config.loss)
        rehearse(trainer, torch.device("cpu"))


def rehearse(trainer: BasicTrainer, device: torch.device) -> None:
    """Calls a trainer's loss on eight made-up rows, five of them desirable, and looks at what it does.

    What fails on these values alone, and may not on others, is let pass. The trainer itself, and the generators of
    random numbers, are as they were.

    Raises:
        ValueError: for what the loop would refuse or fail at: naming what to write.
    """
    trainer = copy.copy(trainer)
    trainer.loss_state = _State(trainer.loss_state, owner=type(trainer).__name__)
    rows = _rows()
    with generators_kept(device):
        try:
            stand_in = _StandIn(trainer, device)
            logps = stand_in.logps(rows)
            tensors = stand_in.naming.tensors(rows, logps)
            weights = stand_in.weights(rows, logps)
        except Exception:  # a family of one's own may want more of its rows
            return
        versions = {name: tensor._version for name, tensor in tensors.items()}
        with _readable_failures(trainer):
            output = stand_in.loss(tensors, weights)
            changed = [name for name, tensor in tensors.items() if tensor._version != versions[name]]
            if changed:
                raise _Refusal(
                    f"{type(trainer).__name__}.loss changes {changed[0]} in place, and the loop needs it as it is: "
                    f"write {changed[0]} = {changed[0]} - ..., not {changed[0]} -= ..."
                )
            if output.chosen_rewards is not None:
                groups = trainer.loss_groups(rows)
                output.refuse_reward_counts(type(trainer).__name__, trainer.reward_counts(groups))
                trainer.reward_metrics(output)
            # Not twice: a class that makes no more of itself was looked at before there was a policy.
            if not hasattr(trainer, "policy") or type(trainer).__init__ is not BasicTrainer.__init__:
                warn_of_sign(trainer, tensors, output.losses)
            if not trainer.couples_examples:
                with torch.no_grad():
                    owners = stand_in.owners(rows, logps)
                    refuse_undeclared_coupling(trainer, stand_in.naming, rows, logps, owners)


def warn_of_sign(trainer: BasicTrainer, tensors: Tensors, losses: torch.Tensor) -> None:
    """Says so where a loss asks for the opposite: less likely good responses and likelier bad ones, in all rows.

    A warning and no error, since a loss may mean it (unlearning, say). Of responses whose worth is a number nothing is
    said.

    Args:
        tensors: what the loss was given.
        losses: (N,), with their graph.
    """
    good = {"chosen", *(() if any(need.kind in _WORTHS for need in trainer.needs) else ("target",))}
    roles = {need.parameter: need.role for need in trainer.needs if need.model == "policy"}
    names = [name for name, role in roles.items() if role in {*good, "rejected"} and tensors[name].requires_grad]
    slopes = torch.autograd.grad(losses.sum(), [tensors[name] for name in names], retain_graph=True, allow_unused=True)
    wrong: dict[str, bool] = {}
    for role, slope in zip((roles[name] for name in names), slopes, strict=True):
        if slope is not None and slope.any():
            against = slope if role in good else -slope
            wrong[role] = wrong.get(role, True) and bool((against >= 0).all())
    if wrong and all(wrong.values()) and distributed.rank() == 0:
        how = [f"{'rises' if role in good else 'falls'} with log-probabilities of {role} responses" for role in wrong]
        log.warning(
            "%s.loss %s, on made-up values, and training makes it small: if that is not meant, its sign is wrong",
            type(trainer).__name__, " and ".join(how),
        )  # fmt: skip


class _Refusal(ValueError):
    """Raised here, to be told from what a loss raises."""


class _Unset(KeyError):
    """A value of the state that is read before there is one; a loss may catch it as the KeyError that it is."""


class _StandIn(StepComputer):
    """What a step computes of a loss, without a model."""

    def __init__(self, trainer: BasicTrainer, device: torch.device):
        self.trainer, self.policy = trainer, SimpleNamespace(device=device)
        roles = {(need.model, trainer.select(need.role, [])[0]) for need in trainer.needs if need.model}
        self.known = {*roles, *(("policy", role) for _, role in roles), *(("policy", role) for role in trainer.roles)}
        self.trained_roles = [role for role in trainer.roles if ("policy", role) in roles]
        self.naming = Naming(trainer, self.trained_roles, None, device)
        self.loss, self.weights, self.owners = self._loss, self._weights, self._owners

    def logps(self, rows: list[Row]) -> Logps:
        """Log-probabilities of tokens, in nats: all different, between -4 and 0."""
        generator = np.random.default_rng(0)
        kinds = [*self.known, *(("values", role) for _, role in self.known)]
        made: Logps = {}
        for model, role in sorted(set(kinds)):
            values = [-4 * generator.random(tokens) for tokens in TOKENS]
            trained = model != "reference" and role in self.trained_roles
            made[model, role] = [
                torch.tensor(one, dtype=torch.float32, device=self.policy.device, requires_grad=trained)
                for one in values
            ]
        return made


class _State(dict):
    """The state of a loss, which says who reads what is not there."""

    def __init__(self, state: Tensors, owner: str):
        super().__init__(state)
        self.owner = owner

    def __missing__(self, key: str) -> Any:
        raise _Unset(
            f"{self.owner}.loss reads self.loss_state[{key!r}] before `remember` has set it: write "
            f"self.loss_state.get({key!r}, torch.zeros(())), with what holds at the first step."
        )


def _rows() -> list[Row]:
    prompt = np.arange(1, 4, dtype=np.int32)
    return [
        Row(
            prompt + number, {}, Example(f"made up {number}"), desirable=number not in (1, 3, 6),
            reward=float((-1) ** number * (1 + number / 8)), advantage=float((-1) ** number), group=number // 2,
            token_scores=np.linspace(0, number / 8, TOKENS[number], dtype=np.float32),
        )
        for number in range(len(TOKENS))
    ]  # fmt: skip


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Afterwards the random numbers of torch, numpy and Python go on as if nothing had happened inside."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _readable_failures(trainer: BasicTrainer) -> Iterator[None]:
    """What fails whatever the values are becomes a ValueError of one line; what may not on others passes."""
    name = type(trainer).__name__
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        section, _, key = str(error.full_key or "").rpartition(".")
        if section.split(".")[0] != "loss":
            raise ValueError(f"{name}.loss: {' '.join(str(error).split())}.") from error
        known = OmegaConf.select(trainer.config, section) or {}
        near = did_you_mean(key, [str(one) for one in known])
        raise ValueError(
            f"{name}.loss reads config.{section}.{key}, and the loss's YAML does not have it{near}: add it there."
        ) from error
    except _Unset as error:
        raise ValueError(error.args[0]) from error
    except ValueError as error:
        if isinstance(error, _Refusal) or _raised_in(error, Path(__file__).parent):
            raise
    except (TypeError, NameError, ImportError, AttributeError) as error:
        if isinstance(error, AttributeError) and (error.obj is None or isinstance(error.obj, BasicTrainer)):
            return  # it may have that later
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{name}.loss fails on made-up values: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}; "
            "AUREOLE_TRACEBACK=1 shows more)."
        ) from error
    except Exception:  # an index, a shape or a value that these made-up rows alone may not have
        return


def _raised_in(error: Exception, folder: Path) -> bool:
    """Whether the code that raised it lies in a folder."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(folder)
