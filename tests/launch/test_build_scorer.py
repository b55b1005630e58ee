"""The section `scorer` of a config to a scorer: ours, a user's, and what is said of a wrong one."""

from pathlib import Path
from typing import ClassVar

import pytest
from omegaconf import OmegaConf

from launch.compose import compose
from launch.scorers import build_scorer
from scorers import scorer as interface
from scorers.scorer import HIGHER_IS_WORSE, NO_SCORE, Sample, Scorer, Segment
from tests.launch.test_config_files import SCORERS

ROOT = Path(__file__).parents[2]
OWN = f"{ROOT / 'tests' / 'scorers' / 'own_scorer.py'}:Capitals"


def section(*overrides: str) -> dict:
    return OmegaConf.to_container(compose(list(overrides)).scorer)


@pytest.mark.parametrize("name", [name for name in SCORERS if name not in ("none", "toxicity")])
def test_each_yaml_makes_its_scorer(name):
    """Prevents a key of a YAML that its scorer does not take, or a default that differs from the class's own."""
    made = build_scorer(section(f"scorer={name}"))
    assert made.name == name and made.identity == type(made)().identity
    assert made.direction == HIGHER_IS_WORSE and made.bounds[0] == 0


def test_toxicity_makes_its_scorer(tmp_path):
    """Prevents the same for the one whose weights are downloaded; here from a file."""
    from tests.scorers.tiny_detoxify import make

    checkpoint, base = make(tmp_path / "tiny")
    made = build_scorer(section("scorer=toxicity", f"scorer.checkpoint={checkpoint}", f"scorer.base={base}"))
    assert made.name == "toxicity" and 0 < made.score([Sample("", "abc")])[0] < 1


def test_a_scorer_of_the_users_own():
    """Prevents that a new scorer needs a change of this repository; one method makes segments and flaws too."""
    made = build_scorer(section(f"scorer.kind='{OWN}'"))
    assert made.score([Sample("AA", "Ab"), Sample("", "")]) == [0.5, None]
    assert made.score_segments("AB. Cd.") == [Segment(0, 4, 0.5), Segment(4, 7, 1 / 3)]
    assert build_scorer({"name": "own", "kind": OWN, "weight": 2.0}).score([Sample("", "AB")]) == [2.0]
    made.reads_prompt = True
    assert made.score([Sample("AA", "bb")]) == [0.5]


class Broken(Scorer):
    """A scorer with a mistake: what it gives stands in `scores`."""

    name, bounds, identity = "broken", (0.0, 1.0), "broken"
    scores: ClassVar[list] = []

    def score_texts(self, texts):
        return self.scores


@pytest.mark.parametrize("scores", [[0.5], [0.5, 2.0], [0.5, float("nan")], [float("inf"), 0.5]])
def test_a_scorer_that_breaks_its_word_is_named(scores, monkeypatch):
    """Prevents NaN in a corpus, scores that go to the neighbouring text, and thresholds for other bounds."""
    monkeypatch.setattr(Broken, "scores", scores)
    for call in (
        lambda: Broken().score([Sample("", "a"), Sample("", "b")]),
        lambda: Broken().score_documents(["a", "b"]),
    ):
        with pytest.raises(ValueError, match="Broken"):
            call()


def test_a_scorer_that_gives_no_score_gives_a_reason(monkeypatch):
    """Prevents a document without a score and without a flaw, which would be counted nowhere."""
    monkeypatch.setattr(Broken, "scores", [None, 0.5, None])
    first, second = Broken().score_documents(["One.", "Two. Three."])
    assert first.flaw == NO_SCORE and first.score is None
    assert second.flaw is None and second.score == 0.5 and [one.score for one in second.segments] == [0.5, None]


def test_scores_are_kept_where_a_cache_is_named(tmp_path):
    """Prevents that two scorers, or two settings of one, share a file that grows without end."""
    for weight in (1.0, 2.0):
        build_scorer({"kind": OWN, "weight": weight}, tmp_path).score([Sample("", "AB")])
    assert len(list((tmp_path / "scores").glob("capitals-*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "none", "kind": None}, "no scorer is chosen"),
        ({"kind": "PEP9Scorer"}, "did you mean 'PEP8Scorer'"),
        ({"kind": "ScoreCache"}, "no subclass of scorers.scorer.Scorer"),
        ({"kind": OWN, "wieght": 1}, "takes no such argument .did you mean 'weight'"),
    ],
)
def test_wrong_sections(options, message):
    """Prevents a TypeError that names no key."""
    with pytest.raises(ValueError, match=message):
        build_scorer(options)


@pytest.mark.parametrize("name", ["pep8", "pii", "profanity"])
def test_a_missing_package_names_the_requirements(name, monkeypatch):
    """Prevents an ImportError that leaves its reader to guess which of the packages it is."""
    monkeypatch.setattr(interface.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: run `pip install -r requirements-scorers\.txt`"):
        build_scorer(section(f"scorer={name}"))
    lines = (ROOT / "requirements-scorers.txt").read_text().splitlines()
    assert any(line.startswith(("pycodestyle", "scrubadub", "alt-profanity-check")) for line in lines)
