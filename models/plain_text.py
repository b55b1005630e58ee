"""Texts without a chat format as a model reads them: a start token, a prefix of control tokens, then the text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def start_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """What stands before a text that begins (1,): the tokenizer's BOS, or without one its EOS, as GPT-2 is trained."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return np.array([start], dtype=np.int32)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """The ids (N,) of somebody's text: the words of a special token in it are words."""
    if not text:
        return np.zeros(0, dtype=np.int32)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    options = {"split_special_tokens": True} if any(one in text for one in special) else {}
    return np.array(tokenizer(text, add_special_tokens=False, **options).input_ids, dtype=np.int32)


def prefix_ids(tokenizer: PreTrainedTokenizerBase, prefix: str | None, key: str) -> np.ndarray:
    """The ids (N,) of a prefix, in which a control token is one; none for null.

    Args:
        key: of the config, for the message.

    Raises:
        ValueError: the prefix is no token.
    """
    if prefix is None:
        return np.zeros(0, dtype=np.int32)
    ids = tokenizer(prefix, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"{key}={prefix!r} is no token: set it to a control token of the model, or to null.")
    return np.array(ids, dtype=np.int32)


def banned_ids(tokenizer: PreTrainedTokenizerBase, banned: Sequence[str | int], key: str) -> list[int]:
    """Token ids that are never to be sampled, from ids or the texts of single tokens.

    Raises:
        ValueError: one is no single token of this tokenizer, or is the token that ends a text.
    """
    ids = []
    for one in banned:
        found = [one] if isinstance(one, int) else tokenizer(one, add_special_tokens=False).input_ids
        if len(found) != 1 or not 0 <= found[0] < len(tokenizer):
            raise ValueError(
                f"{key}: {one!r} is no single token of this tokenizer (it is {len(found)}): name a token's text or id."
            )
        if found[0] == tokenizer.eos_token_id:
            raise ValueError(f"{key}: {one!r} is the token that ends a text, without which no sample could end.")
        ids.append(int(found[0]))
    return ids


def text_after(
    tokenizer: PreTrainedTokenizerBase, prompt: np.ndarray, ids: np.ndarray, control: Collection[int]
) -> str:
    """What a completion adds to its prompt's text, special and control tokens left out, spaces as they were sampled.

    Args:
        prompt: ids of the text before (P,); some tokenizers give a text's first token without its space.
        ids: of the completion (N,).
        control: further tokens that are no text.
    """

    def decoded(part: np.ndarray) -> str:
        kept = [int(one) for one in part if int(one) not in control]
        return tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    before, whole = decoded(prompt), decoded(np.concatenate([prompt, ids]))
    return whole[len(before) :] if len(prompt) and whole.startswith(before) else decoded(ids)
