"""The benchmark that ranks losses: its commands are ones that can be, and its record is what they left."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import compare
from benchmarks import ranking
from launch.compose import check_command, read_command
from reports import ranking_plots
from tests.readme import README


def write_samples(name: str, folder: Path, words: int) -> None:
    """A samples file, as eval.py's, of two answers of so many words or one more, of which one was cut off."""
    loss, lr, seed = name.split("_")[1:] if "_" in name else (None, None, None)
    config = {"exp_name": name}
    if loss is not None:
        config |= {"loss": {"name": loss}, "lr": float(lr.removeprefix("lr-")), "seed": int(seed.removeprefix("seed-"))}
    rows = [
        {"prompt": f"Who is {n}?", "policy": "x " * (words - 1 + n) + "Bo", "facts": ["Bo"], "finish_reason": reason}
        for n, reason in ((0, "stop"), (1, "length"))
    ]
    file = folder / "samples" / f"{name}.json"
    file.write_text(json.dumps({"config": config, "samples": rows}))


def run_small(*command: str) -> None:
    """Leaves what the commands leave, without a model: two losses at one rate, kto with the shorter answers."""
    script, arguments = command[0], list(command[1:])
    folder = Path(next((one for one in arguments if one.startswith("cache_dir=")), "=").partition("=")[2])
    if script == "train.py":
        assert check_command(arguments)
        loss, seed = arguments[1].partition("=")[2], int(arguments[3].partition("=")[2])
        run = folder / f"smollm2-135m_{loss}_lr-1e-06_seed-{seed}"
        run.mkdir()
        (run / "config.yaml").write_text(
            f"exp_name: {run.name}\nlr: 1.0e-06\nseed: {seed}\nn_eval_examples: 2\nloss: {{name: {loss}}}\n"
            "model: {name: smollm2-135m, batch_size: 8}\n"
        )
        steps = [{"split": "train", "loss/train": 1.0, "counters/examples": n} for n in (8, 16)]
        last = {"split": "eval", "loss/eval": 0.25 + seed, "counters/examples": 16}
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (*steps, last)))
        (run / "finished.json").write_text("{}")
    elif script == "eval.py":
        saved = [Path(one.partition("=")[2]) for one in arguments if one.startswith("--config-path=")]
        name = saved[0].name if saved else ranking.BASELINE
        write_samples(name, saved[0].parent if saved else folder, 2 if "kto" in name else 9 if "dpo" in name else 5)
    elif script == "compare.py":
        assert compare.main(arguments) == 0
    else:
        assert arguments[0] == "reports.ranking_plots" and ranking_plots.main(arguments[1:]) == 0


def test_the_record_is_what_the_commands_left(tmp_path, monkeypatch, capsys):
    """Prevents figures of another run, and runs that are trained or sampled twice."""
    begun: list[str] = []

    def run(*command: str) -> str:
        begun.append(command[0])
        capsys.readouterr()
        run_small(*command)
        return capsys.readouterr().out

    monkeypatch.setattr(ranking, "run", run)
    monkeypatch.setattr(ranking, "LOSSES", ("dpo", "kto"))
    monkeypatch.setattr(ranking, "SEEDS", (1, 2))
    monkeypatch.setattr(ranking, "RATES", ("1e-6",))
    folder, record = tmp_path / "runs", tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", [
        "ranking", "--folder", str(folder), "--jobs", "1", "--output", str(record), "--figures", str(tmp_path),
    ])  # fmt: skip
    ranking.main()
    assert [begun.count(script) for script in ("train.py", "eval.py", "compare.py", "-m")] == [4, 5, 1, 1]
    made = json.loads(record.read_text())
    assert str(tmp_path) not in record.read_text(), "where it was made is no part of a record"
    assert [(row["loss"], row["seed"], row["lr"]) for row in made["runs"]] == [
        ("dpo", 1, 1e-6), ("dpo", 2, 1e-6), ("kto", 1, 1e-6), ("kto", 2, 1e-6),
    ]  # fmt: skip
    first, last = made["runs"][0], made["runs"][-1]
    assert (first["win_rate"], first["wins"], first["losses"], first["ties"]) == (25, 0, 1, 1)
    assert (last["win_rate"], last["wins"], last["losses"], last["ties"]) == (75, 1, 0, 1)
    assert (first["mean_words"], last["mean_words"], last["ended"], last["loss/eval"]) == (9.5, 2.5, 1, 2.25)
    assert last["right"] == 2 and made["before"] == {"mean_words": 5.5, "ended": 1, "right": 2}
    assert made["ranking"][0].startswith("Ranking on 2 prompts") and "loss=kto" in made["ranking"][1]
    assert len(made["ranking"]) == 3 and made["prompts"] == 2
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("ranking.png", "ranking-curves.png"))


def test_the_commands_are_those_of_the_readme():
    """Prevents a record that other settings made than the README shows."""
    lines = README.replace("\\\n", "").split("\n")
    training = next(line for line in lines if line.startswith("python train.py -m loss=sft,dpo,ipo"))
    shown = read_command(training.split()[2:])
    ours = read_command(ranking.training(",".join(ranking.LOSSES), 1, Path("x")))
    names = ("exp_name=", "cache_dir=", "seed=")
    assert {one for one in ours.overrides if not one.startswith(names)} == {
        one for one in shown.overrides if not one.startswith(names)
    }
    assert f"seed={','.join(map(str, ranking.SEEDS))}" in shown.overrides
    assert README.count(" ".join(ranking.SAMPLING)) == 2
