"""What eval.py runs once its config is read, laid over today's and checked: one of eval.py's modes."""

from __future__ import annotations

import datetime
import json
import logging
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from dataloaders.chat_format import Conversation
from dataloaders.conditional import control_ids
from dataloaders.examples import Example
from dataloaders.tokenization import ExampleTokenizer
from launch import build
from models.checkpoints import RESUME, read_safely
from models.files import write_whole
from models.memory import keep_freed_memory
from scorers.progress import progress
from trainers.distributed import gather_objects, leave, processes, rank, start

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainers.basic import BasicTrainer

log = logging.getLogger(__name__)

PROMPT_SEED = 1
"""Of the choice of prompts, whatever a run's seed is: runs of several seeds answer the same ones."""


def run(config: DictConfig, run_folder: Path | None) -> Any:
    """Does what `config.mode` says.

    Args:
        run_folder: the folder of the saved config; None: without a run, the model that the config names.

    Raises:
        ValueError: for whatever is wrong with config, data or weights.
    """
    keep_freed_memory()
    folder = run_folder or Path(config.cache_dir) / config.exp_name
    saved = find_policy(config, run_folder)
    log.info("weights: %s", saved or config.model.load_from or config.model.name_or_path)
    if config.mode == "inspect":
        from launch.train import inspect

        return inspect(config, folder)
    if config.mode == "export":
        from launch.export import export

        return export(config, folder, saved)
    if config.mode in ("generate", "kl", "red_team"):
        from launch import generation, kl, red_team

        modes = {"generate": generation.generate, "kl": kl.measure, "red_team": red_team.search}
        done = modes[config.mode](config, folder, saved)
    else:
        done = evaluate(config, folder, saved) if config.mode == "eval" else sample(config, saved)
    leave()
    return done


def find_policy(config: DictConfig, folder: Path | None) -> str | None:
    """The checkpoint to use: `saved_policy`, else the run's LATEST/policy.pt, else None (the model itself)."""
    if config.saved_policy is not None:
        candidates = [Path(config.saved_policy), *([] if folder is None else [folder / config.saved_policy])]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            where = "here" if folder is None else f"here and in {folder}"
            raise ValueError(f"saved_policy={config.saved_policy} is not there (looked {where}).")
        return str(path.resolve())
    latest = None if folder is None else folder / "LATEST" / "policy.pt"
    return str(latest.resolve()) if latest is not None and latest.exists() else None


# mode=sample ---------------------------------------------------------------------------------------------------------


def sample(config: DictConfig, saved: str | None) -> Path:
    """Writes the policy's responses to test prompts to `{samples_dir}/{exp_name}.json`.

    The same run, prompts and seed give the same file: where nothing but the time would change, the file is left alone.
    """
    tokenizer = build.build_tokenizer(config, saved)
    example_tokenizer = build.build_example_tokenizer(config, tokenizer)
    examples, prompts = choose_prompts(config, example_tokenizer)
    samples = [describe(example) for example in examples]
    path = Path(config.samples_dir) / f"{config.exp_name}.json"
    check_writable(path)
    device = build.build_device(config.device)
    start(device, config.distributed.heartbeat_seconds)
    policy = build.build_saved(config, device, saved)
    responses = respond(config, policy, example_tokenizer, prompts, "policy")
    for entry, (text, reason, _) in zip(samples, responses, strict=True):
        entry |= {"policy": text, "finish_reason": reason}
    if config.sample_reference:
        reference = build.build_start(config, device)
        others = respond(config, reference, example_tokenizer, prompts, "reference")
        ids = [completion for _, _, completion in responses]
        logps = [
            sequence_logps(model, prompts, ids, f"scoring by the {name}")
            for name, model in (("policy", policy), ("reference", reference))
        ]
        for number, (entry, (text, reason, _)) in enumerate(zip(samples, others, strict=True)):
            entry |= {"reference": text, "reference_finish_reason": reason}
            entry |= {"policy_logp": logps[0][number], "policy_reference_logp": logps[1][number]}
            entry |= {"policy_tokens": len(ids[number])}
    if rank() > 0:
        return path
    write_samples(path, config, samples)
    cut = sum(entry["finish_reason"] == "length" for entry in samples)
    log.info("%d samples, %d of them cut off at the length limit: %s", len(samples), cut, path)
    return path


def choose_prompts(config: DictConfig, tokenize: ExampleTokenizer) -> tuple[list[Example], list[np.ndarray]]:
    """`n_samples` examples of the split, the same ones for every seed and a smaller choice within every larger one, and
    their prompts as token ids, with the control string of good responses where the loss has one."""
    examples = [example for source in build.build_sources(config, config.split) for example in source.dataset]
    order = np.random.default_rng([PROMPT_SEED]).permutation(len(examples))
    wanted = sorted(order[: config.n_samples])
    control = config.loss.get("control_tokens")
    suffix = np.zeros(0, dtype=np.int32) if control is None else control_ids(tokenize, control, "chosen")
    chosen, prompts, dropped = [], [], 0
    for index in wanted:
        tokens = tokenize.prompt_ids(examples[index])
        if tokens.dropped or not len(tokens.prompt):
            dropped += 1
            continue
        chosen.append(examples[index])
        prompts.append(np.concatenate([tokens.prompt, suffix]))
    if dropped:
        log.warning(
            "%d of %d prompts are empty or longer than model.max_prompt_length and are left out", dropped, len(wanted)
        )
    if not chosen:
        raise ValueError("no prompt fits model.max_prompt_length: raise it.")
    return chosen, prompts


def respond(
    config: DictConfig, model: PreTrainedModel, tokenize: ExampleTokenizer, prompts: list[np.ndarray], name: str
) -> list[tuple[str, str, np.ndarray]]:
    """For each prompt the text of a response, why it ended, and its token ids with the one that ended it."""
    from models.generation.hf import HFGenerator

    tokenizer = tokenize.tokenizer
    generator = HFGenerator(
        model,
        stop_ids=stop_ids(model, tokenize),
        pad_id=tokenizer.pad_token_id,
        temperature=config.temperature,
        top_p=config.top_p,
        max_length=config.model.max_length,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.model.eval_batch_size,
        seed=config.seed,
    )
    completions = _of_all(generator.generate(prompts, f"sampling the {name}", rank(), processes()))
    texts = tokenizer.batch_decode([c.ids for c in completions], skip_special_tokens=True)
    # The token that ended a response is part of what the model chose to say.
    ids = [c.ids if c.end is None else np.append(c.ids, c.end) for c in completions]
    return [(text.strip(), c.finish_reason, whole) for text, c, whole in zip(texts, completions, ids, strict=True)]


def stop_ids(model: PreTrainedModel, tokenize: ExampleTokenizer) -> set[int]:
    """Tokens that end a response: EOS, the template's end of turn, and what the model's generation settings say."""
    settings = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenize.tokenizer.eos_token_id, *(settings if isinstance(settings, list) else [settings])}
    ids.add(tokenize.encode([[(tokenize.format.end_of_turn, False)]])[0][-1])
    return ids - {None}


def sequence_logps(
    model: PreTrainedModel, prompts: list[np.ndarray], responses: list[np.ndarray], description: str
) -> list[float]:
    """log p(response | prompt) in nats for each prompt, 0 for an empty response."""
    import torch

    from models.logprobs import ScoredSequence, token_logps

    values: list[float | None] = [None if len(response) else 0.0 for response in responses]
    order = [
        index
        for index in np.argsort([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
        if len(responses[index])
    ]
    starts = range(0, len(order), 8)[rank() :: processes()]
    with torch.no_grad():
        for start in progress(starts, desc=description, unit="batch", disable=rank() > 0):
            batch = order[start : start + 8]
            sequences = [
                ScoredSequence(prompts[index], responses[index], np.ones(len(responses[index]), dtype=bool))
                for index in batch
            ]
            for index, logps in zip(batch, token_logps(model, sequences), strict=True):
                values[index] = round(float(logps.sum()), 4)
    return _of_all(values)


def _of_all(values: list[Any]) -> list[Any]:
    """A list in which each process knows some values, and None for the others, as all of them know it together."""
    return [next((one for one in some if one is not None), None) for some in zip(*gather_objects(values), strict=True)]


def describe(example: Example) -> dict[str, Any]:
    """What a sample says of its prompt: the prompt, the response that people preferred, and the example's metadata."""
    target = example.generations[example.sft_index] if example.sft_index is not None else ""
    return {
        "prompt": readable(example.prompt),
        "chosen": Conversation.parse(target).opening.strip() if isinstance(target, str) else target,
        "dataset": example.dataset_name,
        **{key: _as_json(value) for key, value in example.metadata.items() if key not in _OURS},
    }


_OURS = {
    "dataset", "prompt", "chosen", "policy", "reference", "finish_reason", "reference_finish_reason", "policy_logp",
    "policy_reference_logp", "policy_tokens",
}  # fmt: skip
"""Keys of a sample that say what a model did; a data row's own values under these names are not taken over."""


def _as_json(value: Any) -> Any:
    """A value of a data row as JSON has it: what it cannot say becomes text, a number that is none becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def check_writable(path: Path) -> None:
    """Before anything is computed: the folder of a result can be made and written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}): name another folder by samples_dir.") from error


def readable(prompt: str | list[int]) -> Any:
    """A prompt as people read it: a single question as it is, a longer conversation with its speakers."""
    if not isinstance(prompt, str):
        return prompt
    conversation = Conversation.parse(prompt)
    if not conversation.turns:
        return conversation.opening
    if len(conversation.turns) == 1:
        return conversation.turns[0][1]
    speakers = {"user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{speakers[role]}: {content}" for role, content in conversation.turns)


def write_samples(path: Path, config: DictConfig, samples: list[dict[str, Any]]) -> None:
    """Writes {sampled_at, config, samples}; a file that says the same already keeps its time."""
    contents = {"config": OmegaConf.to_container(config, resolve=True), "samples": samples}
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            old = {}
        if isinstance(old, dict) and {key: old.get(key) for key in contents} == json.loads(json.dumps(contents)):
            return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_whole(path, json.dumps({"sampled_at": now, **contents}, indent=1, ensure_ascii=False))


# mode=eval -----------------------------------------------------------------------------------------------------------


def evaluate(config: DictConfig, folder: Path, saved: str | None) -> dict[str, float]:
    """The loss and metrics of the run's trainer on `split`; printed, and kept as eval-{split}.json beside the run."""
    from launch.classes import trainer_class
    from launch.model_checks import check_vocabulary, check_weights
    from models.checkpoints import read_loss_state

    kind = trainer_class(config)
    device: torch.device = build.build_device(config.device)
    build.settle_dtypes(config, device)
    start(device, config.distributed.heartbeat_seconds)
    tokenizer: PreTrainedTokenizerBase = build.build_tokenizer(config, saved)
    loader = build.build_loader(config, build.build_example_tokenizer(config, tokenizer), config.split)
    policy = build.build_saved(config, device, saved)
    check_vocabulary(policy, tokenizer)
    check_weights(policy)
    rows = loader.fixed_rows(config.n_eval_examples)
    trainer = kind(config, tokenizer, policy, build.build_reference(config, device), None, rows, None)
    if saved is not None:
        trainer.load_state_of_loss(read_loss_state(saved))
        _take_last_reference(config, trainer, Path(saved))
    metrics = {name: round(value, 6) for name, value in sorted(trainer.evaluate().items())}
    if rank() == 0:
        report = {
            "split": config.split,
            "examples": len(rows),
            "weights": saved or config.model.load_from or config.model.name_or_path,
            **metrics,
        }
        print(json.dumps(report, indent=1))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"eval-{config.split}.json", json.dumps(report, indent=1) + "\n")
        except OSError as error:
            log.warning("these metrics are not kept in %s: %s", folder, error)
    return metrics


def _take_last_reference(config: DictConfig, trainer: BasicTrainer, saved: Path) -> None:
    """Where the reference followed the policy: the reference of the checkpoint, by which the run measured itself."""
    if not (config.humanline or config.loss.get("sync_reference", False)):
        return
    file = saved.with_name(RESUME)
    if file.is_file():
        trainer.computer.reference.load_state(read_safely(file)["reference"])
    else:
        log.warning(
            "the reference followed the policy, and %s, which had its last weights, is gone (keep_optimizer=false, or "
            "an earlier checkpoint): these metrics compare with the weights that the run started from", file,
        )  # fmt: skip
