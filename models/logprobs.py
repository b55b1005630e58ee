"""Log-probabilities of responses under a causal language model.

`branch_logps` computes packs of tree rows where they are exact for the model (`models.probe` finds out), and padded
sequences elsewhere, in the dtype that the model's weights have. The language-model head runs on scored positions only,
and log-probabilities are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from models import tree_attention
from models.head import Head
from models.tree_rows import Pack, TreeRow, pack_rows


class ScoredSequence(NamedTuple):
    """A prompt (P,), a response (R,), and which of the response's tokens (R,) are scored."""

    prompt: np.ndarray
    response: np.ndarray
    scored: np.ndarray


def uses_tree_rows(model: PreTrainedModel) -> bool:
    """Whether a model is computed by tree rows."""
    return model.config._attn_implementation == tree_attention.NAME


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, the model has another attention of transformers, by its name."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def plain_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside, a model that uses tree rows has the attention that it was loaded with, for generation and padded rows."""
    return attention_of(model, model.plain_attention) if uses_tree_rows(model) else nullcontext()


def cut(model: PreTrainedModel, rows: Sequence[TreeRow], budget: int) -> list[list[int]]:
    """Groups of rows for a forward pass each, of at most `budget` tokens: with padding where the model needs it."""
    if uses_tree_rows(model):
        return pack_rows(rows, budget)
    order = sorted(range(len(rows)), key=lambda index: -_longest(rows[index]))
    groups: list[list[int]] = []
    for index in order:
        # The first row of a group has the longest path: it decides how long all of them are.
        count = sum(len(rows[member].branches) for member in [*(groups[-1] if groups else ()), index])
        if not groups or count * _longest(rows[groups[-1][0]]) > budget:
            groups.append([])
        groups[-1].append(index)
    return groups


def positions(model: PreTrainedModel, rows: Sequence[TreeRow]) -> int:
    """How many positions a forward pass over these rows computes, padding included."""
    if uses_tree_rows(model):
        return sum(map(len, rows))
    return sum(len(row.branches) for row in rows) * max(map(_longest, rows))


def _longest(row: TreeRow) -> int:
    return len(row.prompt) + max(len(branch.ids) for branch in row.branches)


Values = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""From hidden states (N, H), and the model's own logits (N, V) where they are there anyway, to something about each
(N,)."""


def branch_logps(
    model: PreTrainedModel, rows: Sequence[TreeRow], values: Values | None = None
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The log-probability of every scored token given its prompt and what stands before it in its branch.

    Args:
        model: a causal language model; gradients flow when they are enabled.
        rows: the rows of one forward pass (see `cut`).
        values: what else is made of the hidden states that predict the scored tokens.

    Returns:
        For each branch of each row in order, the log-probabilities in nats of its scored tokens: float32,
        (scored tokens,). A first token with nothing before it has none. With `values`, also those, likewise.
    """
    if uses_tree_rows(model):
        return packed_logps(model, Pack.of(rows), values)
    sequences = [ScoredSequence(row.prompt, *branch) for row in rows for branch in row.branches]
    return token_logps(model, sequences, values)


def packed_logps(
    model: PreTrainedModel, pack: Pack, values: Values | None = None
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """As `branch_logps`, of a pack, by a model whose attention is that of tree rows."""
    device = model.device
    ids, positions, sources, targets = (
        torch.from_numpy(part).to(device) for part in (pack.ids, pack.positions, pack.sources, pack.targets)
    )
    backbone = model.base_model if model.base_model is not model else model.get_decoder()
    output = backbone(input_ids=ids[None], position_ids=positions[None], use_cache=False, pack=pack)
    hidden = output.last_hidden_state[0, sources]
    logps = list(Head.of(model).logps(hidden, targets).split(pack.counts))
    return logps if values is None else (logps, list(values(hidden, None).split(pack.counts)))


def token_logps(
    model: PreTrainedModel,
    sequences: Sequence[ScoredSequence],
    values: Values | None = None,
    excluded: Sequence[int] = (),
) -> list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same by padding to the right, for any model.

    Args:
        model: a causal language model; gradients flow when they are enabled.
        sequences: what to score; a first token with nothing before it has no probability and is not scored.
        values: see `branch_logps`.
        excluded: tokens that are known not to come: probabilities are those given that, as if the vocabulary had none.

    Returns:
        For each sequence, the log-probabilities in nats of its scored tokens: float32, (scored tokens,). The softmax
        is taken in float32 also where the model computes in bfloat16. With `values`, also those, likewise.
    """
    device = model.device
    lengths = [len(s.prompt) + len(s.response) for s in sequences]
    width = max(lengths)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    positions, targets, counts = [], [], []
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        tokens = np.concatenate([sequence.prompt, sequence.response])
        ids[row, :length] = torch.from_numpy(tokens.astype(np.int64))
        mask[row, :length] = 1
        places = len(sequence.prompt) + np.flatnonzero(sequence.scored)
        places = places[places > 0]
        positions.append(row * width + places - 1)  # the logits that predict a token stand one position before it
        targets.append(tokens[places])
        counts.append(len(places))
    index = torch.from_numpy(np.concatenate(positions)).to(device)
    target = torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device)
    with plain_attention(model), _head_only_at(model, index) as hidden:
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    logits = logits.reshape(-1, logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if excluded:
        logits = logits.index_fill(1, torch.tensor(list(excluded), device=device), -torch.inf)
    logps = list((-F.cross_entropy(logits, target, reduction="none")).split(counts))
    return logps if values is None else (logps, list(values(hidden[0], logits).split(counts)))


@contextmanager
def _head_only_at(model: PreTrainedModel, index: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Lets the language-model head see only the positions `index` (N,) of the flattened batch: logits are (1, N, V).

    Gives a list that gets what the head saw, (N, H).

    What a model does after its head (soft-capping, scaling) works element by element and still happens.
    """

    seen: list[torch.Tensor] = []

    def pick(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = inputs
        seen.append(hidden.reshape(-1, hidden.shape[-1])[index])
        return (seen[-1].unsqueeze(0), *rest)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield seen
    finally:
        hook.remove()
