"""What all processes of a run must have alike: replicas of different commands or data would drift apart unseen."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from trainers import distributed

_SHOWN = 5


def refuse_unlike(own: Mapping[str, Any], fix: str) -> None:
    """Compares what each process has; all of them call it.

    Args:
        own: values by name.
        fix: what to do where they differ.

    Raises:
        ValueError: on every process, with the first rank that differs from rank 0, their hosts, and the names.
    """
    everybody = distributed.gather_objects((socket.gethostname(), dict(own)))
    first_host, first = everybody[0]
    for rank, (host, other) in enumerate(everybody):
        names = [name for name in {**first, **other} if _shown(first, name) != _shown(other, name)]
        if names:
            here, there = ("; ".join(_shown(one, name) for name in names[:_SHOWN]) for one in (other, first))
            more = f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
            raise ValueError(
                f"the processes of this run differ: {here} on rank {rank} ({host}), {there} on rank 0 ({first_host})"
                f"{more}. {fix}"
            )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return f"{name}={values[name]}" if name in values else f"no {name}"
