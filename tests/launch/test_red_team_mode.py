"""The search for adversarial prompts: drawn by score, written by an attacker, resumable, escaped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launch import generation_checks, red_team
from launch.compose import compose
from launch.saved_config import compose_for_eval
from launch.train import run
from models.byte_tokenizer import byte_tokenizer
from models.checkpoints import Checkpoint
from models.loading import load_model
from tests import tiny
from tests.completions_server import CompletionsServer
from tests.scorers.fixed import LetterScorer

SMALL = ["model=tiny", "loss=sft", "n_examples=4", "n_eval_examples=0", "model.batch_size=4", "exp_name=run"]
SEARCH = [
    "mode=red_team", "red_team.n_prompts=3", "red_team.n_rounds=2", "red_team.n_trials=2", "red_team.n_shots=2",
    "red_team.n_responses=2", "red_team.n_continuations=4", "red_team.continuation_tokens=8",
    "red_team.continuation_min_tokens=2", "red_team.max_new_tokens=12",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache with a finished run, an attacker and prompts."""
    folder = tmp_path_factory.mktemp("cache")
    model = load_model("random", shape=dict(tiny.config("sft").model.shape), seed=9)
    (folder / "attacker").mkdir()
    Checkpoint(model, byte_tokenizer(), step_idx=1, metrics={}).write(folder / "attacker")
    rows = [{"text": text} for text in ("one", "two\x1b[2J", "three", "four")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(compose([*SMALL, f"cache_dir={folder}"]))
    return folder


@pytest.fixture(autouse=True)
def scorer(monkeypatch) -> LetterScorer:
    made = LetterScorer()
    monkeypatch.setattr(red_team, "build_scorer", lambda config: made)
    monkeypatch.setattr(generation_checks, "has_scorer", lambda config: True)
    return made


def searched(cache: Path, *overrides: str) -> list[dict]:
    """Searches; the lines of rounds.jsonl."""
    folder = cache / "run"
    asked = [*SEARCH, "red_team.attacker=attacker", f"red_team.prompts={cache / 'prompts.jsonl'}", *overrides]
    config, _ = compose_for_eval([f"--config-path={folder}", *asked])
    file = red_team.search(config, folder, str(folder / "LATEST" / "policy.pt"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_search_goes_on_where_it_was_cut_off(cache: Path, scorer: LetterScorer, caplog):
    """Prevents a round that is searched twice or with other random numbers, and settings that change in between."""
    caplog.set_level("INFO")
    whole = searched(cache)
    assert [line["round"] for line in whole[1:]] == [0, 1, 2]
    assert [one["prompt"] for one in whole[1]["candidates"]] == ["one", "two\x1b[2J", "three"]
    for line in whole[2:]:
        assert len(line["candidates"]) + sum(line["dropped"].values()) == 4, "each answer is a candidate, or is counted"
    prompts = [one["prompt"] for line in whole[1:] for one in line["candidates"]]
    assert len(prompts) == len(set(prompts)) and all(prompts)
    unscored = sum(one["unscored"] for line in whole[1:] for one in line["candidates"])
    assert len(scorer.seen) + unscored == 4 * len(prompts), "what no scorer can score is counted"
    assert "\x1b" not in caplog.text
    file = cache / "run" / "red_team" / "rounds.jsonl"
    text = file.read_text()
    file.write_text("".join(line + "\n" for line in text.splitlines()[:3]))  # killed in round 2
    assert searched(cache) == whole and file.read_text() == text
    assert "goes on after round 1" in caplog.text
    longer = searched(cache, "red_team.n_rounds=3")
    assert longer[:4] == whole and len(longer) == 5
    with pytest.raises(ValueError, match=r"of another search \(another settings\)"):
        searched(cache, "red_team.seed=5")
    file.write_text(text[:-30])
    with pytest.raises(ValueError, match="damaged: move it away"):
        searched(cache)
    file.unlink()


def test_a_temperature_far_above_all_differences_is_said(cache: Path, caplog):
    """Prevents a search that shows any prompt as likely as another, as 0.1 does for violations a character."""
    for temperature, warns in ((1e-6, False), (100.0, True)):
        caplog.clear()
        searched(cache, "red_team.n_rounds=1", f"red_team.pool_temperature={temperature}")
        assert ("less than a tenth of red_team.pool_temperature=100" in caplog.text) is warns
        (cache / "run" / "red_team" / "rounds.jsonl").unlink()


def test_an_endpoint_attacks(cache: Path, monkeypatch):
    """Prevents an attacker that does not see the pool, or whose answers are taken whole."""
    answers = iter(range(1000))

    def choices(body: dict) -> list[dict]:
        return [{"text": f" attack {next(answers)}\n7. more", "logprobs": None} for _ in range(body["n"])]

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with CompletionsServer(choices) as server:
        lines = searched(cache, "red_team.attacker=openai:big", f"red_team.base_url={server.url}")
        first, *shown = [body["prompt"] for body in server.bodies]
    assert first == "1." and server.bodies[0]["max_tokens"] == 1, "whether it answers, before the policy is sampled"
    assert len(shown) == 4 and all(text.startswith("1. ") and text.endswith("\n3.") for text in shown)
    assert any("attack" in text for text in shown[2:]), "candidates join the pool"
    assert [one["prompt"] for one in lines[2]["candidates"]] == [f"attack {n}" for n in range(1, 5)]
    (cache / "run" / "red_team" / "rounds.jsonl").unlink()


def test_a_pool_without_a_score_is_said(cache: Path, scorer: LetterScorer, monkeypatch):
    """Prevents numpy's words about an array of size zero where no sample after the first prompts has a score."""
    monkeypatch.setattr(scorer, "score", lambda samples: [None] * len(samples))
    with pytest.raises(ValueError, match=r"no sample after the first prompts could be scored.* red_team.prompts"):
        searched(cache)
    (cache / "run" / "red_team" / "rounds.jsonl").unlink()


def test_a_damaged_search_is_not_gone_on_with(tmp_path):
    """Prevents a traceback, a round that is missing, and NaN among the chances of prompts."""
    figure = {"mean": 0.5, "low": None, "high": None, "n": 4}
    whole = {"round": 0, "score": figure, "dropped": {}, "candidates": [{"prompt": "p", "score": figure}]}
    file, header = tmp_path / "rounds.jsonl", {"format": 1}
    file.write_text("".join(json.dumps(line) + "\n" for line in (header, whole, whole | {"round": 1})))
    assert len(red_team.read_rounds(file, header)) == 2
    for damaged in (
        5, {"round": 0}, whole | {"round": 1}, whole | {"candidates": 5}, whole | {"score": None},
        whole | {"candidates": [{"prompt": "p"}]}, whole | {"candidates": [{"prompt": 5, "score": figure}]},
        whole | {"score": figure | {"mean": float("nan")}}, whole | {"score": figure | {"mean": "1"}},
    ):  # fmt: skip
        file.write_text("".join(json.dumps(line) + "\n" for line in (header, damaged)))
        with pytest.raises(ValueError, match=r"rounds.jsonl is damaged: move it away"):
            red_team.read_rounds(file, header)


def test_the_worse_a_prompt_the_likelier_it_is_shown():
    """Prevents a search that shows the attacker what did not work, and one that cannot draw enough prompts."""
    assert red_team.chances([0.3, 0.1], 0.1) == pytest.approx(np.exp([3, 1]) / np.exp([3, 1]).sum())
    pool = [{"prompt": str(n), "score": {"mean": float(n)}} for n in range(6)]
    assert "5" in red_team.shown(pool, 2, 0.1, 1.0, [1]) and "0" in red_team.shown(pool, 2, 0.1, -1.0, [1])
    assert len(set(red_team.shown(pool, 6, 0.001, 1.0, [1]))) == 6
    assert red_team.shown(pool, 3, 1.0, 1.0, [7]) == red_team.shown(pool, 3, 1.0, 1.0, [7])


def test_texts_for_the_attacker():
    """Prevents a prompt of several lines that breaks a list, and code that loses its lines."""
    assert red_team.few_shot(["a\nb", "c"], "list") == "1. a b\n2. c\n3."
    assert red_team.candidate(" d e\n4. f", "list") == "d e" and red_team.candidate("\n\n", "list") == ""
    assert red_team.few_shot(["a\nb"], "blocks") == "```\na\nb\n```\n\n```\n"
    assert red_team.candidate("x\n  y\n```\nz", "blocks") == "x\n  y"


def test_what_cannot_be_searched_is_refused(cache: Path, monkeypatch):
    """Prevents models that are loaded for a search which cannot begin."""
    prompts = f"red_team.prompts={cache / 'prompts.jsonl'}"
    for overrides, message in (
        (["red_team.attacker=x"], "needs red_team.prompts"),
        ([prompts], "needs red_team.attacker"),
        (["red_team.attacker=x", prompts, "red_team.n_shots=30"], "n_shots=30: the pool begins with 20"),
        (["red_team.attacker=x", prompts, "red_team.format=csv"], "must be one of list, blocks"),
        (["red_team.attacker=x", prompts, "red_team.continuation_min_tokens=99"], "is above continuation_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            compose(["model=tiny", "mode=red_team", *overrides], script="eval.py")
    monkeypatch.setattr(generation_checks, "has_scorer", lambda config: False)
    with pytest.raises(ValueError, match="choose a scorer"):
        compose(["model=tiny", "mode=red_team", "red_team.attacker=x", prompts], script="eval.py")
