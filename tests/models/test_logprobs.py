"""Log-probabilities of responses against one plain forward pass per sequence, for five families of models."""

import numpy as np
import pytest
import torch

from models.logprobs import ScoredSequence, plain_attention, token_logps
from models.reference import Reference
from models.tree_rows import Branch, TreeRow
from tests import tiny

GENERATOR = np.random.default_rng(0)


def sequence(prompt: int, response: int, scored=None) -> ScoredSequence:
    ids = GENERATOR.integers(0, tiny.VOCABULARY, size=prompt + response).astype(np.int32)
    scored = np.ones(response, dtype=bool) if scored is None else np.array(scored, dtype=bool)
    return ScoredSequence(ids[:prompt], ids[prompt:], scored)


SEQUENCES = [
    sequence(9, 12),
    sequence(1, 1),
    sequence(1, 17),
    sequence(20, 1),
    sequence(0, 8),
    sequence(0, 1),
    sequence(6, 5, [True, False, False, True, True]),
    sequence(4, 3, [False, False, False]),
]
"""Longer than the sliding window, of one token, without a prompt, with tokens in between or none that are scored."""


def plain(model, sequence: ScoredSequence) -> torch.Tensor:
    """One unpadded sequence through the whole model, log_softmax over the whole vocabulary in float64."""
    ids = torch.tensor(np.concatenate([sequence.prompt, sequence.response]), dtype=torch.long)
    logps = torch.log_softmax(model(ids[None], use_cache=False).logits[0].double(), dim=-1)
    places = len(sequence.prompt) + np.flatnonzero(sequence.scored)
    values = [logps[place - 1, ids[place]] for place in places if place > 0]
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)


def exact(family: str) -> torch.dtype:
    """float64; Gemma 2's eager attention takes its softmax in float32, where float64's lowest number is -inf."""
    return torch.float32 if family == "gemma2" else torch.float64


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_in_a_padded_batch(family: str):
    """Prevents padding that is attended to, positions that are off by one, and a head without its soft-capping."""
    model = tiny.tiny_model(family, dtype=exact(family))
    with torch.no_grad():
        values = token_logps(model, SEQUENCES)
        for sequence, value in zip(SEQUENCES, values, strict=True):
            assert value.dtype == model.dtype
            assert torch.allclose(value.double(), plain(model, sequence), rtol=1e-5, atol=1e-5)
    assert [len(value) for value in values] == [12, 1, 17, 1, 7, 0, 3, 0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_gradient_of_every_family(family: str):
    """Prevents a gradient that misses the tied head, the embeddings of the prompt or the soft-capping."""
    model = tiny.tiny_model(family, dtype=exact(family))
    weights = [1.0 + number for number in range(len(SEQUENCES))]
    sum(weight * plain(model, one).sum() for weight, one in zip(weights, SEQUENCES, strict=True)).backward()
    expected = tiny.gradients(model)
    model.zero_grad()
    values = token_logps(model, SEQUENCES)
    sum(weight * value.sum() for weight, value in zip(weights, values, strict=True)).backward()
    assert tiny.relative(expected, tiny.gradients(model)) < (1e-6 if exact(family) == torch.float64 else 1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_is_close_and_comes_as_float32(family: str):
    """Prevents log-probabilities in bfloat16: a sum of 200 such tokens would be off by a third of a nat."""
    model = tiny.tiny_model(family)
    with torch.no_grad():
        single = token_logps(model, SEQUENCES)
        rough = token_logps(model.to(torch.bfloat16), SEQUENCES)
    for one, other in zip(single, rough, strict=True):
        assert other.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.15)
    values = torch.cat(rough)
    assert not torch.equal(values, values.bfloat16().float()), "rounded to bfloat16 after all"


def test_the_head_sees_scored_positions_alone():
    """Prevents logits of the whole vocabulary for prompts and padding, and a hook that stays behind."""
    model, seen = tiny.tiny_model(), []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    token_logps(model, SEQUENCES)
    assert seen == [(1, 12 + 1 + 17 + 1 + 7 + 3, tiny.VOCABULARY)]
    handle.remove()
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model(torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 5, tiny.VOCABULARY)


def test_the_hook_goes_also_after_an_error():
    """Prevents a model that keeps picking positions after one failed pass."""
    model = tiny.tiny_model()
    with pytest.raises(IndexError):
        token_logps(model, [ScoredSequence(np.array([tiny.VOCABULARY + 1]), np.array([1]), np.ones(1, dtype=bool))])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_reference_values_have_no_gradient_and_are_computed_once():
    """Prevents a reference that is trained, loaded before it is needed, or asked twice for the same sequence."""
    loads = []

    def load():
        loads.append(1)
        return tiny.tiny_model(seed=3)

    reference = Reference(load)
    assert not loads
    rows = [TreeRow(one.prompt, [Branch(one.response, one.scored)]) for one in SEQUENCES]
    for _ in range(2):
        values = [value for (value,) in reference.logps(rows, 100)]
    assert len(loads) == 1
    assert (reference.cache.misses, reference.cache.hits) == (len(SEQUENCES), len(SEQUENCES))
    assert not any(value.requires_grad for value in values)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    with plain_attention(reference.model):
        for one, value in zip(SEQUENCES, values, strict=True):
            assert torch.allclose(value.double(), plain(reference.model, one), atol=1e-4)
