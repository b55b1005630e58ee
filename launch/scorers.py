"""The config's section `scorer` to a scorer."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataloaders.resolve import did_you_mean, resolve
from scorers.score_cache import CachedScorer
from scorers.scorer import Scorer

NOT_ARGUMENTS = ("name", "kind")
"""Keys of the section that choose a scorer; the others are its arguments."""


def build_scorer(options: Mapping[str, Any], cache_dir: str | Path | None = None) -> Scorer:
    """The scorer that `kind` names (a class of scorers/, or a dotted name or path), with the other keys as arguments.

    Args:
        options: the section as plain values.
        cache_dir: keeps its scores in `{cache_dir}/scores`; None: keeps none.

    Raises:
        ValueError: none is chosen, there is no such class or it does not take such arguments, or a package is missing.
    """
    if options.get("kind") is None:
        raise ValueError(
            "no scorer is chosen: scorer=pep8, pii, profanity or toxicity, or scorer.kind=my.module.MyScorer."
        )
    kind = resolve(options["kind"], "scorers")
    if not isinstance(kind, type) or not issubclass(kind, Scorer):
        raise ValueError(f"scorer.kind={options['kind']} is no subclass of scorers.scorer.Scorer: derive it from that.")
    arguments = {key: value for key, value in options.items() if key not in NOT_ARGUMENTS}
    taken = inspect.signature(kind).parameters
    strange = [key for key in arguments if key not in taken]
    if strange and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise ValueError(
            f"scorer.{strange[0]}: {kind.__name__} takes no such argument{did_you_mean(strange[0], taken)}."
        )
    scorer = kind(**arguments)
    if cache_dir is None:
        return scorer
    digest = hashlib.sha256(scorer.identity.encode()).hexdigest()[:12]
    return CachedScorer(scorer, Path(cache_dir).expanduser() / "scores" / f"{scorer.name}-{digest}.jsonl")
