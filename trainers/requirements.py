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
    re.compile(r"(?P<model>)(?P<role>\w+?)_(?P<kind>lengths|rewards|token_advantages|token_scores|groups)"),
)


_TENSOR_LIKE = re.compile(
    r"policy|reference|logp|_(lengths?|rewards?|advantages?|scores?|groups?|values?|alignments?)$"
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
            what rows of a ScoredDataLoader say, and `token_scores` what those of a pretraining DataLoader do.
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
    for name, parameter in inspect.signature(loss).parameters.items():
        if name == "self":
            continue
        match = _match(name)
        if match is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(_no_tensor(loss, parameter))
        needs.append(Requirement(name, **match.groupdict()))
    return needs


def _match(name: str) -> re.Match[str] | None:
    return next((match for pattern in _NAMES if (match := pattern.fullmatch(name))), None)


def _no_tensor(loss: Callable, parameter: inspect.Parameter) -> str:
    """What to say of a parameter that is no tensor: how hyperparameters are read, or how tensors are named."""
    who, name = getattr(loss, "__qualname__", str(loss)), parameter.name
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
        return (
            f"{who} takes {stars}{name}, by which nobody knows what it needs: name each tensor, as policy_chosen_logps."
        )
    if not _TENSOR_LIKE.search(name):
        if hasattr(loss, "function_of_loss"):
            return (
                f"{who} asks for {name!r} among its tensors: in a formula hyperparameters come after a star, "
                f"`def {who}(..., *, {name})`, and are keys of the loss's YAML."
            )
        return (
            f"{who} asks for {name!r}, which is no tensor: a hyperparameter is read as self.config.loss.{name}, and "
            "is a key of the loss's YAML."
        )
    return (
        f"{who} asks for {name!r}. A loss takes tensors named "
        "{policy|reference}_{role}_{logps|token_logps|shared_logps}, "
        "policy_{role}_{alignments|token_values} or "
        "{role}_{lengths|rewards|token_advantages|token_scores|groups}, such as policy_chosen_logps."
    )


def refuse_no_method(kind: type, undefined: Callable) -> None:
    """Refuses a class whose `loss` is no method: none at all, or a function that got there without `formula`.

    Args:
        undefined: the base's `loss`, which a class without one inherits.

    Raises:
        ValueError: naming what to write.
    """
    loss = inspect.getattr_static(kind, "loss")
    if loss is undefined or not (callable(loss) or hasattr(loss, "__get__")):
        raise ValueError(
            f"{kind.__name__} defines no loss: write `def loss(self, policy_chosen_logps, ...)` in it, or "
            "`loss = formula(my_function)`."
        )
    first = next(iter(inspect.signature(loss).parameters), None) if inspect.isfunction(loss) else "self"
    if first is None or _match(first):
        who = loss.__qualname__
        fix = f"`loss = formula({who})`" if "." not in who else "self as its first parameter"
        raise ValueError(f"{kind.__name__}.loss is {who}, which takes no self: write {fix}.")


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
    loss.function_of_loss = function
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
