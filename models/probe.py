"""Whether tree rows are exact for a model: tried on a small random model of its class before they are relied on.

Some architectures mix positions by other means than causal attention (state-space layers, convolutions), or ignore a
registered attention without an error; tree rows would then be silently wrong.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as chatter

from models import tree_attention
from models.lean import slim
from models.loading import turn_dropout_off
from models.logprobs import ScoredSequence, attention_of, packed_logps, token_logps, uses_tree_rows
from models.tree_rows import Branch, Pack, Stretch, TreeRow

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # nats, in float32; a token that sees what it should not see moves log-probabilities by far more
_WINDOW = 5  # shorter than the probe's rows, so that sliding windows are crossed
_SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "vocab_size": 96, "head_dim": 8,
    "embedding_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "n_inner": 48,
}  # fmt: skip
_verdicts: dict[tuple[type, str], Verdict] = {}


class Verdict(NamedTuple):
    """What was found: why tree rows are not exact for a class (None: they are), whether `models.lean` is, too, and why
    not even padded rows are (None: they are, or there is no need for them)."""

    reason: str | None
    lean: bool = False
    padded: str | None = None


def use_tree_rows(model: PreTrainedModel) -> bool:
    """Lets `branch_logps` compute a model by tree rows from now on, where they are exact; else says why not, once.

    Whatever else runs the model then does it inside `plain_attention`.

    Raises:
        ValueError: for a model whose padded rows depend on each other, so that no value of it can be relied on.
    """
    if uses_tree_rows(model):
        return True
    reason, lean, padded = verdict_on(model)
    if padded is not None:
        raise ValueError(
            f"{type(model).__name__} cannot be used here: {reason}, and in padded rows {padded}. Choose a model of "
            "another architecture."
        )
    if reason is not None:
        log.warning(
            "%s is computed by padded rows: %s. Results are the same; prompts are computed once for each response, and "
            "padding costs time and memory.", type(model).__name__, reason,
        )  # fmt: skip
        return False
    if lean and not getattr(model, "has_compiled_blocks", False):
        slim(model)
    model.plain_attention = model.config._attn_implementation
    model.set_attn_implementation(tree_attention.NAME)
    return True


def verdict_on(model: PreTrainedModel) -> Verdict:
    """Whether tree rows give what plain rows give, and with lean layers as well; else what went wrong."""
    try:
        config = small_config(model.config)
    except Exception as error:  # whatever a config of somebody's class raises
        return Verdict(f"no small model of its class can be made ({_first(error)})")
    name = type(model), json.dumps(config.to_dict(), sort_keys=True, default=str)
    if name not in _verdicts:
        verdict = _try(type(model), config)
        if verdict.reason is not None:
            verdict = verdict._replace(padded=_problem_of_padded_rows(type(model), config))
        _verdicts[name] = verdict
    return _verdicts[name]


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with small sizes, short windows, and layers up to where each kind has occurred."""
    small = copy.deepcopy(config)
    for part in {id(one): one for one in (small, small.get_text_config())}.values():
        heads = getattr(part, "num_attention_heads", None)
        groups = (heads or 1) // (getattr(part, "num_key_value_heads", None) or heads or 1)
        old_half = (getattr(part, "head_dim", None) or getattr(part, "hidden_size", 0) // (heads or 1)) // 2
        layers = getattr(part, "num_hidden_layers", 2)
        kinds = getattr(part, "layer_types", None) or []
        kept = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
        for key, value in list(vars(part).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(part, key, value[:kept])
        latent = getattr(part, "qk_rope_head_dim", None) is not None  # has head sizes of its own, which it keeps
        for key, value in {**_SIZES, "num_hidden_layers": kept, "num_attention_heads": 4, "rotary_dim": 4}.items():
            if getattr(part, key, None) is not None and not (latent and key == "head_dim"):
                with contextlib.suppress(AttributeError):  # of some configs it is computed
                    setattr(part, key, value)
        if getattr(part, "num_key_value_heads", None) is not None:
            part.num_key_value_heads = max(1, 4 // groups)
        for key in ("sliding_window", "attention_chunk_size", "window_size"):
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, _WINDOW)
        for key, value in {"index_topk": 2, "index_topk_blocks": 1, "index_block_size": 2}.items():  # sparse attention
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, value)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(part, key, None) is not None:
                setattr(part, key, 1)
        _shorten_factors(getattr(part, "rope_parameters", None), old_half, 4)
    return small


def _shorten_factors(settings: Any, old: int, new: int) -> None:
    """Rope scaling that has a factor for each pair of dimensions gets as many as there are now."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if isinstance(value, dict):
            _shorten_factors(value, old, new)
        elif isinstance(value, list) and old and len(value) > new:
            settings[key] = value[: max(1, len(value) * new // old)]


def _try(kind: type[PreTrainedModel], config: PretrainedConfig) -> Verdict:
    rows = _rows(_SIZES["vocab_size"])
    pack = Pack.of(rows)
    sequences = [ScoredSequence(row.prompt, *branch) for row in rows for branch in row.branches]
    verbosity = chatter.get_verbosity()
    chatter.set_verbosity_error()  # of transformers, about the small model
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            model = kind._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            turn_dropout_off(model)
            _spread(model)
            plain = _values(model, torch.cat([token_logps(model, [sequence])[0] for sequence in sequences]))
            model.train()
            with attention_of(model, tree_attention.NAME):
                ours = _values(model, torch.cat(packed_logps(model, pack)))
                blind = torch.cat(packed_logps(model, _as_chains(pack))).detach()
                lean = _is_exact_when_lean(model, pack, plain)
    except Exception as error:  # whatever a model of somebody's class raises
        return Verdict(_first(error))
    finally:
        chatter.set_verbosity(verbosity)
    if not torch.isfinite(plain[0]).all():
        return Verdict("a small random model of its class gives values that are not finite")
    if not (ours[0] - plain[0]).abs().max() <= TOLERANCE:
        largest = (ours[0] - plain[0]).abs().max()
        return Verdict(f"log-probabilities differ by {largest:.1e} nats from those of plain rows")
    if not _same(ours, plain):
        return Verdict("gradients differ from those of plain rows")
    if (blind - plain[0]).abs().max() < 100 * TOLERANCE:
        return Verdict("a small random model of its class does not tell branches from a chain")
    return Verdict(None, lean)


@torch.no_grad()
def _problem_of_padded_rows(kind: type[PreTrainedModel], config: PretrainedConfig) -> str | None:
    """What is wrong with padded rows of a small random model: they must give what each row gives by itself.

    None also where no such model can be made: that says nothing of the model itself.
    """
    sequences = [ScoredSequence(row.prompt, *branch) for row in _rows(_SIZES["vocab_size"]) for branch in row.branches]
    verbosity = chatter.get_verbosity()
    chatter.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            _spread(model)
            alone = torch.cat([token_logps(model, [sequence])[0] for sequence in sequences])
    except Exception:
        return None
    finally:
        chatter.set_verbosity(verbosity)
    try:
        together = torch.cat(token_logps(model, sequences))
    except Exception as error:
        return _first(error)
    largest = float((together - alone).abs().max())
    return None if largest <= TOLERANCE else f"log-probabilities differ by {largest:.1e} nats from those of single ones"


def _is_exact_when_lean(model: PreTrainedModel, pack: Pack, plain: tuple[torch.Tensor, torch.Tensor]) -> bool:
    try:
        return slim(model) > 0 and _same(_values(model, torch.cat(packed_logps(model, pack))), plain)
    except Exception:  # whatever a layer raises that only looks like one that is known: it stays as it was
        return False


def _values(model: PreTrainedModel, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (N,), and the gradient of a weighted sum of them in all weights that they depend on."""
    model.zero_grad()
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    slopes = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]
    return logps.detach(), torch.cat([slope.flatten() for slope in slopes])


def _same(ours: tuple[torch.Tensor, torch.Tensor], plain: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Within the tolerance in each log-probability, and in the gradient relative to its norm."""
    (logps, slopes), (plain_logps, plain_slopes) = ours, plain
    near = (logps - plain_logps).abs().max() <= TOLERANCE
    return bool(near and (slopes - plain_slopes).norm() <= TOLERANCE * plain_slopes.norm())


def _rows(vocabulary: int) -> list[TreeRow]:
    generator = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return generator.integers(2, vocabulary, size=count)

    shapes = [(9, (7, 1, 4)), (1, (1, 6)), (12, (8,)), (2, (9, 9))]
    return [
        TreeRow(ids(prompt), [Branch(ids(count), np.ones(count, dtype=bool)) for count in counts])
        for prompt, counts in shapes
    ]


def _as_chains(pack: Pack) -> Pack:
    """The pack as an attention sees it that does not know of branches: each token sees all of its row before it."""
    starts = [stretch.start for stretch in pack.stretches if stretch.prompt == (0, 0)]
    ends = [*starts[1:], len(pack)]
    return dataclasses.replace(pack, stretches=tuple(map(Stretch, starts, ends)), masks={})


def _spread(model: PreTrainedModel) -> None:
    """Weights large enough that every token matters to every later one."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5 * 1.5)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
