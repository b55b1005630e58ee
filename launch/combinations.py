"""What can be wrong between values that are right by themselves: classes that do not fit, files that are not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dataloaders.corpus_texts import check_corpus
from dataloaders.resolve import did_you_mean
from launch.check import show
from launch.document_checks import check_documents, check_revision
from launch.generation_checks import check_generation
from launch.loss_checks import check_loss, found
from launch.resolve import loss_parameters, loss_settings
from launch.run_folder import run_folder
from models.optional import need_bitsandbytes

TEST_ONLY = ("get_alpacaeval",)


def check_combinations(config: DictConfig, script: str) -> None:
    """Refuses a config that composes but cannot run; nothing is imported for it.

    Raises:
        ValueError: a trainer, DataLoader, scorer or data set's function that cannot be found; a loss that does not fit
            its DataLoader or needs a reference; a corpus that is not there or has no scorer; 4-bit weights without an
            adapter; a library that is not installed; a file that is missing or empty; training on test-only data;
            overwriting a run that is read from.
    """
    if not config.get("resume", "auto").strip():
        raise ValueError("resume is empty: expected auto, never, or the folder of a checkpoint.")
    check_settings(config, script)
    _check_bitsandbytes(config, script)
    _check_scoring(config)
    check_loss(config.loss)
    check_documents(config, script)
    check_generation(config)
    _check_parts(config.loss)
    if "datasets" not in config or not config.datasets:
        raise ValueError("no data set is selected: choose with datasets=[everyday], say.")
    for name, options in config.datasets.items():
        if not isinstance(options, DictConfig):
            raise ValueError(
                f"datasets has {name}={options!r} and no data set of that name: a data set's YAML begins with the line "
                "`# @package datasets.NAME`, before any other comment."
            )
        if "function" in options:
            found(f"datasets.{name}.function", options.function, "dataloaders.datasets")
        if script == "train.py" and options.get("function") in TEST_ONLY:
            raise ValueError(
                f"datasets=[{name}]: {name} has a test split and nothing to train on; sample for it with "
                f"`python eval.py --config-path=RUN_FOLDER datasets=[{name}]`."
            )
        check_revision(name, options)
        for key in ("path", "test_path"):
            for file in _files(options.get(key)):
                _check_file(f"datasets.{name}.{key}", file)
        if script == "train.py":
            _check_held_out(name, options)
    if script == "train.py" and config.overwrite:
        _check_overwritten(config)


def check_settings(config: DictConfig, script: str) -> None:
    """Refuses settings of model, optimizer and processes that exclude each other, whatever is installed and there.

    Raises:
        ValueError: naming two of them and the fix.
    """
    _check_quantization(config)
    _check_sharding(config, script)
    _check_reference(config)


def _check_scoring(config: DictConfig) -> None:
    """Refuses mode=score without a scorer or a corpus or under torchrun, and a corpus that nobody would read."""
    kind = config.scorer.get("kind")
    if kind is not None:
        found("scorer.kind", kind, "scorers")
    if config.mode != "score":
        if config.corpus is not None:
            raise ValueError(f"corpus={config.corpus} is for mode=score: run `python eval.py ++mode=score ...`.")
        return
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"mode=score starts its own processes, and each of these {processes} would score the whole corpus: run "
            f"`python eval.py ...`, not torchrun, with ++scoring_processes={processes}."
        )
    if kind is None:
        raise ValueError("mode=score needs a scorer: scorer=pep8, pii, profanity or toxicity.")
    if config.corpus is None:
        raise ValueError("mode=score needs a corpus: ++corpus=FILE, a folder, or hub:ORG/NAME.")
    check_corpus(config.corpus)
    if config.documents_path is not None and not config.documents_path.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"documents_path={config.documents_path}: expected a name that ends in .jsonl or .jsonl.gz.")


def _check_quantization(config: DictConfig) -> None:
    lora = config.model.lora
    if lora.quantize is None:
        return
    setting = f"model.lora.quantize={lora.quantize}"
    if lora.rank is None:
        raise ValueError(
            f"{setting} keeps frozen weights in 4 bits, and without LoRA none are frozen: set model.lora.rank=16, say."
        )
    if config.model.compile:
        raise ValueError(f"{setting} and model.compile=true do not go together: leave one of them out.")


def _check_bitsandbytes(config: DictConfig, script: str) -> None:
    if config.model.lora.quantize is not None:
        need_bitsandbytes(f"model.lora.quantize={config.model.lora.quantize}")
    if script == "train.py" and config.optimizer.endswith("8bit"):
        need_bitsandbytes(f"optimizer={config.optimizer}")


def _check_sharding(config: DictConfig, script: str) -> None:
    """Refuses what a sharded model does not have."""
    if config.distributed.name != "fsdp":
        return
    if script == "eval.py":
        raise ValueError("distributed=fsdp: eval.py does not shard: leave it out.")
    lora = config.model.lora
    for wrong, setting, fix in (
        (lora.quantize is not None, f"model.lora.quantize={lora.quantize}", "which a process holds whole"),
        (config.optimizer.endswith("8bit"), f"optimizer={config.optimizer}", "whose state cannot be cut"),
    ):
        if wrong:
            raise ValueError(f"distributed=fsdp and {setting}, {fix}: set distributed=ddp, or leave the second out.")


def _check_overwritten(config: DictConfig) -> None:
    """Refuses overwrite=true where the run reads from the folder whose contents it would remove."""
    read = {key: [config.model[key]] for key in ("name_or_path", "tokenizer_name_or_path", "load_from")}
    read = {f"model.{key}": value for key, value in read.items()}
    for name, options in config.datasets.items():
        read |= {f"datasets.{name}.{key}": _files(options.get(key)) for key in ("path", "test_path", "data_dir")}
    read["resume"] = [] if config.resume in ("auto", "never") else [config.resume]
    folder = run_folder(config)
    for key, value in ((key, value) for key, values in read.items() for value in values if value):
        given = Path(str(value)).expanduser()
        places = [given, Path(config.cache_dir).expanduser() / given] if key.startswith("model.") else [given]
        place = next((one for one in places if one.exists()), None)
        if place is not None and (
            place.resolve().is_relative_to(folder.resolve())
            or Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))
        ):
            raise ValueError(
                f"{key}={value} lies in {folder}, which overwrite=true would empty: give this run a name of its own "
                "with exp_name=NAME."
            )


def _check_parts(loss: DictConfig) -> None:
    """A mixture's parts are losses with all their keys, and some of them count."""
    if "losses" not in loss:
        return
    parts, keys = loss.losses, ("trainer", "weight")
    if not isinstance(parts, DictConfig) or not parts:
        raise ValueError(
            f"loss={loss.name}: loss.losses names the parts of the mixture, each a section with its trainer, its "
            f"weight and the keys of its loss (see config/loss/mpo.yaml); it is {show(parts)}."
        )
    for name, part in parts.items():
        key = f"loss.losses.{name}"
        missing = list(keys) if not isinstance(part, DictConfig) else [one for one in keys if part.get(one) is None]
        if missing:
            raise ValueError(f"{key} needs a {' and a '.join(missing)}: see config/loss/mpo.yaml.")
        found(f"{key}.trainer", part.trainer, "trainers")
        missing = [setting for setting in loss_settings(part.trainer) or () if part.get(setting) is None]
        if missing:
            raise ValueError(f"{key}: {part.trainer} needs {key}.{missing[0]}: add it to that section of the YAML.")
        if "beta" in part and not part.beta > 0:
            raise ValueError(f"{key}.beta={part.beta} must be above 0.")
        references = [one for one in loss_parameters(part.trainer) or () if one.startswith("reference_")]
        if references and not loss.use_reference_model:
            raise ValueError(f"{key}: {part.trainer}.loss takes {references[0]}: set loss.use_reference_model=true.")
    if not any(part.weight for part in parts.values()):
        raise ValueError(f"loss={loss.name}: the weights of all parts are 0: nothing would be learned.")


def _check_reference(config: DictConfig) -> None:
    """A reference that follows needs a reference, and weights of its own."""
    follows = "humanline=true" if config.humanline else None
    if config.loss.get("sync_reference", False):
        follows = "loss.sync_reference=true"
    if follows is None:
        return
    if not config.loss.use_reference_model:
        raise ValueError(f"{follows}: loss={config.loss.name} uses no reference model. Leave it out.")
    if config.model.lora.rank is not None:
        raise ValueError(
            f"{follows} and model.lora.rank do not go together: the reference would be the policy without its adapter, "
            "which never moves. Leave one of them out."
        )


def _check_held_out(name: str, options: DictConfig) -> None:
    """Refuses to measure on the very file that is trained on."""
    trained_on = {Path(file).expanduser().resolve() for file in _files(options.get("path"))}
    for file in _files(options.get("test_path")):
        if Path(file).expanduser().resolve() in trained_on:
            raise ValueError(
                f"datasets.{name}.test_path={file} is trained on as well (datasets.{name}.path), so that nothing would "
                "be held out: name another file, or leave it out, and a share of the first is held out."
            )


def _files(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else list(value)


def _check_file(key: str, file: str) -> None:
    path = Path(file).expanduser()
    if path.is_dir():
        raise ValueError(f"{key}={file}: that is a folder; name the files in it.")
    if not path.is_file():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key}={file}: there is no such file{did_you_mean(path.name, siblings)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{key}={file}: the file is empty; every line must be one JSON object.")
