"""Each mistake in a command is an error that names the fix, before torch is imported."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.compose import check_command

ROOT = Path(__file__).parents[2]

MISTAKES = {
    # Hydra alone runs these four
    "++loss.betta=3": r"key loss\.betta; did you mean loss\.beta\?",
    "lr=fast": r"^lr=fast: expected a number, such as 5e-06\.$",
    "++eval_batch_size=3": r"did you mean model\.eval_batch_size\?",
    "++model.name=x ++model.lenght=3": r"no YAML of this config has the key model\.lenght",
    # keys
    "max_length=5": r"did you mean model\.max_length\?",
    "betta=3": r"did you mean loss\.beta\?",
    "modle.max_length=3": r"did you mean model\.max_length\?",
    "model.lr=3": r"did you mean lr\?",
    "+lr=3": r"lr is there already; leave out the \+",
    "loss=sft loss.beta=3": r"key loss\.beta; there are loss\.dataloader, .*loss\.use_reference_model\.$",
    "dataset=shp": r"did you mean datasets\?",
    "datasets.hh.path=x.jsonl": r"data set hh is not selected; select it with datasets=\[hh\] \(selected: everyday\)",
    "datasets.everyday.n_example=3": r"did you mean datasets\.everyday\.n_examples\?",
    "model.shape={foo:3}": r"no YAML of this config has the key model\.shape\.foo",
    "zzz=1": r"--cfg job",
    "~lr": r"~lr: every key is read",
    "lr@x=3": r"lr is no config group, so @ has no meaning here",
    # groups
    "loss=dpoo": r"there is no loss=dpoo \(did you mean 'dpo'\?\); there are .*dpo, .*kto, .*sft",
    "model=lama7b": r"did you mean 'llama7b'",
    "model=base_model": r"there is no model=base_model",
    "datasets=[sph,hh]": r"no datasets=sph \(did you mean 'shp'\?\)",
    "+loss=dpo": r"without plus signs, as loss=dpo",
    "++loss=dpo": r"without plus signs, as loss=dpo",
    "~loss": r"a run needs a loss",
    "model=null": r"nothing is chosen",
    "datasets=[]": r"nothing is chosen",
    "loss=[dpo,kto]": r"-m loss=dpo,kto",
    "loss=dpo,kto": r"several values need -m",
    "datasets=shp,hh": r"or datasets=\[shp,hh\] for all in one run",
    "distributed=fsdq": r"there is no distributed=fsdq \(did you mean 'fsdp'\?\); there are ddp, fsdp",
    "distributed.cpu_offload=true": r"key distributed\.cpu_offload; choose distributed=fsdp as well",
    "distributed=fsdp optimizer=AdamW8bit": r"optimizer=AdamW8bit, whose state cannot be cut: set distributed=ddp",
    "distributed=fsdp distributed.reduce_dtype=half": r"must be one of float32, bfloat16",
    # types
    "n_epochs=1.5": r"expected a whole number",
    "seed=true": r"^seed=true: expected a whole number",
    "shuffle=1": r"expected true or false",
    "lr=null": r"^lr=null: expected a number, such as",
    "n_examples=many": r"expected a whole number or null",
    "exp_name=[a]": r"expected a text or null",
    "model.shape.layers=x": r"expected a whole number, such as 30",
    "model.shape=3": r"model\.shape is a section; set one of its keys, such as model\.shape\.\w+",
    "wandb=3": r"wandb is a section",
    "datasets.everyday.path={a:1}": r"datasets\.everyday\.path",
    # ranges
    "lr=0": r"must be above 0",
    "lr=nan": r"lr=nan: must be",
    "lr=inf": r"lr=inf: must be",
    "n_epochs=0": r"at least 1",
    "distributed.heartbeat_seconds=1e9": r"at least 1 and at most 86400 \(a day\), or null",
    "resume=": r"resume is empty: expected auto, never, or the folder of a checkpoint",
    "hydra/launcher=slurm loss=dpo": r"hydra/launcher=slurm: only the jobs of a multirun .* add -m\.$",
    "n_examples=0": r"at least 1, or null",
    "eval_every=0": r"at least 1",
    "temperature=-1": r"at least 0",
    "top_p=1.5": r"at most 1",
    "warmup=5": r"warmup_steps is a number",
    "model.batch_size=0": r"at least 1",
    "model.gradient_accumulation_steps=0": r"at least 1",
    "model.max_prompt_length=1024": r"leaves no token for a response in model\.max_length=1024",
    "loss.beta=-1": r"above 0",
    "loss.desirable_weight=-1": r"at least 0",
    "loss=dpo loss.beta=0": r"loss\.beta=0 must be above 0 for loss=dpo",
    "loss=mpo loss.losses.preference.trainer=IPOTrainer": r"IPOTrainer needs loss\.losses\.preference\.tau",
    "loss=mpo loss.losses.preference.trainer=DPOTraner": r"losses\.preference\.trainer=DPOTraner.*'DPOTrainer'",
    "loss=mpo loss.losses.preference.beta=0": r"losses\.preference\.beta=0.* must be above 0",
    "loss=mpo loss.losses.preference.weight=0 loss.losses.quality.weight=0 loss.losses.generation.weight=0": (
        r"the weights of all parts are 0"
    ),
    "loss=mpo loss.use_reference_model=false": r"takes reference_\w+: set loss\.use_reference_model=true",
    "datasets.everyday.weight=0": r"above 0",
    "datasets.everyday.test_fraction=1.0": r"below 1",
    "optimizer=adam": r"must be one of AdamW, .* \(did you mean 'Adam'\?\)",
    "model.lora.quantize=int4": r"must be one of nf4",
    "model.lora.quantize=nf4": r"without LoRA none are frozen: set model\.lora\.rank=16",
    "scheduler=cosin": r"did you mean 'cosine'",
    "device=gpu": r"must be one of auto, cpu, cuda, mps",
    "pair_weight=sum": r"must be one of mean, product",
    "model.policy_dtype=bf16": r"did you mean 'bfloat16'",
    "mode=inspct": r"must be one of train, inspect, memory \(did you mean 'inspect'\?\)",
    "mode=sample": r"mode=sample is for eval\.py",
    # left open
    "datasets=[local]": r"must be given: add datasets\.local\.path=FILE",
    "datasets=[local] datasets.local.path=pairs.jsonl datasets.local.test_path=folder/../pairs.jsonl": (
        r"test_path=folder/\.\./pairs\.jsonl is trained on as well .* name another file, or leave it out"
    ),
    "lr=${nothing}": r"cannot resolve an interpolation",
    # what does not fit
    "loss.use_reference_model=false": r"KTOTrainer\.loss takes reference_\w+, .*set loss\.use_reference_model=true",
    "loss=dpo loss.dataloader=SFTDataLoader": r"DPOTrainer needs rows with chosen and rejected, SFTDataLoader has "
    r"target: set loss\.dataloader=PairedPreferenceDataLoader",
    "loss.dataloader=PairedPreferenceDataLoader": r"set loss\.dataloader=UnpairedPreferenceDataLoader",
    "loss.dataloader=SFTDataLoader": r"needs rows with target and KL",
    "loss.trainer=KTOTraner": r"did you mean 'KTOTrainer'",
    "loss.dataloader=mine.py:Loader": r"loss\.dataloader=mine\.py:Loader: there is no file mine\.py",
    "datasets.everyday.function=get_everday": r"did you mean 'get_everyday'",
    "datasets=[alpacaeval]": r"test split and nothing to train on",
    # files
    "datasets=[local] datasets.local.path=pair.jsonl": r"no such file \(did you mean 'pairs\.jsonl'\?\)",
    "datasets=[local] datasets.local.path=[pairs.jsonl,none.jsonl]": r"path=none\.jsonl: there is no such file",
    "datasets=[local] datasets.local.path=empty.jsonl": r"the file is empty",
    "datasets=[local] datasets.local.path=folder": r"that is a folder",
    # secrets
    "wandb.api_key=hush": r"no secret belongs in it",
    "++model.hf_token=hush": r"no secret belongs in it",
    # the run's name
    "exp_name=a/b": r"no folder's name",
    "exp_name=..": r"no folder's name",
    "'exp_name='": r"no folder's name|cannot read",
    # the command line itself
    "lr": r"'lr' is no override",
    "datasets=[shp, hh]": r"cannot read the override|is no override",
    "lr=[1": r"cannot read the override 'lr=\[1'.*quotes",
    "exp_name=a=b": r"cannot read the override",
    "--lr=3": r"no option --lr=3 \(a key is set without dashes: lr=3\)",
    "--config-path=foo": r"--config-path with a saved config is for eval\.py",
    "--config-dir=nowhere": r"there is no such folder",
    # several jobs
    "-m loss=dpo,kto exp_name=x": r"jobs 0 and 1 of the multirun would share",
    "-m loss=kto,dpoo": r"did you mean 'dpo'",
    "-m lr=1e-6,fast": r"expected a number",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("empty.jsonl").touch()
    Path("folder").mkdir()


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_refused_with_its_fix(command, files):
    """Prevents a run that ignores what its command says, and errors that leave the user alone."""
    with pytest.raises(ValueError, match=MISTAKES[command]) as error:
        check_command(shlex.split(command))
    assert "\n" not in str(error.value)
    assert "hush" not in str(error.value), "a secret is never repeated"


def run(*arguments: str, script: str = "train.py", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_the_user_sees_one_line_and_exit_code_2(script, files):
    """Prevents tracebacks and Hydra's advice to add the misspelled key."""
    result = run("++loss.betta=3", script=script)
    line = f"{script}: no YAML of this config has the key loss.betta; did you mean loss.beta?\n"
    assert (result.returncode, result.stderr, result.stdout) == (2, line, "")
    assert "Traceback" in run("++loss.betta=3", script=script, AUREOLE_TRACEBACK="1").stderr


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_a_refusal_is_quick_and_imports_no_torch(script, files):
    """Prevents that a typing mistake costs the seconds of loading torch and transformers."""
    heavy = ("torch", "transformers", "datasets")
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, 'datasets=[local]', 'datasets.local.path=empty.jsonl']\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        f"except SystemExit as end: print(end.code, [name for name in {heavy} if name in sys.modules])\n"
    )
    seconds = []  # of a processor: what else runs beside this says nothing of it
    for _ in range(3):
        before = os.times()
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, cwd=".", env={"PYTHONPATH": str(ROOT)})
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.stdout == "2 []\n", result.stderr
        if seconds[-1] < 2:
            break
    assert 0 < min(seconds) < 2


def test_an_error_of_ours_keeps_its_traceback(tmp_path):
    """Prevents bugs that look like mistakes of the user."""
    code = "from launch.errors import one_line_errors\nwith one_line_errors('train.py'): {}['key']"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1 and "Traceback" in result.stderr and "KeyError" in result.stderr


def test_a_full_disk_is_one_line():
    """Prevents a page of traceback, at 3 a.m., of which one line matters; the exit code tells it from a mistake."""
    code = (
        "import errno\nfrom launch.errors import one_line_errors\n"
        "with one_line_errors('train.py'): raise OSError(errno.ENOSPC, 'No space left on device', 'run/metrics.jsonl')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, "")
    line = "train.py: [Errno 28] No space left on device: 'run/metrics.jsonl'"
    assert result.stderr.startswith(line) and len(result.stderr.splitlines()) == 1


def test_a_librarys_value_error_says_how_to_see_more():
    """Prevents a bare `invalid literal` out of the depths of a library."""
    code = (
        "import json\nfrom launch.errors import one_line_errors\n"
        "with one_line_errors('train.py'): json.loads('{')"
    )  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and result.stderr.endswith("(AUREOLE_TRACEBACK=1 shows where)\n")


def test_a_message_that_quotes_data_rules_no_terminal():
    """Prevents a row of somebody's data that hides or rewrites what the terminal shows, by way of an error."""
    code = (
        "from launch.errors import one_line_errors\n"
        "with one_line_errors('train.py'): raise ValueError('its scores are \\x1b]0;owned\\x07')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "\\x1b]0;owned\\x07" in result.stderr and "\x1b" not in result.stderr
