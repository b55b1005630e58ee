"""Log-probabilities of responses under a causal language model.

The plain path: sequences of a group are padded to the right, the language-model head runs on the scored positions only,
and log-probabilities are float32 whatever the compute dtype is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel


class ScoredSequence(NamedTuple):
    """A prompt (P,), a response (R,), and which of the response's tokens (R,) are scored."""

    prompt: np.ndarray
    response: np.ndarray
    scored: np.ndarray


def token_logps(
    model: PreTrainedModel, sequences: Sequence[ScoredSequence], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """The log-probability of every scored token given all that stands before it.

    Args:
        model: a causal language model; gradients flow when they are enabled.
        sequences: what to score; a first token with nothing before it has no probability and is not scored.
        dtype: compute dtype; another one than float32 runs under autocast, and the logits come out in it.

    Returns:
        For each sequence, the log-probabilities in nats of its scored tokens: float32, (scored tokens,). The softmax
        is taken in float32, whatever the logits came in.
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
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
    with _head_only_at(model, index), autocast:
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    values = -F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), target, reduction="none")
    return list(values.split(counts))


@contextmanager
def _head_only_at(model: PreTrainedModel, index: torch.Tensor) -> Iterator[None]:
    """Lets the language-model head see only the positions `index` (N,) of the flattened batch: logits are (1, N, V).

    What a model does after its head (soft-capping, scaling) works element by element and still happens.
    """

    def pick(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = inputs
        return (hidden.reshape(-1, hidden.shape[-1])[index].unsqueeze(0), *rest)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
