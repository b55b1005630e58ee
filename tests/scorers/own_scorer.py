"""A scorer such as a user writes: the share of capitals."""

from scorers.scorer import Scorer


class Capitals(Scorer):
    """A `weight` beside, to have an argument."""

    name = "capitals"
    bounds = (0.0, 10.0)

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    @property
    def identity(self) -> str:
        return f"capitals {self.weight}"

    def score_texts(self, texts):
        return [self.weight * sum(one.isupper() for one in text) / len(text) for text in texts]
