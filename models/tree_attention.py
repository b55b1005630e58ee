"""Attention over packs of tree rows, entering models through transformers' AttentionInterface.

A model whose config names `NAME` as its attention calls `attend` in every layer, with the pack as the keyword
`pack`. Paths, chosen by `path_for`:

- `blocks`: one call of SDPA for each stretch of a pack, without a mask over the pack; CPUs, and float32 on a GPU;
- `varlen`: one variable-length kernel a layer, with a prompt's keys repeated for each further branch; bf16 on a GPU;
- `dense`: plain matrix products with a (T, T) mask; what the other two are tested against.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from models.tree_rows import Pack

NAME = "aureole_tree"


class Scores(NamedTuple):
    """What a layer does to its scores.

    Attributes:
        scaling: what they are multiplied by; None: 1 / sqrt(D).
        window: how many tokens back a token sees, itself included; None: all.
        softcap: a score s becomes softcap * tanh(s / softcap).
        sinks: (heads,) a further score of each head that takes part in the softmax and has no value.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether SDPA and its kin compute them."""
        return self.softcap is None and self.sinks is None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    pack: Pack | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention over a pack.

    Args:
        query: (1, heads, T, D).
        key, value: (1, key-value heads, T, D); the values may have another D.
        scaling, sliding_window, softcap, s_aux: see `Scores`, under the names that transformers gives them.
        others: what else a model passes; whether that changes anything, `models.probe` has seen.

    Returns:
        (1, T, heads, D) and None.

    Raises:
        NotImplementedError: outside of a pack's forward pass, and with dropout.
    """
    if pack is None or attention_mask is not None or dropout or query.shape[0] != 1 or query.shape[2] != len(pack):
        raise NotImplementedError(f"{type(module).__name__} does not give its attention what tree rows need")
    scores = Scores(scaling, sliding_window, softcap, s_aux)
    path = PATHS[path_for(query, scores)]
    if path is by_varlen or not torch.is_grad_enabled():
        output = path(query, key, value, pack, scores)
    else:  # keeps neither repeated keys nor scores for the backward pass: computing them again costs little
        output = checkpoint(path, query, key, value, pack, scores, use_reentrant=False, preserve_rng_state=False)
    return output.transpose(1, 2), None


def path_for(query: torch.Tensor, scores: Scores) -> str:
    """Which path computes an attention on this hardware."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and scores.plain and torch.cuda.get_device_capability() >= (8, 0):
        return "varlen"
    return "blocks"


def by_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores) -> torch.Tensor:
    """(1, heads, T, D): stretch by stretch. A later branch attends to its prompt's keys and its own."""
    sizes = [stretch.stop - stretch.start for stretch in pack.stretches]
    parts = [tensor.split(sizes, dim=2) for tensor in (query, key, value)]
    outputs, first = [], 0
    for number, stretch in enumerate(pack.stretches):
        q, k, v = (part[number] for part in parts)
        if stretch.prompt == (0, 0):
            first = number
        else:
            length = stretch.prompt[1] - stretch.prompt[0]
            k, v = (
                torch.cat([part[first].narrow(2, 0, length), one], dim=2)
                for part, one in zip(parts[1:], (k, v), strict=True)
            )
        k, v = _for_all_heads(q, k, v)
        q, k, v = (_exact(part) for part in (q, k, v))
        queries, keys = q.shape[2], k.shape[2]
        if not scores.plain:
            mask = _mask(pack, queries, keys, scores.window, q.device)
            outputs.append(_by_products(q, k, v, mask, scores))
        elif queries == keys and (scores.window is None or scores.window >= keys):
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, scale=scores.scaling))
        else:
            mask = _mask(pack, queries, keys, scores.window, q.device)
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scaling))
    return torch.cat(outputs, dim=2).to(query.dtype)


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """On a CPU in float32 at least: there SDPA's backward pass in bfloat16 takes three times as long."""
    return tensor if tensor.is_cuda else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores) -> torch.Tensor:
    """(1, heads, T, D): all scores at once, with a mask over the pack."""
    mask = pack.visible(scores.window).to(query.device)
    return _by_products(query, *_for_all_heads(query, key, value), mask, scores)


def by_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores) -> torch.Tensor:
    """(1, heads, T, D): one kernel over all stretches, whose causal mask is aligned at the last token of each."""
    from torch.nn.attention.varlen import varlen_attn

    index, starts, key_starts, longest, most_keys = _varlen_plan(pack, query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, D)
    before = -1 if scores.window is None else scores.window - 1
    output = varlen_attn(
        q, k[index], v[index], starts, key_starts, longest, most_keys,
        scale=scores.scaling, window_size=(before, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return output.transpose(0, 1)[None]


PATHS = {"blocks": by_blocks, "varlen": by_varlen, "dense": dense}


def _varlen_plan(pack: Pack, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    """Where the keys of each stretch lie, one after the other, and where queries and keys of each begin."""
    if (plan := pack.masks.get(("varlen", device))) is None:
        stretches = pack.stretches
        index = torch.cat(
            [torch.arange(a, b) for stretch in stretches for a, b in (stretch.prompt, (stretch.start, stretch.stop))]
        )
        lengths = torch.tensor([0, *(stretch.stop - stretch.start for stretch in stretches)])
        keys = torch.tensor([0, *(stretch.keys for stretch in stretches)])
        plan = (
            index.to(device), lengths.cumsum(0).to(device, torch.int32), keys.cumsum(0).to(device, torch.int32),
            int(lengths.max()), int(keys.max()),
        )  # fmt: skip
        pack.masks["varlen", device] = plan
    return plan


def _mask(pack: Pack, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys) bool: causal, aligned at the last of both, within the window; kept for the other layers."""
    name = (queries, keys, window, device)
    if name not in pack.masks:
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None, :]
        mask = distance >= 0
        pack.masks[name] = (mask if window is None else mask & (distance < window)).to(device)
    return pack.masks[name]


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Softmax in float32 at least, for what SDPA does not have."""
    scaling, _, softcap, sinks = scores
    products = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    products = products.to(torch.promote_types(products.dtype, torch.float32))
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    products = products.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        more = sinks.to(products.dtype).reshape(1, -1, 1, 1).expand(*products.shape[:3], 1)
        weights = torch.cat([products, more], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = products.softmax(dim=-1)
    return weights.to(value.dtype) @ value


def _for_all_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as the queries have."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


AttentionInterface.register(NAME, attend)
