"""What the benchmark of the scorers counts, by hand: figures are only worth what these are."""

import numpy as np
import pytest

from benchmarks.scoring import auroc, bootstrap, first, precisions, recalls
from scorers.pii import Finding


def test_auroc_by_hand():
    """Prevents ties that count as wins, and the area of the other class."""
    scores, bad = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert auroc(scores, bad) == (2 + 1 + 0.5) / 4
    assert auroc(-scores, bad) == 0.5 / 4
    generator = np.random.default_rng(0)
    scores, bad = generator.integers(0, 20, 300).astype(float), generator.random(300) < 0.3
    pairs = scores[bad][:, None] - scores[~bad][None]
    assert auroc(scores, bad) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with requirements-scorers.txt")
    assert auroc(scores, bad) == pytest.approx(sklearn.roc_auc_score(bad, scores))


def test_the_interval_has_its_width():
    """Prevents an interval of the wrong size: near that of Hanley and McNeil's (1982) formula, for a known case."""
    generator = np.random.default_rng(1)
    bad = np.arange(400) < 200
    scores = generator.normal(size=400) + bad
    area = auroc(scores, bad)
    low, high = bootstrap(scores, bad, draws=400)
    first_term, second_term = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + 199 * (first_term - area**2) + 199 * (second_term - area**2)) / 200**2
    assert low < area < high and high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.15)


BOTH = [
    ([[0, 10, "EMAIL_ADDRESS"], [20, 30, "PERSON"]], [Finding(0, 10, ("email",)), Finding(40, 45, ("phone",))]),
    ([[5, 9, "EMAIL_ADDRESS"], [10, 20, "PHONE_NUMBER"]], [Finding(9, 15, ("email", "url"))]),
]


def test_recall_by_hand():
    """Prevents a finding that merely touches a span, or is of another type, from counting as found."""
    found = {record["type"]: record for record in recalls(BOTH, finds_names=False)}
    assert found["EMAIL_ADDRESS"]["recall"] == 0.5 and found["EMAIL_ADDRESS"]["spans"] == 2
    assert found["PHONE_NUMBER"]["recall"] == 0 and found["PHONE_NUMBER"]["found_as_any_type"] == 1
    assert found["PERSON"]["recall"] is None and "without NER" in found["PERSON"]["note"]
    assert {record["type"]: record for record in recalls(BOTH, finds_names=True)}["PERSON"]["recall"] == 0


def test_precision_by_hand():
    """Prevents a precision over spans in the place of findings."""
    found = {record["type"]: record for record in precisions(BOTH)}
    assert (found["all"]["findings"], found["all"]["precision"]) == (3, pytest.approx(2 / 3, abs=1e-4))
    assert found["all"]["precision_of_own_type"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["email"]["findings"] == 2 and found["phone"]["precision"] == 0 and found["url"]["precision"] == 1


def test_so_many_megabytes():
    """Prevents a speed over less text than the record says."""
    assert first(["é" * 250, "b" * 500, "c", "d"], 0.001) == ["é" * 250, "b" * 500]
