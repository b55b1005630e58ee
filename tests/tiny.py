"""What the tests of the core share: models of a few thousand weights, data sets of a few rows, trainers on them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dataloaders.base import DataLoader, Source
from dataloaders.batches import Row
from dataloaders.chat_format import MARKERS, chat_format
from dataloaders.datasets.conversation import TurnStrings, join_turns
from dataloaders.examples import Dataset, Example
from dataloaders.pretraining import PretrainingDataLoader
from dataloaders.tokenization import ExampleTokenizer, Response
from models.byte_tokenizer import byte_tokenizer
from models.reference import Reference
from tests import documents
from trainers.basic import BasicTrainer

torch.set_num_threads(1)  # on matrices this small more threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
VOCABULARY = 259

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,  # far from a uniform distribution, so that a wrong position is a wrong number
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_NEOX = {key: value for key, value in _SHAPE.items() if key not in ("num_key_value_heads", "head_dim")}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 2, "initializer_range": 0.3,
    "n_positions": 512, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SHAPE | {"tie_word_embeddings": True},
    "gpt2": _GPT2 | {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "gpt_neox": _NEOX | {"attention_dropout": 0.5, "hidden_dropout": 0.5, "max_position_embeddings": 512},
    "mistral": _SHAPE | {"sliding_window": 6, "attention_dropout": 0.5},
    "gemma2": _SHAPE | {
        "sliding_window": 6, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "attention_dropout": 0.5,
        "query_pre_attn_scalar": 8,
    },
}  # fmt: skip
"""The five families: what is special about each (tied head, dropout, sliding window, soft-capping) is switched on."""


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with random weights, in eval mode."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    attention = "eager" if family == "gemma2" else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()


def config(loss: str = "dpo", **changes: Any) -> DictConfig:
    """The config of a run on `model=tiny`; `changes` by dotted key, `model__batch_size` for `model.batch_size`."""
    whole = copy.deepcopy(_unchanged(loss))
    for key, value in changes.items():
        OmegaConf.update(whole, key.replace("__", "."), value, force_add=False)
    return whole


@functools.cache
def _unchanged(loss: str) -> DictConfig:
    parts = {
        "model": OmegaConf.merge(
            *(OmegaConf.load(CONFIG / "model" / f"{name}.yaml") for name in ("base_model", "tiny"))
        ),
        "loss": OmegaConf.load(CONFIG / "loss" / f"{loss}.yaml"),
        "datasets": {"everyday": OmegaConf.load(CONFIG / "datasets" / "everyday.yaml")},
    }
    if "quantile" in parts["loss"]:
        parts["loss"] = OmegaConf.merge(parts["loss"], {"quantile": None, "threshold": 0.5})
    whole = OmegaConf.merge(OmegaConf.load(CONFIG / "config.yaml"), parts, {"exp_name": "test", "device": "cpu"})
    whole = OmegaConf.masked_copy(whole, [key for key in whole if key not in ("hydra", "defaults")])
    OmegaConf.set_struct(whole, True)
    return whole


def tokenize(
    tokenizer: Any = None, max_length: int = 200, max_prompt_length: int = 120, **strings: str
) -> ExampleTokenizer:
    """An ExampleTokenizer, by default of the byte-level tokenizer with its ChatML template."""
    tokenizer = tokenizer or byte_tokenizer()
    return ExampleTokenizer(tokenizer, chat_format(tokenizer, **strings), max_length, max_prompt_length)


def prompt(*contents: str) -> str:
    """A prompt as data sets join it, from user, assistant, user ... contents."""
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return join_turns(turns, TurnStrings(*MARKERS))


def dataset(pairs: Sequence[tuple[str, str, str]], name: str = "words", weights: Sequence[float] = ()) -> Dataset:
    """A data set of (question, chosen, rejected)."""
    made = Dataset(name)
    for number, (question, chosen, rejected) in enumerate(pairs):
        made.read()
        made.add_pair(prompt(question), chosen, rejected, weight=weights[number] if weights else 1.0)
    return made


def pairs(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Pairs of different lengths, all different."""
    generator = np.random.default_rng(seed)

    def words(least: int, most: int) -> str:
        letters = generator.integers(97, 123, size=generator.integers(least, most))
        return "".join(map(chr, letters))

    return [(f"{number} {words(2, 12)}?", f"a{words(1, 20)}", f"b{words(1, 20)}") for number in range(count)]


def loader(
    kind: type[DataLoader], count: int = 12, *, max_length: int = 200, seed: int = 0, **options: Any
) -> DataLoader:
    """A DataLoader on `pairs(count)`, or of so many blocks of documents."""
    if isinstance(kind, type) and issubclass(kind, PretrainingDataLoader):
        return documents.loader(kind, n_blocks=count, **options | {"batch_size": min(count, options["batch_size"])})
    return kind([Source(dataset(pairs(count, seed)))], tokenize(max_length=max_length), **options)


def response(ids: Sequence[int]) -> Response:
    """A response all of whose tokens are scored."""
    return Response(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))


def row(prompt_ids: Sequence[int], weight: float = 1.0, desirable: bool | None = None, **roles: Sequence[int]) -> Row:
    """A row of token ids, without a data set behind it."""
    example = Example(f"prompt {list(prompt_ids)}", dataset_name="ids")
    responses = {role: response(ids) for role, ids in roles.items()}
    return Row(np.array(prompt_ids, dtype=np.int32), responses, example, weight=weight, desirable=desirable)


def trainer(
    kind: type[BasicTrainer],
    loss: str,
    *,
    policy: PreTrainedModel | None = None,
    reference_seed: int | None = 1,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> BasicTrainer:
    """A trainer on a tiny policy, whose reference has other weights (or, with `reference_seed` None, there is none).

    What BasicTrainer takes (another reference among it) goes through by name; other options change the config (see
    `config`).
    """
    known = ("train_loader", "eval_rows", "folder", "metrics_log")
    passed = {name: options.pop(name) for name in known if name in options}
    reference = options.pop("reference", None)
    if reference is None and reference_seed is not None:
        reference = Reference(lambda: tiny_model(family, reference_seed, dtype))
    policy = policy if policy is not None else tiny_model(family, dtype=dtype)
    return kind(config(loss, **options), byte_tokenizer(), policy, reference, **passed)


def gradients(model: PreTrainedModel) -> torch.Tensor:
    """All gradients of a model as one vector, in float64."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([part.reshape(-1) for part in parts]).double()


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    """How far two vectors are apart, relative to the longer of them."""
    return float((first - second).norm() / max(first.norm(), second.norm()).clamp(min=1e-30))
