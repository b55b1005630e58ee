"""Profanity by alt-profanity-check: the probability that a text is offensive, by a linear model over its words."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from scorers.scorer import REQUIREMENTS, Scorer, need_package

FILES = {
    "data/model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    "data/vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
}
"""sha256 of the two pickles in the wheel that is pinned. Other contents are not unpickled."""


class ProfanityScorer(Scorer):
    """The probability that a text is offensive; needs no network. Segments are sentences.

    The model comes as pickles inside of the package, which the package itself loads when it is imported. Reading a
    pickle can run code, and this is the one place where it is done: after the files' hashes were seen to be those of
    the wheel in requirements-scorers.txt.

    The model was trained on two public data sets, one of them the tweets of Davidson et al. (2017): on those it is no
    measurement.

    Args:
        max_characters: a longer text is flawed ("too long").
    """

    name = "profanity"
    bounds = (0.0, 1.0)

    def __init__(self, max_characters: int = 1_000_000):
        need_package("profanity_check", "alt-profanity-check", "scorer=profanity")
        _refuse_other_pickles()
        from profanity_check import predict_prob

        self.max_characters = max_characters
        self._predict = predict_prob
        versions = [f"{name}={importlib.metadata.version(name)}" for name in ("alt-profanity-check", "scikit-learn")]
        self._identity = f"profanity {' '.join(versions)} max_characters={max_characters}"

    @property
    def identity(self) -> str:
        return self._identity

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        return [float(one) for one in self._predict(list(texts))] if texts else []


def _refuse_other_pickles() -> None:
    specification = importlib.util.find_spec("profanity_check")
    assert specification is not None and specification.origin is not None
    folder = Path(specification.origin).parent
    for name, expected in FILES.items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise ValueError(
                f"{file} is not the file of the version that is pinned, and other pickles are not read: run "
                f"`pip install -r {REQUIREMENTS}`."
            )
