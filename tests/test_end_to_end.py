"""One slice of every path from a command to its files, in this process: train, evaluate, export, upload, wandb."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from launch.compose import compose
from launch.evaluate import run as evaluate
from launch.model_checks import check_positions
from launch.saved_config import compose_for_eval
from launch.train import run as train
from models.loading import load_model
from tests import tiny
from trainers.paired import DPOTrainer

SMALL = ["model=tiny", "n_examples=8", "n_eval_examples=6", "model.batch_size=4", "lr=1e-3"]
SHAPE = dict(tiny.config("sft").model.shape)


def trained(folder: Path, *overrides: str) -> Path:
    """The folder of a small finished run."""
    config = compose([*SMALL, f"cache_dir={folder}", *overrides])
    train(config)
    return folder / config.exp_name


def evaluated(run: Path, *overrides: str) -> object:
    config, folder = compose_for_eval([f"--config-path={run}", *overrides])
    return evaluate(config, folder)


@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_eval_gives_the_numbers_that_training_ended_with(loss, tmp_path):
    """Prevents a mode=eval that fails for some loss, as HALOs' did, or that evaluates something else."""
    run = trained(tmp_path, f"loss={loss}")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["split"] == "eval"][-1]
    found = evaluated(run, "++mode=eval")
    assert found["loss/eval"] == pytest.approx(last["loss/eval"], abs=2e-6)
    assert set(found) == {key for key in last if "eval" in key} - {"eval_seconds"}


def test_a_run_leaves_what_the_readme_says(tmp_path):
    """Prevents a run folder without its config, account, metrics or checkpoint."""
    run = trained(tmp_path, "loss=dpo", "intermediate_checkpoints=true", "keep_best=loss/eval", "eval_every=4")
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "data.json", "metrics.jsonl", "LATEST", "BEST", "step-4", "step-8",
    }  # fmt: skip
    policy = torch.load(run / "LATEST" / "policy.pt", weights_only=True)
    assert set(policy) == {"step_idx", "state", "metrics"} and policy["step_idx"] == 2
    account = json.loads((run / "data.json").read_text())["everyday"]["train"]
    assert {"rows", "used", "dropped"} <= set(account)
    train_records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in train_records if record["split"] == "train"]
    expected = {
        "loss/train", "logps_train/chosen", "logps_train/rejected", "rewards_train/chosen", "rewards_train/rejected",
        "rewards_train/margins", "rewards_train/accuracies", "grad_norm", "counters/examples", "counters/updates",
        "examples_per_second", "tokens_per_second", "peak_memory_gb", "seconds/data", "seconds/reference",
        "seconds/forward", "seconds/backward", "seconds/optimizer",
    }  # fmt: skip
    assert len(steps) == 2 and expected <= set(steps[0])


def test_a_finished_run_is_not_run_again_and_another_config_is_refused(tmp_path, caplog):
    """Prevents two runs in one folder."""
    run = trained(tmp_path, "loss=sft")
    before = (run / "LATEST" / "policy.pt").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        trained(tmp_path, "loss=sft")
    assert "nothing to do" in caplog.text and (run / "LATEST" / "policy.pt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="weight_decay"):
        trained(tmp_path, "loss=sft", "weight_decay=0.5")
    trained(tmp_path, "loss=sft", "weight_decay=0.5", "overwrite=true")
    assert (run / "LATEST" / "policy.pt").stat().st_mtime_ns != before


def test_training_goes_on_from_another_run(tmp_path):
    """Prevents a reference that is not what the policy starts from: before the first step all rewards are zero."""
    trained(tmp_path, "loss=sft", "exp_name=first")
    second = trained(tmp_path, "loss=dpo", "exp_name=second", "++model.load_from=first/LATEST/policy.pt")
    first = torch.load(tmp_path / "first" / "LATEST" / "policy.pt", weights_only=True)["state"]
    fresh = trained(tmp_path, "loss=dpo", "exp_name=third")
    start = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in (second, fresh)]
    assert start[0]["rewards_eval/margins"] == start[1]["rewards_eval/margins"] == 0
    assert start[0]["logps_eval/chosen"] > start[1]["logps_eval/chosen"] + 1
    assert first  # weights there were


def test_an_adapter_goes_on_from_an_adapter(tmp_path):
    """Prevents a LoRA run that starts from, or is judged against, anything but the merged model of the one before."""
    lora = ["model.lora.rank=4", "lr=1e-2"]
    first = trained(tmp_path, "loss=sft", "exp_name=first", *lora)
    second = trained(tmp_path, "loss=kto", "exp_name=second", "model.load_from=first/LATEST/policy.pt", *lora)
    sft, kto = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (first, second))
    assert kto[0]["loss/eval"] == 0.5 and kto[0]["rewards_eval/chosen"] == 0, "policy and reference are the same"
    assert kto[-1]["rewards_eval/chosen"] != 0
    assert sft[-1]["loss/eval"] < sft[0]["loss/eval"] - 0.1
    assert kto[0]["logps_eval/chosen"] > trained_not_at_all(tmp_path)["logps_eval/chosen"] + 1
    contents = [torch.load(run / "LATEST" / "policy.pt", weights_only=True) for run in (first, second)]
    assert all(len(one["state"]) == 2 * 7 * 2 for one in contents)
    assert contents[1]["adapter"]["base"]["load_from"] == "first/LATEST/policy.pt"
    found = evaluated(second, "++mode=eval")
    assert found["loss/eval"] == pytest.approx(kto[-1]["loss/eval"], abs=1e-5)
    exported = load_model(str(evaluated(second, "++mode=export")))
    merged = load_model("random", shape=SHAPE, load_from="second/LATEST", cache_dir=tmp_path)
    assert all(torch.equal(value, exported.state_dict()[name]) for name, value in merged.state_dict().items())


def trained_not_at_all(folder: Path) -> dict[str, float]:
    config, where = compose_for_eval([*SMALL, "loss=kto", f"cache_dir={folder}", "++mode=eval"])
    return evaluate(config, where)


def test_dropout_where_a_loss_computes_twice_is_refused(tmp_path):
    """Prevents the gradient of another loss: the second pass would drop other units than the first."""
    with pytest.raises(ValueError, match=r"model.lora.dropout .* set it to 0"):
        trained(
            tmp_path, "loss=kto", "loss.trainer=tests.trainers.couplings.SimpleKTOTrainer", "model.lora.rank=2",
            "model.lora.dropout=0.1",
        )  # fmt: skip


def test_the_evaluation_names_its_weights(tmp_path):
    """Prevents an eval-test.json that says the untrained model where it was another run's checkpoint."""
    trained(tmp_path, "loss=sft", "exp_name=first")
    start = ["++model.load_from=first/LATEST/policy.pt", "exp_name=start", "++mode=eval"]
    config, folder = compose_for_eval([*SMALL, "loss=sft", f"cache_dir={tmp_path}", *start])
    evaluate(config, folder)
    report = json.loads((tmp_path / "start" / "eval-test.json").read_text())
    assert report["weights"] == "first/LATEST/policy.pt" and report["examples"] == 6


def test_an_export_loads_elsewhere_and_answers_alike(tmp_path):
    """Prevents an export that cannot be loaded, or whose weights, template or stop tokens differ from the run's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained(tmp_path, "loss=sft")
    folder = evaluated(run, "++mode=export")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    state = torch.load(run / "LATEST" / "policy.pt", weights_only=True)["state"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    card = (folder / "README.md").read_text()
    assert "everyday" in card and "name: sft" in card and "loss/eval" in card and "lr: 0.001" in card


def test_an_export_of_a_model_without_a_template_has_the_strings_of_its_training(tmp_path):
    """Prevents an export that chats in another format than the one it was trained in."""
    from transformers import AutoTokenizer

    strings = ["human_prefix='<<H>> '", "human_suffix=' '", "assistant_prefix='<<A>> '", "assistant_suffix=''"]
    run = trained(tmp_path, "loss=sft", *(f"model.{string}" for string in strings))
    folder = evaluated(run, "++mode=export")
    assert AutoTokenizer.from_pretrained(folder).chat_template  # the run's tokenizer brought one
    from dataloaders.chat_format import ChatFormat
    from launch.export import template_of

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template_of(ChatFormat("<<H>> ", " ", '<<A>> "', "", "<s>", "</s>"), None)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == '<s><<H>> Hi <<A>> "Ho<<H>> ? <<A>> "'


def test_temperature_zero_is_greedy_in_samples_and_exports(tmp_path):
    """Prevents a division by zero, samples that depend on the seed, and an export that samples after all."""
    from transformers import GenerationConfig

    run = trained(tmp_path, "loss=sft")
    greedy = ["++temperature=0", "++n_samples=null", "++max_new_tokens=6"]
    paths = [evaluated(run, *greedy, f"++seed={n}", f"++samples_dir={tmp_path / str(n)}") for n in (1, 2)]
    first, again = (json.loads(path.read_text())["samples"] for path in paths)
    assert first == again and any(sample["policy"] for sample in first)
    settings = GenerationConfig.from_pretrained(evaluated(run, "++mode=export", "++temperature=0"))
    assert not settings.do_sample


def test_push_to_uploads_the_export(tmp_path, monkeypatch):
    """Prevents an upload of the wrong folder, or to the wrong place; the call itself is as far as this goes."""
    import huggingface_hub

    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **kw: calls.append((name, kw)))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **kw: calls.append(kw))
    run = trained(tmp_path, "loss=sft")
    evaluated(run, "++mode=export", "++push_to=somebody/something")
    assert calls[0][0] == "somebody/something" and calls[0][1]["private"]
    assert calls[1] == {"repo_id": "somebody/something", "folder_path": str(run / "export")}
    with pytest.raises(ValueError, match="ORG/NAME"):
        evaluated(run, "++mode=export", "++push_to=nowhere")


def test_wandb_offline_gets_the_metrics(tmp_path, monkeypatch):
    """Prevents wandb support that needs an account to be tried, or that keeps a key in the run's files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "secret" * 8)
    run = trained(tmp_path, "loss=sft", "wandb.enabled=true")
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl", ".log"):
            assert "secret" not in path.read_text(errors="replace"), path


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    """Prevents weights that are silently left at random."""
    run = trained(tmp_path, "loss=sft", "exp_name=wide")
    with pytest.raises(ValueError, match="another architecture"):
        trained(
            tmp_path, "loss=sft", "exp_name=narrow", f"++model.load_from={run}/LATEST/policy.pt",
            "model.shape.hidden_size=48", "model.shape.head_size=12",
        )  # fmt: skip


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path):
    """Prevents that loading a policy.pt runs what somebody put in it."""
    import pickle

    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (marker,)

    (tmp_path / "policy.pt").write_bytes(pickle.dumps({"state": Hostile()}))
    torch.save({"state": Hostile()}, tmp_path / "other.pt")
    for name in ("policy.pt", "other.pt"):
        with pytest.raises(ValueError, match=name):
            trained(tmp_path, "loss=sft", f"exp_name={name[:3]}", f"++model.load_from={tmp_path / name}")
    assert not marker.exists()


def test_a_non_finite_loss_stops_before_the_optimizer(tmp_path):
    """Prevents a checkpoint of NaNs: the message names the step and the examples, and no checkpoint is written."""
    with pytest.raises(ValueError, match=r"not finite at optimizer step 2 .*everyday: "):
        trained(tmp_path, "loss=sft", "lr=1e30", "warmup=0", "model.max_grad_norm=null", "optimizer=SGD")
    assert not (tmp_path / "tiny_sft" / "LATEST").exists()


def test_a_damaged_model_is_named_before_it_trains(tmp_path):
    """Prevents a run of nan losses from a checkpoint whose weights are nan already."""
    run = trained(tmp_path, "loss=sft", "exp_name=broken")
    path = run / "LATEST" / "policy.pt"
    contents = torch.load(path, weights_only=True)
    next(iter(contents["state"].values()))[0] = float("nan")
    torch.save(contents, path)
    with pytest.raises(ValueError, match=r"not finite.*embed"):
        trained(tmp_path, "loss=sft", "exp_name=next", "model.load_from=broken/LATEST/policy.pt")


def test_more_positions_than_were_learned_are_named_before_training():
    """Prevents an index error deep in a GPT-2 whose context is shorter than model.max_length."""
    model = tiny.tiny_model("gpt2")
    check_positions(model, 512)
    with pytest.raises(ValueError, match=r"model.max_length=513, .* 512 positions"):
        check_positions(model, 513)
    check_positions(tiny.tiny_model("llama"), 10**6)


def test_the_next_run_finds_the_reference_values(tmp_path, monkeypatch):
    """Prevents a sweep whose every job computes the same reference; the mismatched pairs of an epoch are kept too."""
    from models.reference import Reference

    trained(tmp_path, "loss=kto", "exp_name=first")
    monkeypatch.setattr(Reference, "model", property(lambda _: pytest.fail("the reference was loaded")))
    trained(tmp_path, "loss=kto", "exp_name=second", "loss.beta=0.3")
    records = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert any(abs(record.get("rewards_eval/margins", 0)) > 0 for record in records)
    with pytest.raises(pytest.fail.Exception, match="was loaded"):
        trained(tmp_path, "loss=kto", "exp_name=third", "cache_reference=false")


class Misspelled(DPOTrainer):
    """A loss with a slip in a parameter's name."""

    def loss(self, policy_choosen_logps, policy_rejected_logps):
        """Never called."""
        return policy_choosen_logps - policy_rejected_logps


def test_a_misspelled_response_is_named_before_anything_is_loaded(tmp_path):
    """Prevents a KeyError in the middle of the first evaluation, for the likeliest slip in a loss of one's own."""
    with pytest.raises(ValueError, match=r"policy_choosen_logps.*did you mean 'chosen'\?.*chosen, rejected"):
        trained(tmp_path, "loss=dpo", "loss.trainer=tests.test_end_to_end.Misspelled")
    assert not (tmp_path / "tiny_dpo").exists()


def test_a_data_set_without_its_package_line_is_named(tmp_path):
    """Prevents an AttributeError where a comment stands before a data set's `# @package` line."""
    (tmp_path / "datasets").mkdir()
    lines = "# mine\n# @package datasets.mine\nfunction: get_everyday\nn_examples: null\nweight: 1.0\n"
    (tmp_path / "datasets" / "mine.yaml").write_text(lines)
    with pytest.raises(ValueError, match=r"@package datasets\.NAME"):
        compose(["datasets=[mine]"], config_dirs=[tmp_path])


def own_data(folder: Path, **extra: object) -> list[str]:
    """A file of pairs with more keys, and the overrides that choose it."""
    rows = [{"prompt": f"Question {n}?", "chosen": f"Yes {n}.", "rejected": f"No {n}.", **extra} for n in range(12)]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["datasets=[local]", f"datasets.local.path={folder / 'own.jsonl'}", "datasets.local.test_fraction=0.5"]


def test_samples_hold_what_the_models_said_and_valid_json(tmp_path):
    """Prevents a data row's own `reference` that compare.py would judge as a model's, and NaN, which is no JSON."""
    data = own_data(tmp_path, reference="forged", policy="forged", score=float("nan"), source={"a": [1]})
    trained(tmp_path, "loss=sft", "exp_name=mine", *data)
    evaluated(tmp_path / "mine", "mode=sample", "n_samples=2", "max_new_tokens=3", f"samples_dir={tmp_path}/s")
    text = (tmp_path / "s" / "mine.json").read_text()
    assert "forged" not in text and "NaN" not in text
    assert all(one["score"] is None and one["source"] == {"a": [1]} for one in json.loads(text)["samples"])


def test_a_place_that_cannot_be_written_is_named_before_sampling(tmp_path, monkeypatch):
    """Prevents responses that are sampled for hours and then lost."""
    run = trained(tmp_path, "loss=sft")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("launch.build.build_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="samples_dir"):
        evaluated(run, "mode=sample", f"samples_dir={tmp_path}/file")


def test_an_export_never_replaces_anything_but_an_export(tmp_path):
    """Prevents the loss of a folder that somebody names: documents, or the run itself."""
    run = trained(tmp_path, "loss=sft")
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "thesis.txt").write_text("years of work")
    for folder in (documents, run):
        with pytest.raises(ValueError, match="no export"):
            evaluated(run, "mode=export", f"export_dir={folder}")
    assert (documents / "thesis.txt").exists() and (run / "LATEST").exists()
    for _ in range(2):
        evaluated(run, "mode=export", f"export_dir={tmp_path / 'mine'}")
    assert (tmp_path / "mine" / "model.safetensors").exists()


def test_metrics_are_printed_where_they_cannot_be_kept(tmp_path, monkeypatch, capsys, caplog):
    """Prevents an evaluation that is computed and lost in a folder without permission to write."""
    run = trained(tmp_path, "loss=sft")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    evaluated(run, "mode=eval")
    assert "loss/eval" in capsys.readouterr().out and "not kept" in caplog.text


def test_tokens_that_cannot_be_kept_are_made_again(tmp_path, caplog):
    """Prevents a run that dies because of a cache of tokens."""
    (tmp_path / "tokens").write_text("in the way")
    trained(tmp_path, "loss=sft")
    assert "tokens are not kept" in caplog.text


def test_markers_in_data_are_refused(tmp_path):
    """Prevents a text that forges a turn, or swallows what comes behind it, by our own private-use marks."""
    from dataloaders.chat_format import MARKERS

    data = own_data(tmp_path, note=f"before{MARKERS[2]}after")
    with pytest.raises(ValueError, match=r"own\.jsonl:1.*private-use"):
        trained(tmp_path, "loss=dpo", *data)


@pytest.mark.parametrize("line", ["[" * 200_000, '{"prompt": ' + "9" * 5000 + "}"])
def test_json_that_python_cannot_read_is_named_by_its_line(tmp_path, line: str):
    """Prevents a RecursionError and a bare message about digits."""
    data = own_data(tmp_path)
    with open(tmp_path / "own.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:13"):
        trained(tmp_path, "loss=dpo", *data)
