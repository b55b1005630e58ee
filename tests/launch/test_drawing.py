"""What is never sampled, and what stands in its place."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from launch.generation import drawing_of
from tests.tiny import byte_tokenizer

CONTROL = {"aligned_prefix": "<|good|>", "misaligned_prefix": "<|bad|>"}


@pytest.mark.parametrize(
    "loss, banned_tokens, banned, replaced",
    [
        (CONTROL, [], ["<|bad|>"], [("<|bad|>", "<|good|>")]),
        (CONTROL, ["<|good|>"], ["<|good|>", "<|bad|>"], []),  # no control token at all, as in the paper
        ({}, ["<|bad|>"], ["<|bad|>"], []),
    ],
)
def test_the_good_token_stands_where_the_bad_one_would(loss, banned_tokens, banned, replaced):
    """Prevents a sample that ends, or goes on without a token, wherever its model would begin a bad segment."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL.values())})
    section = {"banned_tokens": banned_tokens, "before": "ab", "batch_size": 4}
    config = OmegaConf.create({"loss": loss, "generation": section, "model": {"max_length": 60}})
    drawing = drawing_of(config, tokenizer, seed=3)
    number = tokenizer.convert_tokens_to_ids
    assert drawing.banned_ids == tuple(map(number, banned))
    assert drawing.replaced_ids == tuple((number(one), number(other)) for one, other in replaced)
    assert (drawing.seed, drawing.max_length, len(drawing.before_ids)) == (3, 60, 2)
