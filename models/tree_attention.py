"""Attention over packs of tree rows, entering models through transformers' AttentionInterface.

A model whose config names `NAME` as its attention calls `attend` in every layer, with the pack as the keyword
`pack`. Paths, chosen by `path_for`:

- `blocks`: one call of SDPA for each stretch of a pack, without a mask over the pack; CPUs, and float32 on a GPU;
- `varlen`: one variable-length kernel a layer, with a prompt's keys repeated for each further branch; bf16 on a GPU;
- `dense`: plain matrix products with a (T, T) mask; what the other two are tested against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from models.tree_rows import Pack

NAME = "aureole_tree"


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
        scaling: of the scores; 1 / sqrt(D) by default.
        sliding_window: how many tokens back a token sees, itself included.
        softcap: scores s become softcap * tanh(s / softcap).
        s_aux: (heads,) a further score of each head that takes part in the softmax and has no value.

    Returns:
        (1, T, heads, D) and None.

    Raises:
        NotImplementedError: outside of a pack's forward pass, and for what is not known to be exact.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name in _CHANGE_SCORES)
    if pack is None or attention_mask is not None or query.shape[0] != 1 or query.shape[2] != len(pack) or unknown:
        raise NotImplementedError(
            f"{type(module).__name__} does not give its attention what tree rows need"
            + (f" (it uses {', '.join(unknown)})" if unknown else "")
        )
    options = {"scaling": scaling, "window": sliding_window, "softcap": softcap, "sinks": s_aux}
    return PATHS[path_for(query, softcap, s_aux)](query, key, value, pack, **options).transpose(1, 2), None


# Arguments of other attentions that change the scores: a model that gives one is refused rather than computed wrongly.
_CHANGE_SCORES = {"position_bias", "head_mask", "indexer_mask", "alibi", "bias", "attn_bias"}


def path_for(query: torch.Tensor, softcap: float | None, sinks: torch.Tensor | None) -> str:
    """Which path computes an attention on this hardware."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and softcap is None and sinks is None and torch.cuda.get_device_capability() >= (8, 0):
        return "varlen"
    return "blocks"


def by_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
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
        plain = softcap is None and sinks is None
        if plain and q.shape[2] == k.shape[2] and (window is None or window >= k.shape[2]):
            k, v = _for_all_heads(q, k, v)
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=scaling))
        else:
            mask = _mask(pack, q.shape[2], k.shape[2], window, q.device)
            outputs.append(_masked(q, k, v, mask, scaling, softcap, sinks))
    return torch.cat(outputs, dim=2)


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """(1, heads, T, D): all scores at once, with a mask over the pack."""
    mask = pack.visible(window).to(query.device)
    return _by_products(query, *_for_all_heads(query, key, value), mask, scaling, softcap, sinks)


def by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pack: Pack,
    *,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """(1, heads, T, D): one kernel over all stretches, whose causal mask is aligned at the last token of each."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None or sinks is not None:
        raise NotImplementedError("the variable-length kernel has neither soft-capping nor sinks")
    index, starts, key_starts, longest, most_keys = _varlen_plan(pack, query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, D)
    output = varlen_attn(
        q, k[index], v[index], starts, key_starts, longest, most_keys,
        scale=scaling, window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
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


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    key, value = _for_all_heads(query, key, value)
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return _by_products(query, key, value, mask, scaling, softcap, sinks)


def _by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax in float32 at least, for what SDPA does not have."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        more = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, more], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return weights.to(value.dtype) @ value


def _for_all_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as the queries have."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


AttentionInterface.register(NAME, attend)
