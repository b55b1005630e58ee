"""What a loss needs, read from its parameters: `policy_chosen_logps`, `reference_KL_logps`, `chosen_lengths`, ..."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_NAMES = (
    re.compile(r"(?P<model>policy|reference)_(?P<role>\w+?)_(?P<kind>token_logps|shared_logps|logps)"),
    re.compile(r"(?P<model>policy)_(?P<role>\w+?)_(?P<kind>alignments)"),
    re.compile(r"(?P<model>policy)_(?P<role>\w+?)_(?P<kind>token_values)"),
    re.compile(r"(?P<model>)(?P<role>\w+?)_(?P<kind>lengths|rewards|token_advantages|groups)"),
)


@dataclass(frozen=True)
class Requirement:
    """One tensor that a loss asks for.

    Attributes:
        parameter: its name in the signature.
        model: policy or reference; empty for what the rows themselves say.
        role: chosen, rejected, target, KL, ...
        kind: `logps` is one log-probability per response, `token_logps` one per scored token, `shared_logps` one per
            response for as many of its first scored tokens as the row's shortest response has; `token_values` is what a
            value head says before each scored token; `alignments` the mean over a response's scored tokens of
            log(p(token) / sum over the vocabulary of p squared), without a gradient; `lengths` the number of scored
            tokens of each response (at least 1); `rewards`, `groups` and (for each scored token) `token_advantages` are
            what rows of a ScoredDataLoader say.
    """

    parameter: str
    model: str
    role: str
    kind: str


def requirements(loss: Callable) -> list[Requirement]:
    """The tensors that a loss names, a trainer's method or its class's function.

    Raises:
        ValueError: for a parameter whose name says nothing.
    """
    needs = []
    for name in inspect.signature(loss).parameters:
        if name == "self":
            continue
        match = next((match for pattern in _NAMES if (match := pattern.fullmatch(name))), None)
        if match is None:
            raise ValueError(
                f"{getattr(loss, '__qualname__', loss)} asks for {name!r}. A loss takes tensors named "
                "{policy|reference}_{role}_{logps|token_logps|shared_logps}, "
                "policy_{role}_{alignments|token_values} or "
                "{role}_{lengths|rewards|token_advantages|groups}, such as policy_chosen_logps."
            )
        needs.append(Requirement(name, **match.groupdict()))
    return needs


def formula(function: Callable) -> Callable:
    """A trainer's `loss` that is a pure function: its tensors by their names, its keyword-only parameters from
    `self.config.loss`.

        class IPOTrainer(PairedPreferenceTrainer):
            loss = formula(ipo)
    """
    parameters = inspect.signature(function).parameters.values()
    settings = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    tensors = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]

    @functools.wraps(function)
    def loss(self: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        return function(*args, **kwargs, **settings_of(self.config.loss, settings))

    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    loss.__signature__ = inspect.Signature([itself, *tensors])
    return loss


def settings_of(config: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The hyperparameters of a loss from its section of the config.

    Raises:
        ValueError: when one of them is not there.
    """
    missing = [name for name in names if name not in config]
    if missing:
        raise ValueError(f"the loss needs {missing[0]}, and its YAML in config/loss does not have it: add it there.")
    return {name: config[name] for name in names}
