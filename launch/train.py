"""What train.py runs once its config is composed and checked."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dataloaders.base import DataLoader
from launch import build, inspection, memory
from launch.classes import trainer_class
from launch.generation import build_evaluations, keep_final_scores
from launch.keys import flatten
from launch.model_checks import check_positions, check_rope, check_vocabulary, check_weights, warn_of_other_tokens
from launch.pretraining import embed_control_tokens, reads_documents, settle_threshold, tell_scorers
from launch.resuming import choose_resume, names_checkpoint, note_origin, tell_resume
from launch.run_folder import begin, begun, claim, finish, may_differ
from models.compilation import refuse_without_compiler
from models.loading import locate
from models.memory import keep_freed_memory
from models.quantization import refuse_device
from models.shapes import describe
from trainers import distributed
from trainers.agreement import refuse_unlike
from trainers.basic import BasicTrainer
from trainers.metrics import MetricsLog, check_wandb
from trainers.rehearsal import rehearse
from trainers.resume import Resume, refuse_shorter

log = logging.getLogger(__name__)


def run(config: DictConfig) -> dict[str, float]:
    """Trains (or, with mode=inspect, shows the data). Returns the last evaluation's metrics.

    Raises:
        ValueError: for whatever is wrong with config, data or weights; as far as possible before a model is loaded.
    """
    if config.mode == "memory":
        print(memory.report(config))
        return {}
    device = _begin(config)
    kind = trainer_class(config)
    folder = Path(config.cache_dir) / config.exp_name
    if config.mode == "inspect":
        inspect(config, folder)
        return {}
    if config.wandb.enabled:
        check_wandb()  # the log is opened last of all, when an old run may be gone already
    claimed = claim(config) if distributed.rank() == 0 else None
    status = distributed.gather_objects(None if claimed is None else claimed.status)[0]
    if status == "finished":
        return _finished(config, folder)
    resume = choose_resume(config, folder, status)
    train_loader, eval_loader, tokenizer = load_data(config)
    if resume is not None:
        refuse_shorter(resume, train_loader.sizes())  # before the run that is there is touched
    elif reads_documents(config):
        train_loader.begin()
    evaluations = build_evaluations(config, tokenizer, device)
    loaders = [loader for loader in (train_loader, eval_loader) if loader is not None]
    if claimed is not None and reads_documents(config):
        tell_scorers(loaders, evaluations)
    account = inspection.account_of(loaders)
    tell_long_rows(train_loader, kind.roles, config.model.tokens_per_microbatch)
    if claimed is not None and not reads_documents(config):
        print(inspection.account_table(account), file=sys.stderr)
    trainer = _trainer(config, kind, folder, device, train_loader, eval_loader, tokenizer)
    trainer.evaluations = evaluations
    training = trainer.prepare(resume)
    if resume is not None:
        tell_resume(resume, folder, () if claimed is None else claimed.changed)  # nothing is left to refuse it
    distributed.barrier()  # nobody has anything left to read
    if claimed is not None:
        begin(claimed, config)
        note_origin(folder, config, resume)
        inspection.write_account(folder, account)
        trainer.metrics_log = _metrics_log(config, folder, resume)
    try:
        metrics = training.run()
    finally:
        if trainer.metrics_log is not None:
            trainer.metrics_log.close()
    _tell_reference_values(trainer)
    if claimed is not None:
        _tell_documents(config, folder, train_loader, eval_loader)
        keep_final_scores(config, folder, trainer.examples)
        finish(folder)
        log.info(trainer.checkpoints.account())
        log.info("done: %s", folder / "LATEST" / "policy.pt")
    return metrics


def _begin(config: DictConfig) -> torch.device:
    """Finds the device and the other processes, and refuses what cannot work there or is not where it should be."""
    keep_freed_memory()
    device = build.build_device(config.device)
    build.settle_dtypes(config, device)
    if config.model.lora.quantize is not None:
        refuse_device(device)
    if config.model.compile:
        refuse_without_compiler(device)
    distributed.start(device, config.distributed.heartbeat_seconds)
    if distributed.rank() == 0:
        print(header(device), file=sys.stderr, flush=True)
    alike = {key: value for key, value in flatten(OmegaConf.to_container(config)).items() if not may_differ(key)}
    refuse_unlike(alike, "Start every process with the same command.")
    if config.distributed.name == "fsdp" and distributed.processes() == 1:
        log.info("distributed=fsdp: one process has nothing to share (torchrun --nproc-per-node N starts more of them)")
    locate(config.model.name_or_path, config.cache_dir)
    if config.model.load_from is not None:
        locate(config.model.load_from, config.cache_dir)
    if reads_documents(config):
        settle_threshold(config)
        warn_of_other_tokens(config)
    return device


def header(device: torch.device) -> str:
    """The first line of a run: when, on what and where it runs, and with how many processes and threads."""
    name = f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)
    count, threads = distributed.processes(), torch.get_num_threads()
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}: {name} on {socket.gethostname()}, "
        f"{count} {'process' if count == 1 else 'processes'} of {threads} {'thread' if threads == 1 else 'threads'}"
    )


def _finished(config: DictConfig, folder: Path) -> dict[str, float]:
    """The last evaluation's metrics of a run that has nothing left to do."""
    again = "overwrite=true trains it again"
    if names_checkpoint(config):
        again = f"exp_name=NAME goes on from {config.resume} in a run of its own"
    log.info("%s is finished, with this config: nothing to do (%s)", folder, again)
    file = folder / "LATEST" / "metrics.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is finished, but {file} cannot be read ({error}): overwrite=true trains it again."
        ) from error


def _tell_documents(config: DictConfig, folder: Path, train_loader: DataLoader, eval_loader: DataLoader | None) -> None:
    """Of a loss on documents what was read, which is known at the end."""
    if reads_documents(config):
        account = inspection.account_of([loader for loader in (train_loader, eval_loader) if loader is not None])
        inspection.write_account(folder, account)
        print(inspection.account_table(account), file=sys.stderr)
        log.info(train_loader.passes())


def _tell_reference_values(trainer: BasicTrainer) -> None:
    """How many were computed and looked up, by all processes."""
    if trainer.computer.reference is None:
        return
    everybody = distributed.gather_objects(trainer.computer.reference.cache.counts())
    if distributed.rank() == 0:
        log.info(
            "reference values: %d computed, %d looked up, %d of these from earlier runs; about %.0f s saved",
            *map(sum, zip(*everybody, strict=True)),
        )  # fmt: skip


def tell_long_rows(loader: DataLoader, roles: Sequence[str], budget: int) -> None:
    """A row is never cut into two forward passes, so one that is longer than the budget has a larger pass to itself."""
    lengths = [len(row.prompt) + sum(len(row.responses[role].ids) for role in roles) for row in loader.data]
    longer = [length for length in lengths if length > budget]
    if longer and distributed.rank() == 0:
        log.info(
            "%d of %d rows are longer than model.tokens_per_microbatch=%d (the longest has %d tokens): each has a "
            "forward pass of its own, which takes more memory", len(longer), len(lengths), budget, max(longer),
        )  # fmt: skip


def load_data(config: DictConfig) -> tuple[DataLoader, DataLoader | None, object]:
    """Training data, evaluation data if any is wanted, and the tokenizer."""
    tokenizer = build.build_tokenizer(config)
    example_tokenizer = build.build_example_tokenizer(config, tokenizer)
    train_loader = build.build_loader(config, example_tokenizer, "train")
    evaluates = config.n_eval_examples is None or config.n_eval_examples > 0
    eval_loader = build.build_loader(config, example_tokenizer, "test") if evaluates else None
    return train_loader, eval_loader, tokenizer


def inspect(config: DictConfig, folder: Path) -> None:
    """mode=inspect: prints the account, lengths, and three examples with the scored tokens marked.

    data.json is written where there is no run yet; a run's own says what that run was trained on.
    """
    train_loader, eval_loader, tokenizer = load_data(config)
    account = inspection.account_of([loader for loader in (train_loader, eval_loader) if loader is not None])
    if distributed.rank() == 0 and not begun(folder):
        try:
            inspection.write_account(folder, account)
        except OSError as error:
            log.warning("data.json is not kept: %s", error)
    print(f"{config.model.name}: {describe(config.model.shape)}\n")
    print(inspection.report(train_loader, account, tokenizer))


def _trainer(
    config: DictConfig,
    kind: type[BasicTrainer],
    folder: Path,
    device: torch.device,
    train_loader: DataLoader,
    eval_loader: DataLoader | None,
    tokenizer: object,
) -> BasicTrainer:
    torch.manual_seed(config.seed)
    np.random.seed(config.seed % 2**32)  # for losses of users
    random.seed(config.seed)
    start = build.build_start(config, device)
    embed_control_tokens(config, start, tokenizer)
    check_vocabulary(start, tokenizer)
    check_weights(start)
    check_positions(start, config.model.max_length)
    check_rope(start, config.model.max_length)
    reference = build.build_reference(config, device, start)
    trainer = kind(
        config, tokenizer, build.build_policy(config, start, reference, build.build_sharding(config, device)),
        reference, train_loader,
        eval_loader.fixed_rows(config.n_eval_examples) if eval_loader is not None else (), folder,
    )  # fmt: skip
    rehearse(trainer, trainer.policy.device)
    return trainer


def _metrics_log(config: DictConfig, folder: Path, resume: Resume | None) -> MetricsLog:
    options, own = None, resume is not None and resume.own
    if config.wandb.enabled:
        options = {
            "entity": config.wandb.entity, "project": wandb_project(config), "name": config.exp_name,
            "config": OmegaConf.to_container(config, resolve=True),
        }  # fmt: skip
        if own and resume.state["wandb"] is not None:
            options |= {"id": resume.state["wandb"], "resume": "allow"}
    keep = resume.state["metrics_bytes"] if own else 0
    return MetricsLog(folder, config.minimum_log_interval_secs, options, keep)


def wandb_project(config: DictConfig) -> str:
    """The project that the config names, else that of the environment, else ours."""
    return config.wandb.project or os.environ.get("WANDB_PROJECT") or "aureole"
