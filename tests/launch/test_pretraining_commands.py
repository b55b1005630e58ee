"""Pretraining with human preferences by commands: what the paper's tasks compose to, whole runs, what is refused."""

from __future__ import annotations

import json
import re

import pytest
import torch

from dataloaders.resolve import ROOT
from launch.compose import compose
from launch.composer import CONFIG
from launch.evaluate import run as evaluate
from launch.generation_checks import scenarios_of
from launch.model_checks import warn_of_other_tokens
from launch.saved_config import compose_for_eval
from launch.train import run as train
from models.loading import load_model, load_tokenizer
from tests import documents

PAPER = {  # lr and blocks of a step of pretraining and finetuning, then what the loss has; from the original's YAMLs
    ("toxicity", "mle"): (5e-4, 64, None, None, {}),
    ("toxicity", "filtering"): (5e-4, 64, 5e-4, 64, {"threshold": 0.00078}),
    ("toxicity", "conditional"): (5e-4, 64, None, None, {"threshold": 0.00056, "drop_token_fraction": 0.01}),
    ("toxicity", "unlikelihood"): (5e-4, 64, 5e-4, 64, {"threshold": 0.00078, "alpha": 1.0}),
    ("toxicity", "awr"): (1e-3, 1024, 1e-3, 512, {"alpha": 0.5, "beta": 10.0}),
    ("toxicity", "rwr"): (5e-4, 1024, 5e-4, 512, {"beta": 10.0}),
    ("pii", "mle"): (5e-4, 64, 1e-4, 128, {}),
    ("pii", "filtering"): (5e-4, 64, 1e-4, 128, {"threshold": 0.000286}),
    ("pii", "conditional"): (5e-4, 64, 1e-4, 128, {"threshold": 0.0, "drop_token_fraction": 0.01}),
    ("pii", "unlikelihood"): (5e-4, 64, 1e-4, 128, {"threshold": 0.0, "alpha": 1.0}),
    ("pii", "awr"): (5e-4, 64, 1e-4, 512, {"alpha": 0.5, "beta": 0.1}),
    ("pii", "rwr"): (5e-4, 64, 1e-4, 512, {"beta": 10.0}),
    ("pep8", "mle"): (8e-4, 64, None, None, {}),
    ("pep8", "filtering"): (8e-4, 64, None, None, {"threshold": 0.002361}),
    ("pep8", "conditional"): (8e-4, 64, None, None, {"threshold": 0.0, "drop_token_fraction": 0.1}),
    ("pep8", "unlikelihood"): (8e-4, 64, None, None, {"threshold": 0.0, "alpha": 0.01}),
    ("pep8", "awr"): (1e-3, 256, None, None, {"alpha": 0.05, "beta": 1.0}),
    ("pep8", "rwr"): (1e-3, 64, None, None, {"beta": 10.0}),
}
SCENARIOS = {  # of each task, from the original's YAMLs: samples, tokens, threshold of hits
    "toxicity": {"unconditional": (4096, 128, 0.5)},
    "pii": {"unconditional": (4096, 128, 0.0)},
    "pep8": {"unconditional": (4096, 640, 0.0), "functions": (4096, 272, 0.0)},
}
SEEN = {"toxicity": 25354 * 64 * 1024, "pii": 25177 * 64 * 1024, "pep8": 25177 * 64 * 1024}
SMALL = [
    "model=tiny", "n_examples=16", "model.batch_size=4", "n_eval_examples=4", "lr=1e-2", "device=cpu", "eval_every=16",
]  # fmt: skip


@pytest.mark.parametrize(("task", "loss"), PAPER)
def test_the_papers_hyperparameters(task: str, loss: str):
    """Prevents a recipe that is not the paper's: each pair of task and loss, in both phases, and what it keeps of them
    when the user changes one."""
    lr, blocks, finetune_lr, finetune_blocks, of_loss = PAPER[task, loss]
    config = compose([f"task={task}", f"loss={loss}"])
    assert (config.lr, config.model.batch_size) == (lr, blocks)
    assert {key: config.loss[key] for key in of_loss} == of_loss
    assert config.loss.get("mode", "threshold") == "threshold" and config.loss.get("quantile") is None
    assert (config.weight_decay, config.scheduler, config.warmup, config.task.n_tokens) == (0.1, "linear", 0.01, 3.3e9)
    assert (config.model.max_length, config.task.tokens_already_seen, config.seed) == (1024, 0, 42)
    assert config.exp_name == f"{config.model.name}_{loss}_{task}"
    assert config.model.name == ("codeparrot-small" if task == "pep8" else "gpt2-small")
    finetune = [f"task={task}", f"loss={loss}", "task.phase=finetune", "model=smollm2-135m"]
    config = compose([*finetune, "seed=3"])
    assert (config.lr, config.model.batch_size) == (finetune_lr or lr, finetune_blocks or blocks)
    assert config.task.tokens_already_seen == SEEN[task] and config.seed == 3
    config = compose([*finetune, "lr=1e-5", "task.tokens_already_seen=0"])
    assert (config.lr, config.task.tokens_already_seen) == (1e-5, 0)


@pytest.mark.parametrize("task", SCENARIOS)
def test_the_papers_samples(task: str):
    """Prevents figures of other samples than the paper's, whatever the loss."""
    scenarios = scenarios_of(compose([f"task={task}", "loss=mle"]).generation)
    found = {name: (one["n_samples"], one["max_new_tokens"], one["hits_threshold"]) for name, one in scenarios.items()}
    assert found == SCENARIOS[task]
    for name, one in scenarios.items():
        assert (one["temperature"], one["top_p"], one["top_k"], one["min_new_tokens"]) == (0.7, 0.9, 0, 10)
        assert one["use_prompt_for_scoring"] is (name == "functions") and one["prefix"] is None


@pytest.mark.parametrize("task", SCENARIOS)
def test_finetuning_finds_its_checkpoints(task: str):
    """Prevents a finetuning that begins nowhere: loss=mle keeps a checkpoint at exactly the tokens that the finetuning
    passes over, and one within a save of its other arm, 90 %."""
    config = compose([f"task={task}", "loss=mle"])
    half, rest = divmod(SEEN[task], config.model.max_length)
    assert rest == 0 and half % config.save_every == 0 and config.save_every % config.model.batch_size == 0
    assert config.keep_last is None and compose([f"task={task}", "loss=awr"]).keep_last == 1
    text = (CONFIG / "task" / f"{task}.yaml").read_text()
    tokens, step = map(int, re.search(r"90 %: (\d+), step-(\d+)", text).groups())
    assert tokens == step * config.model.max_length and step % config.save_every == 0
    assert abs(step - 2_970_000_000 / 1024) < config.save_every / 2 and f"_{task}/step-{half}/policy.pt" in text


def test_functions_are_drawn_after_their_headers(tmp_path, monkeypatch):
    """Prevents prompts that are found from the project's folder alone, and bodies that are scored without headers."""
    monkeypatch.chdir(tmp_path)
    few = ["n_samples=4", "max_new_tokens=16"]
    scenarios = [f"generation.scenarios.{name}.{one}" for name in ("functions", "unconditional") for one in few]
    command = [*SMALL, *documents.command(), "task=pep8", "loss=mle", "n_examples=4", "model.max_length=256"]
    train(compose([*command, *scenarios, "generation.batch_size=4", "cache_dir=runs"]))
    (folder,) = (tmp_path / "runs").glob("tiny_*")
    lines = (folder / "samples" / "functions-4.jsonl").read_text().splitlines()
    headers = {json.loads(line)["text"] for line in (ROOT / "data" / "function_headers.jsonl").open()}
    assert len(lines) == 4 and {json.loads(line)["prompt"] for line in lines} <= headers
    kept = json.loads((folder / "alignment.json").read_text())
    assert list(kept["scenarios"]) == ["functions", "unconditional"]
    assert kept["scenarios"]["functions"]["score"]["n"] == 4
    settings = kept["settings"]
    assert (settings["functions"]["prompts"], settings["unconditional"]["prompts"]) == (60, 0)
    assert settings["functions"]["use_prompt_for_scoring"]


def test_a_scenario_can_be_left_out():
    """Prevents a task's second scenario that costs every short run its samples."""
    config = compose(["task=pep8", "loss=mle", "generation.scenarios.functions=null"])
    assert list(scenarios_of(config.generation)) == ["unconditional"]


def test_all_pairs_are_there():
    """Prevents a pair of task and loss without a recipe, which would silently train with defaults."""
    found = {tuple(file.stem.split("-")) for file in (CONFIG / "recipe").glob("*.yaml")}
    assert found == set(PAPER)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A finished run of loss=conditional, and its folder."""
    cache = tmp_path_factory.mktemp("runs")
    config = compose(["loss=conditional", *SMALL, *documents.command(), f"cache_dir={cache}"])
    train(config)
    return cache / config.exp_name


def test_control_tokens_go_with_a_run(conditional):
    """Prevents tokens that a checkpoint has no rows for, or whose rows were never learned."""
    tokenizer = load_tokenizer(str(conditional / "LATEST"))
    ids = tokenizer.convert_tokens_to_ids(["<|aligned|>", "<|misaligned|>"])
    assert ids == [259, 260] and len(tokenizer) == 261
    assert tokenizer("a<|aligned|>", add_special_tokens=False).input_ids[-1] == 259
    state = torch.load(conditional / "LATEST" / "policy.pt", weights_only=True)["state"]
    rows = state["model.embed_tokens.weight"]
    assert rows.shape[0] == 261
    distance = (rows[259:] - rows[:259].mean(dim=0)).norm(dim=1)
    assert (distance > 2 * 0.01 * rows.shape[1] ** 0.5).all(), "twice the noise that they began with"


def test_control_tokens_that_were_hardly_learned_are_said(conditional, tmp_path, caplog):
    """Prevents samples that heed no control token, and nobody knows why: after four updates each costs many bits."""
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps({"text": "ab. cd.", "score": 0.5, "segments": [[0, 4], [4, 7]], "scores": [0.0, 1.0]}))
    overrides = ["++mode=kl", f"++kl.documents={file}", "device=cpu"]
    config, folder = compose_for_eval([f"--config-path={conditional}", *overrides])
    bits = evaluate(config, folder)["bits_per_control_token"]["mean"]
    assert bits > 4 and f"a control token costs {bits:.1f} bits" in caplog.text


def test_a_run_with_control_tokens_is_evaluated_and_exported(conditional):
    """Prevents a checkpoint that nobody can load, because its vocabulary is larger than its model's."""
    config, folder = compose_for_eval([f"--config-path={conditional}", "++mode=eval", "device=cpu"])
    metrics = evaluate(config, folder)
    logged = [json.loads(line) for line in (conditional / "metrics.jsonl").read_text().splitlines()]
    assert metrics["loss/eval"] == pytest.approx(logged[-1]["loss/eval"], abs=1e-5)
    config, folder = compose_for_eval([f"--config-path={conditional}", "++mode=export"])
    exported = evaluate(config, folder)
    assert load_model(str(exported)).get_input_embeddings().weight.shape[0] == 261


def test_a_quantile_becomes_a_threshold(conditional, capsys):
    """Prevents a saved config that does not say what was good, and a second start that trains again."""
    (saved,) = [line for line in (conditional / "config.yaml").read_text().splitlines() if "threshold: 0.0" in line]
    assert saved.strip() == "threshold: 0.0"
    train(compose(["loss=conditional", *SMALL, *documents.command(), f"cache_dir={conditional.parent}"]))
    account = json.loads((conditional / "data.json").read_text())["local"]
    assert account["train"]["rows"] > 20 and account["train"]["examples"] == 16
    assert account["test"]["examples"] == 4


def test_finetuning_goes_on_from_maximum_likelihood(tmp_path, caplog):
    """Prevents control tokens that the weights of a run of mle have no room for, and documents that are seen twice
    without a word."""
    common = [*SMALL, *documents.command(), f"cache_dir={tmp_path}"]
    train(compose(["loss=mle", *common]))
    config = compose(
        [
            "loss=conditional",
            *common,
            "task.phase=finetune",
            "model.load_from=tiny_mle/LATEST/policy.pt",
            "n_examples=8",
        ]
    )
    assert config.exp_name == "tiny_conditional_finetune"
    train(config)
    assert "policy.pt has seen 1024 tokens, and task.tokens_already_seen=0" in caplog.text
    caplog.clear()
    config.task.tokens_already_seen = 1024
    warn_of_other_tokens(config)
    config.task.phase, config.task.tokens_already_seen = "pretrain", 0
    warn_of_other_tokens(config)
    assert not caplog.text
    logged = [json.loads(line) for line in (tmp_path / config.exp_name / "metrics.jsonl").read_text().splitlines()]
    scratch = [json.loads(line) for line in (tmp_path / "tiny_mle" / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["loss/eval"] < scratch[0]["loss/eval"] - 0.05
    assert logged[-1]["counters/tokens"] == 8 * 64


def test_a_tokenizer_is_learned_from_the_documents(tmp_path):
    """Prevents a tokenizer that loses text, that is learned anew each time, or that a checkpoint does not carry."""
    common = [*SMALL, *documents.command(), f"cache_dir={tmp_path}", "loss=mle", "n_examples=4", "exp_name=learned"]
    common += ["model.shape.vocabulary=300", "model.tokenizer_name_or_path=corpus:300"]
    train(compose(common))
    tokenizer = load_tokenizer(str(tmp_path / "learned" / "LATEST"))
    assert len(tokenizer) == 300
    text = "Calm warm. \n\ttabs  and  spaces\u00e9\u4e2d"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("calm").input_ids) < 4, "it has learned something"
    (folder,) = (tmp_path / "tokenizers").iterdir()
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    train(compose([*common, "overwrite=true"]))
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("overrides", "message"), [
    (["loss=conditional", "loss.aligned_prefix='<|im_end|>'"], "is a token that the tokenizer has already"),
    (["loss=conditional", "loss.aligned_prefix=x", "loss.misaligned_prefix=x"], "could not tell them apart"),
    (["loss=awr", "loss.alpha=0"], "must be above 0 and below 1"),
    (["loss=awr", "loss.alpha=2"], "must be above 0 and below 1"),
    (["loss=conditional", "loss.threshold=0.5"], "say the same in two ways"),
    (["loss=filtering", "loss.quantile=null"], r"set loss.threshold, or loss.quantile=0.5"),
    (["loss=conditional", "model.lora.rank=2"], "an adapter does not train"),
    (["loss=mle", "task.phase=finetune"], r"set model.load_from=RUN/LATEST/policy.pt"),
    (["loss=mle", "datasets.local.weight=2"], "documents are not weighted"),
    (["loss=mle", "model.tokenizer_name_or_path=corpus:100"], "at least 257 tokens"),
    (["loss=kto", "model.tokenizer_name_or_path=corpus:300"], "from the documents of a loss on documents"),
    (["loss=mle", "task.n_tokens=100"], "fewer than one step takes"),
    (["loss=unlikelihood", "loss.mode=hard"], "must be one of threshold, soft"),
    (["loss=filtering", "loss.quantile=1.0"], "above 0 and below 1"),
    (["loss=conditional", "loss.drop_token_fraction=1"], "at least 0 and below 1"),
    (["loss=conditional", "loss.embedding_noise=-1"], "must be at least 0"),
])  # fmt: skip
def test_what_is_refused(overrides: list[str], message: str, tmp_path):
    """Prevents a training that means something else than its command says."""
    with pytest.raises(ValueError, match=message):
        train(compose([*SMALL, *documents.command(), f"cache_dir={tmp_path}", *overrides]))


@pytest.mark.parametrize(("overrides", "message"), [
    (["loss=mle", "datasets=[everyday]"], r"datasets=\[everyday\] has no documents"),
    (["loss=kto", "task=toxicity", "model=tiny"], r"datasets=\[toxicity_pile\] holds documents"),
])  # fmt: skip
def test_data_of_the_other_kind(overrides: list[str], message: str, tmp_path):
    """Prevents documents that are prompts, and prompts that are documents."""
    with pytest.raises(ValueError, match=message):
        train(compose([*SMALL, f"cache_dir={tmp_path}", *overrides]))


def test_samples_stand_behind_the_good_token(conditional, monkeypatch):
    """Prevents samples of a conditional run that begin without its control token, or turn to the other one."""
    import models.generation.hf as hf

    seen = []
    draw = hf.HFGenerator.generate

    def watched(self, prompts, *args, **kwargs):
        completions = draw(self, prompts, *args, **kwargs)
        seen.append((prompts, completions))
        return completions

    monkeypatch.setattr(hf.HFGenerator, "generate", watched)
    scenario = ["generation.scenarios.free.n_samples=6", "generation.scenarios.free.max_new_tokens=20"]
    arguments = [f"--config-path={conditional}", "mode=generate", "device=cpu", *(f"++{one}" for one in scenario)]
    config, folder = compose_for_eval(arguments)
    evaluate(config, folder)
    ((prompts, completions),) = seen
    tokenizer = load_tokenizer(str(conditional / "LATEST"))
    assert [prompt.tolist() for prompt in prompts] == [[tokenizer.eos_token_id, 259]] * 6
    assert not any(token == 260 for completion in completions for token in completion.ids)
    (file,) = (conditional / "samples").glob("*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 6 and not any("aligned" in str(sample) for sample in samples)
