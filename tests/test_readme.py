"""The README is executed: its commands, its tutorial (inside the tree and outside it), its file tree."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from launch.compose import check_command
from tests.readme import README, ROOT, TUTORIAL, blocks, commands, run, stand_ins, tutorial_files

(RANKING,) = [block.text for block in blocks(README) if "seed=1,2,3" in block.text]
(PRETRAINING,) = [block.text for block in blocks(README) if "task=pep8" in block.text]
BEFORE_THE_TUTORIAL = README[: README.index("## Tutorial")].replace(RANKING, "").replace(PRETRAINING, "")
SMALL = ["n_examples=8", "n_eval_examples=4", "model.batch_size=4"]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("readme")
    return folder, stand_ins(folder)


def command_of(number: int, script: str) -> list[str]:
    """The n-th command of a script in the README, before the tutorial."""
    return [c for c in commands(BEFORE_THE_TUTORIAL) if script in c][number]


def offline(command: list[str], here: tuple[Path, dict[str, list[str]]]) -> list[str]:
    """A command with overrides that name local weights and files, and make it small."""
    folder, overrides = here
    added = [] if "model=tiny" in command else list(overrides["model"])
    datasets = next((part for part in command if part.startswith("datasets=")), "")
    for name in ("shp", "hh", "oasst"):
        if re.search(rf"\b{name}\b", datasets):
            added += overrides[name]
    cache = [part.replace("/data/models", str(folder / "models")) for part in command if "cache_dir" in part]
    kept = [part for part in command if "cache_dir" not in part]
    kept = [str(ROOT / part) if part.endswith(".py") else part for part in kept]
    return [*kept, *(cache or [f"cache_dir={folder / '.cache'}"]), *added]


def test_the_two_commands_come_first():
    """Prevents a README whose first block does not set everything up."""
    assert commands(README)[:2] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in ("demo", "test"))


@pytest.mark.parametrize("number", range(5))
def test_training_commands_run(number, here):
    """Prevents documented commands that fail: the default, KTO, SFT, KTO from the SFT checkpoint, DPO by LoRA."""
    command = offline(command_of(number, "train.py"), here)
    printed = run([*command, *SMALL], here[0])
    assert "done: " in printed


def test_torchrun_command_runs(here):
    """Prevents a torchrun line that only looks right; two processes stand for eight."""
    (command,) = [c for c in commands(BEFORE_THE_TUTORIAL) if c[0] == "torchrun"]
    command = [part.replace("8", "2") if part == "8" else part for part in offline(command, here)]
    command[0] = str(Path(__import__("sys").executable).parent / "torchrun")
    assert "done: " in run([*command, *SMALL], here[0])


def test_multirun_command_runs_every_job(here):
    """Prevents a multirun whose jobs share a folder: three losses at two learning rates are six runs."""
    (command,) = [c for c in commands(BEFORE_THE_TUTORIAL) if "-m" in c]
    run([*offline(command, here), *SMALL], here[0])
    finished = sorted(path.parent.name for path in (here[0] / ".cache").glob("tiny_*lr*/finished.json"))
    assert len(finished) == 6, finished


def test_inspect_command_shows_the_data(here):
    """Prevents an inspection that trains, or hides what is dropped."""
    (command,) = [c for c in commands(BEFORE_THE_TUTORIAL) if "mode=inspect" in c]
    printed = run(offline(command, here), here[0])
    assert "[[" in printed and "447" in printed
    account = json.loads((here[0] / ".cache" / "smollm2-135m_dpo" / "data.json").read_text())
    assert account["everyday"]["train"]["rows"] == account["everyday"]["train"]["used"] == 447


def test_sampling_evaluating_exporting_and_judging(here):
    """Prevents documented eval.py and compare.py lines that fail, and two samplings that differ."""
    folder = here[0]
    train = [*offline(command_of(0, "train.py"), here), *SMALL]
    run(train, folder)  # already finished when the first test ran: then it says so
    short = ["++max_new_tokens=8", "++n_samples=4"]
    sample, evaluate, export, other, *scores = [c for c in commands(BEFORE_THE_TUTORIAL) if "eval.py" in c]
    assert len(scores) == 3 and all("++mode=score" in c for c in scores)
    run([*absolute(sample), *short], folder)
    first = (folder / "samples" / "smollm2-135m_kto.json").read_bytes()
    run([*absolute(sample), *short], folder)
    assert (folder / "samples" / "smollm2-135m_kto.json").read_bytes() == first
    assert "loss/eval" in run(absolute(evaluate), folder)
    run(absolute(export), folder)
    assert (folder / ".cache" / "smollm2-135m_kto" / "export" / "model.safetensors").exists()
    run([*absolute(other), *here[1]["model"], *short, "++exp_name=untrained", "++cache_dir=fresh"], folder)
    assert (folder / "samples" / "untrained.json").exists()
    asked, by_rule = [c for c in commands(BEFORE_THE_TUTORIAL) if "compare.py" in c]
    assert "OPENAI_API_KEY" in run(absolute(asked), folder, expect=2, OPENAI_API_KEY="")
    assert "win rate" in run(absolute(by_rule), folder)
    line = json.loads((folder / "result.jsonl").read_text().splitlines()[-1])
    assert line["total"] == 4 and len(line["ci95"]) == 2


def test_the_ranking_runs(here, tmp_path):
    """Prevents a ranking whose files are not where its commands look; fewer losses, rates and seeds stand for more."""
    script = RANKING.replace("sft,dpo,ipo,kto,slic,simpo", "dpo,ipo").replace("1e-6,3e-6,1e-5", "1e-5")
    script = script.replace("seed=1,2,3", "seed=1,2").replace("n_examples=128 n_eval_examples=32", "n_examples=8")
    script = script.replace("batch_size=8", "batch_size=4").replace("++max_new_tokens=64", "++max_new_tokens=4")
    local = " ".join(here[1]["model"])
    script = script.replace("-m loss", f"-m {local} n_eval_examples=4 loss").replace("model=smollm2-135m", local)
    printed = run(["bash", "-euc", as_script(script)], tmp_path)
    assert "Ranking on" in printed and printed.count("2 seeds") == 2
    assert printed.count("reference values: 0 computed") == 2, "the second loss finds what the first one computed"
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("ranking.png", "curves.png"))


def as_script(text: str) -> str:
    """Commands as they run from any folder."""
    text = re.sub(r"\bpython (\w+\.py)", rf"{sys.executable} {ROOT}/\1", text)
    return text.replace("python -m reports", f"PYTHONPATH={ROOT} {sys.executable} -m reports")


def test_the_pretraining_runs(tmp_path):
    """Prevents a figure whose files are not where its commands look; fewer objectives, tokens and samples stand for
    more."""
    for folder, package in (("my_code", "scorers"), ("other_code", "reports")):
        shutil.copytree(ROOT / package, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = PRETRAINING
    for part, instead in {
        "mle,filtering,conditional,unlikelihood,awr,rwr": "mle,conditional",
        "task.n_tokens=5000000": "task.n_tokens=4096 task.shuffle_buffer=16 n_eval_examples=2 model.max_length=128 "
        "model.max_prompt_length=64",
        "batch_size=2": "batch_size=8", "n_samples=2048": "n_samples=8", "max_new_tokens=96": "max_new_tokens=16",
        "kl.documents=held_out.jsonl": "kl.documents=held_out.jsonl ++kl.n_documents=4",
    }.items():  # fmt: skip
        assert part in script, f"without another value for {part} this would take hours"
        script = script.replace(part, instead)
    printed = run(["bash", "-euc", as_script(script)], tmp_path)
    assert printed.count("passes over the") + printed.count("less than one pass") == 2
    assert (tmp_path / "pareto.png").stat().st_size > 5000
    assert "conditional" in (tmp_path / "samples.html").read_text()


def test_the_finetuning_is_one_that_can_be(tmp_path, monkeypatch):
    """Prevents documented lines that are refused; a file stands for the checkpoint, of which a test of its own says
    that the run keeps it."""
    (block,) = [block.text for block in blocks(README) if "task.phase=finetune" in block.text]
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        _, script, *arguments = line.split()
        (saved,) = [part.partition("=")[2] for part in arguments if part.startswith("model.load_from=")]
        Path(saved).parent.mkdir(parents=True)
        Path(saved).touch()
        assert check_command(arguments, script) == arguments


def test_scoring_commands_run(here):
    """Prevents documented scorings that fail, of code, of rows and of a run's samples (a file stands for these)."""
    folder = here[0] / "scoring"
    for name in ("samples", "scorers", "data"):
        (folder / name).mkdir(parents=True)
    for name in ("scorers/lines.py", "data/everyday_train.jsonl"):
        shutil.copy(ROOT / name, folder / name)
    samples = [{"prompt": "Who?", "policy": "You damn fool."}, {"prompt": "Who?", "policy": "A friend."}]
    (folder / "samples" / "smollm2-135m_kto.json").write_text(json.dumps({"samples": samples}))
    code, rows, responses = [c for c in commands(BEFORE_THE_TUTORIAL) if "++mode=score" in c]
    assert "scored: 1; without a score: 0" in run(absolute(code), folder)
    printed = run(absolute(rows), folder)
    assert "447 documents" in printed and "Names of people and places are not covered" in printed
    run(absolute(responses), folder)
    lines = (folder / "scores" / "smollm2-135m_kto-profanity.jsonl").read_text().splitlines()
    bad, good = (json.loads(line)["score"] for line in lines)
    assert bad > 0.8 > 0.2 > good


def absolute(command: list[str]) -> list[str]:
    return [str(ROOT / part) if part.endswith(".py") else part for part in command]


def test_every_command_is_covered_above():
    """Prevents a new README command that no test runs: 2 make, 8 train.py, 1 torchrun, 7 eval.py, 2 compare.py."""
    found = commands(BEFORE_THE_TUTORIAL)
    assert [sum(script in c for c in found) for script in ("make", "train.py", "eval.py", "compare.py")] == [2, 9, 7, 2]
    assert len(found) == 20
    assert len(commands(TUTORIAL)) == 4 and len(tutorial_files()) == 5
    assert len(blocks(README)) == 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 5 + 1 + 1


def test_the_tutorial_literally(tmp_path):
    """Prevents a tutorial that does not work as it stands, in a copy of the tree."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "samples", "demo", "benchmarks", "tests")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for path, contents in tutorial_files().items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (copy / path).exists()
        (copy / path).write_text(contents)
    for command in commands(TUTORIAL):
        run(command, copy)
    assert json.loads((copy / "result.jsonl").read_text())["total"] == 2
    assert (copy / ".cache" / "tiny_kto" / "finished.json").exists()


def test_the_tutorial_outside_the_tree(tmp_path):
    """Prevents that what users write works only inside the repository."""
    package, configs = tmp_path / "my_package", tmp_path / "my_configs"
    for path, contents in tutorial_files().items():
        target = configs / path.removeprefix("config/") if path.endswith(".yaml") else package / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        contents = contents.replace("function: get_capitals ", f"function: {package}/capitals.py:get_capitals ")
        target.write_text(contents.replace("trainer: SimpleKTO", "trainer: my_package.simplekto.SimpleKTO"))
    (package / "__init__.py").touch()
    train, kto, sample, compare = [absolute(command) for command in commands(TUTORIAL)]
    run([*train, "--config-dir", str(configs)], tmp_path)
    kto = [part.replace("OneResponse", "my_package.one_response.OneResponse") for part in kto]
    run(kto, tmp_path)
    run(sample, tmp_path)
    run(compare, tmp_path)
    saved = json.loads((tmp_path / "samples" / "capitals.json").read_text())
    assert [set(entry) >= {"prompt", "chosen", "policy", "finish_reason"} for entry in saved["samples"]] == [True, True]


def test_the_tree_is_the_tree():
    """Prevents a map of folders that are not there, or a folder that is on no map."""
    (tree,) = [block.text for block in blocks(README) if "compose, build, run" in block.text]
    named = {name.rstrip("/") for line in tree.splitlines() for name in line.split("   ")[0].split()}
    there = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))}
    made = {"samples", "scores", "demo", "outputs", "wandb"}  # by runs; git ignores them
    assert there - made == {name for name in named if "." not in name}
    assert all((ROOT / name).exists() for name in named)
