"""New tokens for a model that is there: their embeddings begin near the mean of all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], key: str) -> list[int]:
    """Gives a tokenizer tokens that it has not, and returns their ids.

    Args:
        key: the key of the config that names them, for messages.

    Raises:
        ValueError: it has one of them already, or two are the same.
    """
    known = {*tokenizer.get_vocab(), *tokenizer.all_special_tokens}
    for name in names:
        if name in known or not name.strip():
            raise ValueError(
                f"{key}={name!r} is a token that the tokenizer has already, or none: choose a name that is new, so "
                "that it cannot mean anything else."
            )
        known.add(name)
    tokenizer.add_tokens(list(names), special_tokens=True)
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


def embed_tokens(model: PreTrainedModel, ids: Sequence[int], noise: float, seed: int) -> None:
    """Gives new tokens embeddings, and rows of the head: the mean of all others and noise (Hewitt 2021, "Initializing
    New Word Embeddings for Pretrained Language Models"; Korbak et al. 2023 add a normal one of 0.01).

    Args:
        ids: of the new tokens; the model grows until it has rows for them.
        noise: its standard deviation.
        seed: of the noise.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    old = [index for index in range(min(rows, min(ids))) if index not in ids]
    weights = {id(one.weight): one.weight for one in (model.get_input_embeddings(), model.get_output_embeddings())}
    with torch.no_grad():
        for weight in weights.values():
            if weight.is_meta:
                continue
            mean = weight[: len(old)].float().mean(dim=0)
            added = noise * torch.randn(len(ids), weight.shape[1], generator=generator)
            weight[list(ids)] = (mean + added.to(weight.device)).to(weight.dtype)
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None and not bias.is_meta:
            bias[list(ids)] = bias[: len(old)].mean()
