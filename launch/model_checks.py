"""What can be wrong with a model that is loaded, for the data and lengths of a run."""

from __future__ import annotations

import logging

import torch
from omegaconf import DictConfig

from models.checkpoints import read_policy
from models.loading import locate
from trainers import distributed

log = logging.getLogger(__name__)


def warn_of_other_tokens(config: DictConfig) -> None:
    """A finetuning that passes over other documents than its model has seen sees some twice, or some never."""
    if distributed.rank() > 0 or config.task.phase != "finetune" or config.model.load_from is None:
        return
    weights = locate(config.model.load_from, config.cache_dir)
    metrics = read_policy(weights.path).get("metrics", {}) if weights.kind == "policy" else {}
    seen, said = metrics.get("counters/tokens"), config.task.tokens_already_seen
    if seen is not None and seen != said:
        log.warning(
            "%s has seen %d tokens, and task.tokens_already_seen=%d: if it saw these documents, set "
            "task.tokens_already_seen=%d, or load the checkpoint that has seen as many", weights.path, seen, said, seen,
        )  # fmt: skip


def check_vocabulary(model: object, tokenizer: object) -> None:
    """A token id without an embedding would be an index error deep in the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}: they do not belong together. Set "
            "model.tokenizer_name_or_path to the tokenizer of this model."
        )


def check_positions(model: object, max_length: int) -> None:
    """A position without a learned embedding would be an index error deep in the model."""
    for name, module in model.named_modules():
        learned = isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in ("wpe", "embed_positions")
        count = module.num_embeddings - getattr(module, "offset", 0) if learned else max_length  # OPT begins at 2
        if count < max_length:
            raise ValueError(
                f"model.max_length={max_length}, and the model has learned {count} positions: lower it "
                "(and model.max_prompt_length)."
            )


def check_rope(model: object, max_length: int) -> None:
    """Rotary positions that depend on the longest sequence of a pass would make values depend on their neighbours."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    for some in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        limit = some.get("original_max_position_embeddings") or config.max_position_embeddings
        if some.get("rope_type") in ("longrope", "dynamic") and max_length > limit:
            raise ValueError(
                f"model.max_length={max_length}, and beyond {limit} positions this model's rotary frequencies "
                f"({some['rope_type']}) depend on the longest sequence of a forward pass, so that a response's value "
                f"would depend on which others are with it: set model.max_length={limit} (and "
                "model.max_prompt_length below it)."
            )


def check_weights(model: object) -> None:
    """A weight that is not finite would make every loss nan. Of an empty model another process looks at the weights."""
    there = {name: weight for name, weight in model.named_parameters() if not weight.is_meta}
    bad = [name for name, weight in there.items() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise ValueError(
            f"{len(bad)} weights of the model are not finite (nan or inf), {bad[0]} the first of them: the checkpoint "
            "is damaged, or its run diverged. Start from another one."
        )
