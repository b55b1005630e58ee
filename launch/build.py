"""From a checked config to the objects of a run. `DictConfig` goes no deeper than a trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dataloaders.base import DataLoader, Source
from dataloaders.chat_format import MARKERS, ChatFormat, chat_format
from dataloaders.conditional import ConditionalSFTDataLoader
from dataloaders.datasets import load_dataset
from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.resolve import resolve
from dataloaders.scored import ScoredDataLoader
from dataloaders.tokenization import ExampleTokenizer
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from launch.pretraining import (
    LEARNED,
    add_control_tokens,
    build_document_loader,
    control_tokens,
    learned_tokenizer,
    reads_documents,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from models.reference import Reference
    from models.sharding import Sharding

log = logging.getLogger(__name__)


def build_device(name: str) -> torch.device:
    """auto takes a GPU when there is one (each process its own), else the CPU."""
    import os

    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise ValueError(f"device={name}, but torch sees none: use device=auto or device=cpu.")
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def settle_dtypes(config: DictConfig, device: torch.device) -> None:
    """Writes into the config what `auto` is on this machine, so that a run's saved config says what was done."""
    from models.precision import fastest_dtype

    for key in ("policy_dtype", "reference_dtype"):
        if config.model[key] == "auto":
            config.model[key] = str(fastest_dtype(device)).removeprefix("torch.")


def build_sharding(config: DictConfig, device: torch.device) -> Sharding | None:
    """How the policy is sharded; None where every process holds it whole, and where there is only one."""
    import torch

    from trainers import distributed

    options = config.distributed
    if options.name != "fsdp" or distributed.processes() == 1:
        return None
    if device.type == "mps":
        raise ValueError("distributed=fsdp works on a CPU and on GPUs with CUDA, not on mps: use device=cpu.")
    from models.sharding import Sharding

    return Sharding(
        device, getattr(torch, config.model.policy_dtype), getattr(torch, options.reduce_dtype),
        options.reshard_after_forward, options.cpu_offload, options.hybrid,
    )  # fmt: skip


def build_tokenizer(config: DictConfig, saved_policy: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or the one that a checkpoint's folder carries."""
    from models.loading import load_tokenizer

    model = config.model
    name = saved_policy or model.tokenizer_name_or_path or model.name_or_path
    if name.startswith(LEARNED):
        tokenizer = learned_tokenizer(config)
    else:
        tokenizer = load_tokenizer(
            name, cache_dir=config.cache_dir, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    if saved_policy is None:
        add_control_tokens(config, tokenizer)
    return tokenizer


def build_example_tokenizer(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> ExampleTokenizer:
    """What turns examples into tokens, with the model's chat format and lengths."""
    model = config.model
    format: ChatFormat = chat_format(
        tokenizer, model.human_prefix, model.human_suffix, model.assistant_prefix, model.assistant_suffix
    )
    return ExampleTokenizer(tokenizer, format, model.max_length, model.max_prompt_length)


def build_sources(config: DictConfig, split: str) -> list[Source]:
    """The chosen data sets, read."""
    sources = []
    for name, options in config.datasets.items():
        options = OmegaConf.to_container(options, resolve=True)
        dataset = load_dataset(name, split, options["function"], MARKERS, options)
        # A cap on the examples of a data set is a cap on training: the test split has n_eval_examples.
        limit = options["n_examples"] if split == "train" else None
        sources.append(Source(dataset, options["weight"] if split == "train" else 1.0, limit))
    return sources


def build_loader(config: DictConfig, example_tokenizer: ExampleTokenizer, split: str) -> DataLoader:
    """The loss's DataLoader over the chosen data sets."""
    if reads_documents(config):
        return build_document_loader(config, example_tokenizer.tokenizer, split)
    kind: type[DataLoader] = resolve(config.loss.dataloader, "dataloaders")
    options: dict[str, Any] = {
        "split": split,
        "batch_size": config.model.batch_size * config.model.gradient_accumulation_steps,
        "seed": config.seed,
        "shuffle": config.shuffle,
        "cache_dir": config.cache_dir,
    }
    if split == "train":
        options |= {"n_epochs": config.n_epochs, "n_examples": config.n_examples}
    if issubclass(kind, PairedPreferenceDataLoader):
        options["pair_weight"] = config.pair_weight
    if issubclass(kind, UnpairedPreferenceDataLoader):
        needs = resolve(config.loss.trainer, "trainers").requirements(config.loss)
        options["mismatched"] = any(need.role == "KL" for need in needs)
    if issubclass(kind, ScoredDataLoader):
        needs = resolve(config.loss.trainer, "trainers").requirements(config.loss)
        options["compares"] = any(need.kind in ("groups", "token_advantages") for need in needs)
    if issubclass(kind, ConditionalSFTDataLoader):
        options["control_tokens"] = dict(config.loss.control_tokens)
    return kind(build_sources(config, split), example_tokenizer, **options)


def build_model(
    config: DictConfig,
    device: torch.device,
    load_from: str | None,
    empty: bool = False,
    vocabulary: int | None = None,
) -> PreTrainedModel:
    """The model with float32 weights; `load_from` other weights for it. An empty one has none, on the meta device.

    Args:
        vocabulary: rows of the embeddings that the weights of `load_from` have at least, where tokens were added.
    """
    from models.loading import load_model

    model = config.model
    shape: Mapping[str, Any] = OmegaConf.to_container(model.shape, resolve=True)

    def load(attention: str) -> PreTrainedModel:
        loaded = load_model(
            model.name_or_path, cache_dir=config.cache_dir, load_from=load_from, shape=shape, seed=config.seed,
            revision=model.revision, attn_implementation=attention, trust_remote_code=model.trust_remote_code,
            empty=empty, vocabulary=vocabulary,
        )  # fmt: skip
        return loaded if empty else loaded.to(device)

    try:
        return load(model.attn_implementation)
    except ValueError as error:
        if model.attn_implementation != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
    log.info("this architecture has no SDPA in transformers: model.attn_implementation=eager is taken in its place")
    return load("eager")


def build_start(config: DictConfig, device: torch.device) -> PreTrainedModel:
    """What policy and reference start from, `load_from` included, with 4-bit weights where the config wants them.

    Of a model that is to be sharded the first process has the weights, in the CPU's memory, and the others have none.
    """
    import torch

    from trainers import distributed

    model = config.model
    if build_sharding(config, device) is not None:
        return build_model(config, torch.device("cpu"), model.load_from, empty=distributed.rank() > 0)
    if model.lora.quantize is None:
        return build_model(config, device, model.load_from)
    from models.quantization import quantize, refuse_device

    refuse_device(device)
    start = build_model(config, torch.device("cpu"), model.load_from)
    quantize(start, model.lora.quantize)
    return start.to(device)


def build_saved(config: DictConfig, device: torch.device, saved: str | None) -> PreTrainedModel:
    """The policy of a checkpoint; without one, what it would start from."""
    if saved is None:
        return build_start(config, device)
    grown = len(build_tokenizer(config, saved)) if control_tokens(config) else None
    return build_model(config, device, saved, vocabulary=grown)


def build_policy(
    config: DictConfig, start: PreTrainedModel, reference: Reference | None, sharding: Sharding | None = None
) -> PreTrainedModel:
    """The model that is trained: `start` itself, all of it or with a LoRA adapter, which the reference does without.

    Args:
        sharding: how it is sharded; see `build_sharding`.
    """
    _prepare_policy(config, start, reference)
    if sharding is not None:
        from models.sharding import shard

        shard(start, sharding)
    return start


def _prepare_policy(config: DictConfig, start: PreTrainedModel, reference: Reference | None) -> None:
    import torch

    from models import lora
    from models.reference_cache import weights_digest
    from trainers import distributed

    model = config.model
    if model.compile:
        from models.compilation import compile_blocks

        compile_blocks(start)
    if model.activation_checkpointing:
        start.activation_checkpointing_enable({"use_reentrant": False})
    if model.lora.rank is None:
        start.requires_grad_(True)
        return
    targets = None if model.lora.targets is None else list(model.lora.targets)
    adapter = lora.Adapter(model.lora.rank, model.lora.alpha, model.lora.dropout, targets)
    digest = distributed.of_first(lambda: weights_digest(start))
    base = lora.Base(model.name_or_path, model.load_from, config.seed, digest, model.lora.quantize)
    lora.add_adapter(start, adapter, base, getattr(torch, model.policy_dtype), config.seed)
    if reference is not None and model.reference_dtype == model.policy_dtype:
        reference.borrow(start, lambda: lora.without_adapter(start))


def build_reference(config: DictConfig, device: torch.device, start: PreTrainedModel | None = None) -> Reference | None:
    """The weights that the policy started from, `load_from` included; None for a loss that uses none.

    Args:
        start: a model that has these weights now, by which what is known of them is found; None: they are loaded.
    """
    if not config.loss.use_reference_model:
        return None
    import torch

    from models.reference import Reference
    from models.reference_cache import ReferenceCache, folder_for, weights_digest
    from trainers import distributed

    dtype = getattr(torch, config.model.reference_dtype)

    def load() -> PreTrainedModel:
        model = build_start(config, device)
        if config.model.compile:  # as the policy is: in bfloat16 the two would round differently (cached values may)
            from models.compilation import compile_blocks

            compile_blocks(model)
        return model

    sharding = build_sharding(config, device)
    if sharding is not None:
        sharding = replace(sharding, dtype=dtype, reshard_after_forward=True)  # it goes forward only
    if not config.cache_reference:
        return Reference(load, dtype, sharding=sharding)
    loaded = load() if start is None else None
    digest = distributed.of_first(lambda: weights_digest(loaded if start is None else start))
    cache = ReferenceCache(folder_for(config.cache_dir, digest, dtype, device))
    return Reference(load if loaded is None else lambda: loaded, dtype, cache, sharding)
