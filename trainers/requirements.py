"""What a loss needs, read from the names of its parameters: `policy_chosen_logps`, `reference_KL_logps`, ..."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

_NAME = re.compile(r"(?P<model>policy|reference)_(?P<role>\w+?)_(?P<kind>token_logps|logps)")


@dataclass(frozen=True)
class Requirement:
    """One tensor that a loss asks for.

    Attributes:
        parameter: its name in the signature.
        model: policy or reference.
        role: chosen, rejected, target, KL, ...
        kind: `logps` is one log-probability per response, `token_logps` one per scored token.
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
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{getattr(loss, '__qualname__', loss)} asks for {name!r}. A loss takes tensors named "
                "{policy|reference}_{role}_{logps|token_logps}, such as policy_chosen_logps."
            )
        needs.append(Requirement(name, **match.groupdict()))
    return needs
