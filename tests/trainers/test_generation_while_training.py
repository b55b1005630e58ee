"""Samples of a policy while it is trained: always the same, measured, saved, and without any effect on the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launch import generation
from launch.compose import compose
from launch.saved_config import compose_for_eval
from launch.train import run
from models.byte_tokenizer import byte_tokenizer
from models.generation.scenarios import Drawing, Drawn, Scenario
from scorers.scorer import TOO_LONG
from tests import test_resume, tiny
from tests.scorers.fixed import LetterScorer
from trainers.generation import Generation, Scored, write_alignment
from trainers.loop import Loop

SCENARIOS = [
    "+generation.scenarios.free.n_samples=6", "+generation.scenarios.free.max_new_tokens=12", "generation.every=8",
    "generation.batch_size=4", "generation.metrics=[length,distinct_1]",
]  # fmt: skip
SMALL = [
    "model=tiny", "loss=kto", "n_examples=24", "n_eval_examples=0", "model.batch_size=4", "lr=1e-2", "save_every=8",
    "keep_last=null", "exp_name=run",
]  # fmt: skip


def drawing(**options: object) -> Drawing:
    defaults = {"batch_size": 4, "seed": 3, "banned_ids": (), "max_length": 60}
    return Drawing(byte_tokenizer(), **defaults | options)


def records(folder: Path, split: str) -> list[dict]:
    """The records of one kind in a run's metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_generation_changes_nothing_of_the_training(tmp_path, monkeypatch):
    """Prevents samples that use up the training's random numbers, change its weights, or are not there at the end.

    Weights, optimizer and random states of all checkpoints agree to the bit with those of a run without samples.
    """
    monkeypatch.setattr(generation, "build_scorer", lambda config: LetterScorer())
    run(compose([*SMALL, f"cache_dir={tmp_path / 'without'}"]))
    run(compose([*SMALL, *SCENARIOS, f"cache_dir={tmp_path / 'with'}"]))
    one, other = (test_resume.contents(tmp_path / name)["files"] for name in ("without", "with"))
    assert len(one) == 6 and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    folder = tmp_path / "with" / "run"
    found = records(folder, "generation")
    assert [record["counters/examples"] for record in found] == [8, 16, 24], "the last is at the end, once"
    assert {"score", "score_low", "score_high", "score_max", "length", "distinct-1-grams", "samples_per_second"} <= {
        name.removeprefix("generation/free/") for name in found[0]
    }
    assert all(record["generation/free/samples"] == 6 for record in found)
    lines = [json.loads(line) for line in (folder / "samples" / "free-24.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and set(lines[0]) == {"prompt", "completion", "score", "tokens", "finish_reason"}
    kept = json.loads((folder / "alignment.json").read_text())
    assert kept["weights"] == {"checkpoint": "step-24"} and kept["scorer"] == "letter e"
    assert kept["score"]["mean"] == pytest.approx(found[-1]["generation/free/score"])
    settings = kept["settings"]["free"]
    assert {"prompts": 0, "max_new_tokens": 12, "temperature": 1.0, "seed": 1}.items() <= settings.items()
    assert "before_ids" not in settings, "with nothing before, as earlier records say it"
    assert not {"prefix", "prefix_ids", "n_samples", "hits_threshold"} & settings.keys()


def test_a_killed_run_has_each_record_once(tmp_path, monkeypatch):
    """Prevents a record of samples that is missing after a resume or there twice, and other samples than without it.

    The run dies twice: between the two files of a scenario's second samples, and between the record of the last ones
    and their checkpoint.
    """
    run(compose([*SMALL, *SCENARIOS, f"cache_dir={tmp_path / 'whole'}"]))
    command = [*SMALL, *SCENARIOS, f"cache_dir={tmp_path / 'killed'}"]
    for owner, name, allowed in ((Generation, "summary", 1), (Loop, "save", 1)):
        with monkeypatch.context() as patched:
            calls = iter(range(100))
            original = getattr(owner, name)

            def dies(*args: object, original=original, calls=calls, allowed=allowed) -> object:
                if next(calls) >= allowed:
                    raise RuntimeError("killed")
                return original(*args)

            patched.setattr(owner, name, dies)
            with pytest.raises(RuntimeError, match="killed"):
                run(compose(command))
    run(compose(command))
    assert test_resume.records(tmp_path / "killed") == test_resume.records(tmp_path / "whole")
    examples = [r["counters/examples"] for r in records(tmp_path / "killed" / "run", "generation")]
    assert examples == [8, 16, 24]
    for name in ("free-8.jsonl", "free-16.jsonl", "free-24.jsonl", "free-24.json"):
        one, other = ((tmp_path / which / "run" / "samples" / name).read_bytes() for which in ("killed", "whole"))
        assert one == other


def test_every_model_gets_the_same_prompts_and_exactly_as_many(tmp_path):
    """Prevents comparisons over other prompts, and numbers of samples that are rounded to batches, as PHF's were."""
    scenario = Scenario("s", 11, 5, prompts=("ab", "cd", "efg"), prefix_ids=np.array([7, 8], dtype=np.int32))
    made = drawing()
    prompts = made.prompts(scenario)
    assert len(prompts) == 11 and all(ids[:3].tolist() == [2, 7, 8] for ids in prompts), "start, prefix, prompt"
    names = scenario.prompts_in_order(3)
    assert [names.count(one) for one in ("ab", "cd", "efg")] in ([4, 4, 3], [4, 3, 4], [3, 4, 4])
    one, other = (made.draw(tiny.tiny_model(seed=seed), scenario) for seed in (0, 1))
    assert [x.prompt for x in one] == [x.prompt for x in other] == names
    assert [x.completion for x in one] != [x.completion for x in other]
    parts = [made.draw(tiny.tiny_model(), scenario, part, 3) for part in range(3)]
    assert [next(x for x in some if x is not None) for some in zip(*parts, strict=True)] == one
    assert scenario.seed(3) != Scenario("t", 11, 5).seed(3), "scenarios do not share their random numbers"
    with pytest.raises(ValueError, match=r"generation.scenarios.s: the prompt .* has 58 tokens .* model.max_length=60"):
        drawing().prompts(Scenario("s", 1, 5, prompts=("x" * 57,)))


def test_a_document_before_a_sample_is_no_part_of_it(tmp_path):
    """Prevents generation.before from reaching a sample's text, its score, or its length, or from reaching nothing."""
    config = compose([*SMALL, *SCENARIOS, "generation.before='b\n'", "+generation.scenarios.free.prefix=a"])
    made = generation.build_generation(config, byte_tokenizer()).drawing
    assert made.before_ids == tuple(byte_tokenizer()("b\n", add_special_tokens=False).input_ids)
    prefix = np.array([7], dtype=np.int32)
    scenario = Scenario("s", 3, 5, prompts=("x",), prefix_ids=prefix)
    assert [one.tolist() for one in drawing(before_ids=(5, 6)).prompts(scenario)[:1]] == [
        [5, 6, 2, 7, *byte_tokenizer()("x", add_special_tokens=False).input_ids]
    ]
    without, behind = (drawing(before_ids=ids).draw(tiny.tiny_model(), scenario) for ids in ((), (5, 6)))
    assert [len(one.completion) for one in behind] == [5, 5, 5] and {one.prompt for one in behind} == {"x"}
    assert [one.completion for one in without] != [one.completion for one in behind]
    with pytest.raises(ValueError, match="has 60 tokens"):
        drawing(before_ids=(5, 6)).prompts(Scenario("s", 1, 5, prompts=("x" * 57,)))


def test_control_tokens_are_neither_sampled_nor_scored():
    """Prevents a control token in the text that a scorer reads, and spaces that decoding cleans up."""
    from models.plain_text import banned_ids, prefix_ids, text_after

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|good|>"])
    good = prefix_ids(tokenizer, "<|good|>", "generation.prefix")
    assert good.tolist() == [259]
    ids = tokenizer("x , y .", add_special_tokens=False).input_ids
    with_control = np.array([ids[0], 259, *ids[1:], 2])
    assert text_after(tokenizer, np.zeros(0, dtype=int), with_control, {259}) == "x , y ."
    assert text_after(tokenizer, np.array(ids), with_control, {259}) == "x , y ."
    assert banned_ids(tokenizer, ["<|good|>", 5], "generation.banned_tokens") == [259, 5]
    with pytest.raises(ValueError, match="'ab' is no single token"):
        banned_ids(tokenizer, ["ab"], "generation.banned_tokens")
    with pytest.raises(ValueError, match="ends a text"):
        banned_ids(tokenizer, [2], "generation.banned_tokens")
    with pytest.raises(ValueError, match=r"generation.prefix='' is no token"):
        prefix_ids(tokenizer, "", "generation.prefix")


def test_what_a_scorer_cannot_score_is_counted():
    """Prevents a sample without a score that counts as 0, or that nobody hears of."""
    scorer = LetterScorer()
    scenario = Scenario("s", 4, 5, prompts=("a", "b"), hits_threshold=0.5, use_prompt_for_scoring=True)
    made = Generation([scenario], drawing(), scorer, ("length", "entropy_2"))
    made.scored(tiny.tiny_model(), scenario)
    assert sorted(text[0] for text in scorer.seen) == ["a", "a", "b", "b"], "prompt and completion are scored together"
    drawn = [one.drawn for one in made.scored(tiny.tiny_model(), scenario)]
    scored = [Scored(one, score) for one, score in zip(drawn, (0.6, None, 0.2, 0.4), strict=True)]
    scored[1] = replace(scored[1], flaw="no text")
    result = made.measured(scenario, scored, 2.0)
    record = result.record()
    assert record["generation/s/score"] == pytest.approx(0.4) and record["generation/s/unscored"] == 1
    assert record["generation/s/num_hits"] == pytest.approx(1 / 3) and record["generation/s/score_max"] == 0.6
    assert record["generation/s/samples_per_second"] == 2.0
    assert result.missing["score_max@25"] == "3 scored samples, and it needs 25"
    assert result.unscored == {"no text": 1}


def test_why_a_sample_has_no_score_is_kept(tmp_path, caplog):
    """Prevents samples that are left out of a mean, and nobody can find out which and why."""
    scorer, scenario = LetterScorer(), Scenario("s", 4, 5)
    scorer.max_characters = 2
    made = Generation([scenario], drawing(), scorer)
    (result,) = made.results(tiny.tiny_model())
    long = [len(one.drawn.completion) > 2 for one in result.samples]
    assert any(long) and [one.score is None for one in result.samples] == long
    assert result.unscored == {TOO_LONG: sum(long)} and f"{sum(long)} {TOO_LONG}" in caplog.text
    file = made.save(result, tmp_path, 8)
    assert json.loads(file.read_text())["unscored"] == result.unscored
    rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert [row.get("flaw") for row in rows] == [TOO_LONG if one else None for one in long]


def test_damaged_samples_of_before_stop_no_training(tmp_path, caplog):
    """Prevents a training that can never end, since a file of old samples, which only wandb wants, is torn."""
    scenario = Scenario("s", 2, 5)
    made = Generation([scenario], drawing())
    (result,) = made.results(tiny.tiny_model())
    for examples in (8, 16, 24):
        made.save(result, tmp_path, examples)
    (tmp_path / "samples" / "s-8.jsonl").write_text('{"torn')
    (tmp_path / "samples" / "s-16.jsonl").write_text('{"prompt": "x"}\n')
    _, rows = made.all_tables(tmp_path)["generation/s/all_samples"]
    assert [row[0] for row in rows] == [24, 24]
    assert "s-8.jsonl is damaged" in caplog.text and "s-16.jsonl is damaged" in caplog.text


def test_a_hit_is_above_the_threshold():
    """Prevents a threshold of 0, at which every sample would be a hit."""
    scenario = Scenario("s", 3, 5, hits_threshold=0.0)
    samples = [Scored(Drawn("", "x", 1, "stop"), score) for score in (0.0, 0.1, 0.0)]
    result = Generation([scenario], drawing(), LetterScorer()).measured(scenario, samples, 1.0)
    assert result.estimates["num_hits"].mean == pytest.approx(1 / 3)


def test_code_is_parsed_with_the_prompt_that_is_scored_with_it():
    """Prevents bodies of functions that count as no Python, since they stand without their headers."""
    for scored_together, share in ((True, 1.0), (False, 0.0)):
        scenario = Scenario("s", 1, 5, prompts=("def one():\n",), use_prompt_for_scoring=scored_together)
        samples = [Scored(Drawn("def one():\n", "    return 1\n", 1, "stop"), None)]
        result = Generation([scenario], drawing(), None, ("parsable", "length")).measured(scenario, samples, 1.0)
        assert result.estimates["parsable"].mean == share and result.estimates["length"].mean == 13


def test_results_of_other_weights_do_not_stay(tmp_path):
    """Prevents a figure that joins the score of one checkpoint with the divergence of another."""
    write_alignment(tmp_path, "a", {"checkpoint": "step-8"}, {"score": 1})
    write_alignment(tmp_path, "a", {"checkpoint": "step-8"}, {"kl": 2})
    assert json.loads((tmp_path / "alignment.json").read_text()).keys() == {"label", "weights", "score", "kl"}
    write_alignment(tmp_path, "a", {"checkpoint": "step-16"}, {"kl": 3})
    assert "score" not in json.loads((tmp_path / "alignment.json").read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.metrics=[lenght]", "generation.metrics: there is no metric 'lenght'"),
        ("+generation.scenarios.a.n_samples=4", r"scenarios.a.max_new_tokens must be given"),
        ("+generation.scenarios.a.max_new_tokens=4", r"scenarios.a.n_samples must be given"),
        ("+generation.scenarios.free.n_sample=4", r"has no key n_sample; did you mean n_samples"),
        ("++generation.scenarios.free.n_samples=0", "n_samples=0: must be at least 1"),
        ("++generation.scenarios.free.n_samples=many", "expected a whole number"),
        ("++generation.scenarios.free.max_new_tokens=100000", "do not fit model.max_length"),
        ("++generation.scenarios.free.min_new_tokens=13", "min_new_tokens is above"),
        ("++generation.scenarios.free.prompts=nowhere.jsonl", "there is no such file"),
        ("++generation.scenarios.free.hits_threshold=0.5", "choose a scorer"),
        ("++generation.scenarios.free.top_p=0", "above 0 and at most 1"),
        ("generation.every=0", "at least 1, or null"),
        ("kl.every=5", "set kl.reference"),
    ],
)
def test_what_cannot_work_is_refused_at_once(override: str, message: str):
    """Prevents an hour of training before a typing error is found."""
    with pytest.raises(ValueError, match=message):
        compose([*SMALL, *SCENARIOS, override])


def test_what_the_tokenizer_decides_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    """Prevents a prefix that is no token, or a threshold outside of the scores, which would be found after training."""
    monkeypatch.setattr(generation, "build_scorer", lambda config: LetterScorer())
    monkeypatch.setattr(generation, "has_scorer", lambda config: True)
    config = compose([*SMALL, *SCENARIOS, "generation.prefix=''"])
    with pytest.raises(ValueError, match="is no token"):
        generation.build_generation(config, byte_tokenizer())
    monkeypatch.setattr("launch.generation_checks.has_scorer", lambda config: True)
    config = compose([*SMALL, *SCENARIOS, "++generation.scenarios.free.hits_threshold=1.5"])
    with pytest.raises(ValueError, match=r"hits_threshold=1.5: scores of letter lie between 0 and 1"):
        generation.build_generation(config, byte_tokenizer())


def test_a_finished_run_generates_alone_and_under_torchrun(tmp_path):
    """Prevents samples that depend on how many processes drew them, and a mode that needs the training's scenarios."""
    run(compose([*SMALL, f"cache_dir={tmp_path}"]))
    folder = tmp_path / "run"
    asked = [one.replace("+gen", "++gen") for one in SCENARIOS]
    config, _ = compose_for_eval([f"--config-path={folder}", "mode=generate", *asked])
    found = generation.generate(config, folder, str(folder / "LATEST" / "policy.pt"))
    assert found["free"]["examples"] == 24 and found["free"]["metrics"]["length"]["n"] == 6
    files = {name: (folder / "samples" / name).read_bytes() for name in ("free-24.jsonl", "free-24.json")}
    for name in files:
        (folder / "samples" / name).unlink()
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", str(tiny.ROOT / "eval.py")]
    command = [*torchrun, f"--config-path={folder}", "mode=generate", *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert {name: (folder / "samples" / name).read_bytes() for name in files} == files


@pytest.mark.parametrize(("given", "environment", "expected"), [
    (None, None, "aureole"), (None, "mine", "mine"), ("said", "mine", "said"),
])  # fmt: skip
def test_the_wandb_project_of_the_environment(given, environment, expected, monkeypatch):
    """Prevents runs in another project than WANDB_PROJECT says."""
    from launch.train import wandb_project

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if environment is not None:
        monkeypatch.setenv("WANDB_PROJECT", environment)
    overrides = [] if given is None else [f"wandb.project={given}"]
    assert wandb_project(compose(["model=tiny", *overrides])) == expected


def test_a_tasks_scenarios_can_be_changed_added_to_and_taken_away(tmp_path):
    """Prevents scenarios of a YAML that no command can change, and a misspelled key in one of them."""
    (tmp_path / "task").mkdir()
    yaml = "# @package _global_\ngeneration:\n  scenarios:\n    mine:\n      n_samples: 4\n      max_new_tokens: 8\n"
    (tmp_path / "task" / "words.yaml").write_text(yaml)
    task = ["model=tiny", "task=words"]
    config = compose(
        [*task, "generation.scenarios.mine.n_samples=6", "+generation.scenarios.mine.top_k=5"], config_dirs=[tmp_path]
    )
    mine = generation.scenarios_of(config.generation)["mine"]
    assert (mine["n_samples"], mine["max_new_tokens"], mine["top_k"]) == (6, 8, 5)
    with pytest.raises(ValueError, match=r"is added: \+generation.scenarios.mine.top_k=5"):
        compose([*task, "generation.scenarios.mine.top_k=5"], config_dirs=[tmp_path])
    config = compose([*task, "+generation.scenarios.other={n_samples: 2, max_new_tokens: 3}"], config_dirs=[tmp_path])
    assert generation.scenarios_of(config.generation).keys() == {"mine", "other"}
    assert not compose([*task, "generation.scenarios=null"], config_dirs=[tmp_path]).generation.scenarios
    with pytest.raises(ValueError, match="has no key top_q; did you mean top_"):
        compose([*task, "+generation.scenarios.mine.top_q=5"], config_dirs=[tmp_path])


def test_wandb_gets_tables_of_the_samples(tmp_path, monkeypatch):
    """Prevents samples that wandb does not show, under other names than Pretraining with Human Preferences has."""
    from trainers import metrics

    logged: list[tuple[dict, int]] = []
    fake = SimpleNamespace(
        init=lambda **options: SimpleNamespace(
            id="x", log=lambda values, step: logged.append((values, step)), finish=lambda: None
        ),
        Table=lambda columns, data: (columns, data),
    )
    monkeypatch.setattr(metrics, "check_wandb", lambda: fake)
    monkeypatch.setattr("launch.train.check_wandb", lambda: fake)
    monkeypatch.setattr(generation, "build_scorer", lambda config: LetterScorer())
    run(compose([*SMALL, *SCENARIOS, f"cache_dir={tmp_path}", "wandb.enabled=true"]))
    found = [(values, step) for values, step in logged if "generation/free/current_samples" in values]
    assert [step for _, step in found] == [8, 16, 24]
    ends = [step for values, step in logged if "generation/free/all_samples" in values]
    assert ends == [24]
    columns, everything = found[-1][0]["generation/free/all_samples"]
    assert columns == ["step", "prompt", "continuation", "score"]
    assert [step for step, *_ in everything] == [8] * 6 + [16] * 6 + [24] * 6
    columns, rows = found[-1][0]["generation/free/current_samples"]
    assert [one for _, *one in everything[12:]] == rows
    assert columns == ["prompt", "continuation", "score"] and len(rows) == 6
    assert found[-1][0]["generation/free/score"] == pytest.approx(
        np.mean([score for *_, score in rows if score is not None])
    )
