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

from models.tree_rows import Pack, Stretch

NAME = "aureole_tree"
_VARLEN_WIDTH = 256
"""The largest D of the variable-length kernel; it must be a multiple of 8."""


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
    return PATHS[path_for(query, value.shape[-1], scores)](query, key, value, pack, scores).transpose(1, 2), None


def path_for(query: torch.Tensor, values: int, scores: Scores) -> str:
    """Which path computes an attention on this hardware; `values` is the D of the values."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    fits = query.shape[-1] == values <= _VARLEN_WIDTH and values % 8 == 0
    if query.is_cuda and half and fits and scores.plain and torch.cuda.get_device_capability() >= (8, 0):
        return "varlen"
    return "blocks"


def by_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores) -> torch.Tensor:
    """(1, heads, T, D): stretch by stretch. A later branch attends to its prompt's keys and its own."""
    if scores.plain and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        return _FlashBlocks.apply(query, key, value, pack, scores)
    if not torch.is_grad_enabled():
        return _blocks_by_autograd(query, key, value, pack, scores)
    # Keeps neither repeated keys nor scores for the backward pass: they are computed once more.
    return checkpoint(
        _blocks_by_autograd, query, key, value, pack, scores, use_reentrant=False, preserve_rng_state=False
    )


def _blocks_by_autograd(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores
) -> torch.Tensor:
    outputs = []
    for stretch in pack.stretches:
        q = query[:, :, stretch.start : stretch.stop]
        k, v = _for_all_heads(q, _keys(key, stretch), _keys(value, stretch))
        if scores.plain:
            mask, causal = _float_mask(pack, stretch, scores.window, q)
            outputs.append(
                F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scores.scaling)
            )
        else:
            mask = _mask(pack, q.shape[2], stretch.keys, scores.window, q.device)
            outputs.append(_by_products(q, k, v, mask, scores))
    return torch.cat(outputs, dim=2)


class _FlashBlocks(torch.autograd.Function):
    """SDPA's kernel for CPUs, in float32 at least (its backward pass in bfloat16 takes three times as long); repeated
    keys are not kept, and what keys and values get from several branches and heads is summed in that precision."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scores: Scores
    ) -> torch.Tensor:
        exact = torch.promote_types(query.dtype, torch.float32)
        # Token by token, as the next layer reads it, and (1, heads, T, D) to look at.
        output = torch.empty_like(query.transpose(1, 2), dtype=exact, memory_format=torch.contiguous_format)
        output = output.transpose(1, 2)
        sums = []
        for stretch in pack.stretches:
            own = slice(stretch.start, stretch.stop)
            q, k, v, mask, causal = _inputs(query, key, value, pack, stretch, scores.window)
            part, normalizers = _FLASH(q, k, v, 0.0, causal, attn_mask=mask, scale=scores.scaling)
            output[:, :, own] = part
            sums.append(normalizers)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.pack, ctx.scores = pack, scores
        return output.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        pack, scores = ctx.pack, ctx.scores
        to_query = torch.empty_like(output)
        to_key, to_value = (torch.zeros_like(one, dtype=output.dtype) for one in (key, value))
        slopes = slopes.to(output.dtype)
        for stretch, normalizers in zip(pack.stretches, sums, strict=True):
            own = slice(stretch.start, stretch.stop)
            q, k, v, mask, causal = _inputs(query, key, value, pack, stretch, scores.window)
            to_query[:, :, own], *others = _FLASH_BACKWARD(
                slopes[:, :, own], q, k, v, output[:, :, own], normalizers, 0.0, causal, attn_mask=mask,
                scale=scores.scaling,
            )  # fmt: skip
            before = stretch.prompt[1] - stretch.prompt[0]
            for total, part in zip((to_key, to_value), others, strict=True):
                part = part.unflatten(1, (total.shape[1], -1)).sum(2)
                total[:, :, slice(*stretch.prompt)] += part[:, :, :before]
                total[:, :, own] += part[:, :, before:]
        kinds = query.dtype, key.dtype, value.dtype
        return *(one.to(kind) for one, kind in zip((to_query, to_key, to_value), kinds, strict=True)), None, None


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _inputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, stretch: Stretch, window: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool]:
    """What SDPA gets for a stretch: queries, keys and values for all heads in float32, mask, and whether causal."""
    q = query[:, :, stretch.start : stretch.stop]
    exact = torch.promote_types(q.dtype, torch.float32)
    k, v = _for_all_heads(q, *(_keys(one, stretch).to(exact) for one in (key, value)))
    mask, causal = _float_mask(pack, stretch, window, q)
    return q.to(exact), k, v, mask, causal


def _keys(tensor: torch.Tensor, stretch: Stretch) -> torch.Tensor:
    """(1, heads, K, D): the part of keys or values that a stretch may attend to."""
    own = tensor[:, :, stretch.start : stretch.stop]
    return own if stretch.prompt == (0, 0) else torch.cat([tensor[:, :, slice(*stretch.prompt)], own], dim=2)


def _float_mask(
    pack: Pack, stretch: Stretch, window: int | None, like: torch.Tensor
) -> tuple[torch.Tensor | None, bool]:
    """A mask to add to a stretch's scores, or none where it is simply causal."""
    queries = stretch.stop - stretch.start
    if queries == stretch.keys and (window is None or window >= queries):
        return None, queries > 1
    kind = torch.promote_types(like.dtype, torch.float32) if like.device.type == "cpu" else like.dtype
    name = (queries, stretch.keys, window, like.device, kind)
    if name not in pack.masks:
        seen = _mask(pack, queries, stretch.keys, window, like.device)
        pack.masks[name] = torch.zeros(seen.shape, dtype=kind, device=like.device).masked_fill_(~seen, -torch.inf)
    return pack.masks[name], False


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
