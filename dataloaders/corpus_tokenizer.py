"""A byte-level BPE tokenizer learned from documents, for models that are trained from random weights."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataloaders.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LEARNED_FROM = 2**25
"""Characters of the first documents; more changes little but the time."""
LEAST_VOCABULARY = 257
END = "<|endoftext|>"
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[^\S\n]*\n|[^\S\n]+(?!\S)|[^\S\n]+"
"""What a token is a part of: GPT-2's pieces (Radford et al. 2019), but none goes on behind the end of a line. So the
scores of lines, and control tokens between them, meet no token that is of two lines."""
RULES = 2
"""Of what is learned, beside the documents; in the name under which it is kept."""


def learn_tokenizer(corpora: Sequence[Corpus], vocabulary: int, cache_dir: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer of so many tokens, the 256 bytes and an EOS among them (BPE as GPT-2's).

    It is kept in `{cache_dir}/tokenizers` under a name made of the documents.

    Raises:
        ValueError: for a vocabulary that has no room for all bytes.
    """
    from transformers import AutoTokenizer

    if vocabulary < LEAST_VOCABULARY:
        raise ValueError(
            f"model.tokenizer_name_or_path=corpus:{vocabulary}: a vocabulary has at least {LEAST_VOCABULARY} tokens, "
            "all bytes and an end."
        )
    key = hashlib.blake2b("".join(corpus.digest() for corpus in corpora).encode(), digest_size=8).hexdigest()
    folder = Path(cache_dir) / "tokenizers" / f"{key}-{vocabulary}-{RULES}"
    if not folder.exists():
        log.info("learning a tokenizer of %d tokens from the documents, once", vocabulary)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _learned(corpora, vocabulary).save_pretrained(Path(temporary) / "tokenizer")
            try:
                os.replace(Path(temporary) / "tokenizer", folder)
            except OSError:
                if not folder.exists():  # another process was first
                    raise
    return AutoTokenizer.from_pretrained(str(folder))


def _learned(corpora: Sequence[Corpus], vocabulary: int) -> PreTrainedTokenizerBase:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_texts(corpora), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def _texts(corpora: Sequence[Corpus]) -> Iterator[str]:
    left = LEARNED_FROM
    for corpus in corpora:
        for document in corpus.documents():
            if left <= 0:
                return
            left -= len(document.text)
            yield document.text
