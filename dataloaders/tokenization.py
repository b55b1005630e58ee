"""The one place where text becomes token ids: prompts, responses, which tokens are scored, and what is cut.

No second BOS or EOS is ever added; a response that was cut has no end of turn; all responses of a prompt share the
prompt's ids to the token; where a token spans the boundary of prompt and response it belongs to the response.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from dataloaders.chat_format import ChatFormat, Conversation, Piece
from dataloaders.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CACHE_VERSION = 1  # raise it when the same input gives other tokens than before


@dataclass(frozen=True)
class Response:
    """A response as tokens: `ids` (T,), `scored` (T,) true where a token counts in a loss, `cut` when it was too long."""

    ids: np.ndarray
    scored: np.ndarray
    cut: bool = False

    def shortened(self, length: int) -> Response:
        """The response within `length` tokens; what is cut off takes the end of turn with it."""
        if len(self.ids) <= length:
            return self
        return Response(self.ids[:length], self.scored[:length], cut=True)


@dataclass(frozen=True)
class TokenizedExample:
    """An Example as tokens: `prompt` (P,), one Response for each generation. `dropped` is the reason when it does not fit."""

    prompt: np.ndarray
    responses: tuple[Response, ...]
    prompt_cut: bool = False
    dropped: str | None = None


TOO_LONG = "last user turn longer than max_prompt_length"


class ExampleTokenizer:
    """Turns Examples into TokenizedExamples.

    Args:
        tokenizer: a Hugging Face tokenizer.
        format: the strings around turns, see `chat_format`.
        max_length: tokens of prompt and response together.
        max_prompt_length: where an example does not fit, its oldest turns go until the prompt has at most this many.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: ChatFormat, max_length: int, max_prompt_length: int):
        if not 0 < max_prompt_length < max_length:
            raise ValueError(
                f"model.max_prompt_length ({max_prompt_length}) must be positive and below model.max_length ({max_length})."
            )
        self.tokenizer = tokenizer
        self.format = format
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        added = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, added))) if added else None

    def __call__(self, examples: Sequence[Example], cache_dir: str | Path | None = None) -> list[TokenizedExample]:
        """Tokenizes examples, or reads them from the cache on disk when the same ones were tokenized before."""
        path = None if cache_dir is None else Path(cache_dir) / "tokens" / f"{self._key(examples)}.npz"
        if path is not None and path.exists():
            cached = _read(path)
            if cached is not None:
                return cached
        chunks = range(0, len(examples), 1000)
        progress = tqdm(chunks, desc="tokenizing", unit="k", disable=len(examples) <= 2000)
        done = [one for start in progress for one in self._tokenize(examples[start : start + 1000])]
        if path is not None:
            _write(path, done)
        return done

    def encode(self, texts: Sequence[list[Piece]]) -> list[list[int]]:
        """Token ids of texts given as pieces. A text is tokenized whole, so that merges across pieces are the model's own.

        Only where somebody's words contain the text of a special token are the pieces tokenized one by one, and in
        those words the special token is plain text.
        """
        plain = ["".join(text for text, _ in pieces) for pieces in texts]
        ids = self.tokenizer(plain, add_special_tokens=False).input_ids if plain else []
        for index, pieces in enumerate(texts):
            if self._special and any(words and self._special.search(text) for text, words in pieces):
                ids[index] = [token for text, words in pieces if text for token in self._encode_piece(text, words)]
        return ids

    def _encode_piece(self, text: str, words: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=words).input_ids

    def _tokenize(self, examples: Sequence[Example]) -> list[TokenizedExample]:
        """Tokenizes prompts and full texts in one batch each; the few that do not fit are then treated one by one."""
        conversations = [Conversation.parse(e.prompt) if isinstance(e.prompt, str) else None for e in examples]
        prompts = [[] if c is None else self._prompt(c, e.system) for c, e in zip(conversations, examples, strict=True)]
        prompt_ids = self.encode(prompts)
        texts = [
            self._texts(pieces, generation)
            for example, pieces in zip(examples, prompts, strict=True)
            for generation in example.generations
        ]
        encoded = iter(self.encode([text for stages in texts for text in stages]))
        stages = iter([[next(encoded) for _ in stages] for stages in texts])
        done = []
        for example, conversation, ids in zip(examples, conversations, prompt_ids, strict=True):
            if conversation is None:
                ids = list(example.prompt)
            per_generation = [next(stages) for _ in example.generations]
            tokens = self._assemble(ids, example, per_generation)
            done.append(self._fit(tokens, example, conversation))
        return done

    def _prompt(self, conversation: Conversation, system: str | None) -> list[Piece]:
        if not conversation.turns and not conversation.open:  # a text of no chat at all, or a document: as it is
            return [
                (self.format.preamble if self.format.tokenizer is None else "", False),
                (conversation.opening, True),
            ]
        return self.format.prompt(conversation.turns, system, conversation.opening)

    def _texts(self, prompt: list[Piece], generation: str | list[int]) -> list[list[Piece]]:
        """The texts whose tokens show where a generation's scored stretches begin and end, each a prefix of the next.

        For one response: [prompt + response + end of turn]. For a demonstration with later responses also the texts
        up to each of them.
        """
        if not isinstance(generation, str):
            return []
        conversation = Conversation.parse(generation)
        end = (self.format.end_of_turn, False)
        text = [*prompt, (conversation.opening, True), end]
        stages = [text]
        if conversation.turns:
            replies = [content for role, content in conversation.turns if role == "assistant"]
            for between, reply in zip(self.format.later_turns(conversation.turns), replies, strict=True):
                stages.append([*stages[-1], *between])
                stages.append([*stages[-1], (reply, True), end])
        return stages

    def _assemble(self, prompt: list[int], example: Example, stages: list[list[list[int]]]) -> TokenizedExample:
        """Cuts full token lists into the shared prompt and responses, by longest common token prefix."""
        full = [texts[-1] if texts else prompt + list(g) for texts, g in zip(stages, example.generations, strict=True)]
        boundary = min([len(prompt), *(common_prefix(prompt, ids) for ids in full)])
        responses = []
        for ids, texts in zip(full, stages, strict=True):
            scored = np.ones(len(ids), dtype=bool)
            for said, asked in zip(texts[:-1:2], texts[1::2], strict=True):
                scored[common_prefix(said, ids) : common_prefix(asked, ids)] = False
            responses.append(Response(np.array(ids[boundary:], dtype=np.int32), scored[boundary:]))
        return TokenizedExample(np.array(prompt[:boundary], dtype=np.int32), tuple(responses))

    def _fit(self, tokens: TokenizedExample, example: Example, conversation: Conversation | None) -> TokenizedExample:
        """Cuts what is longer than allowed: whole turns of history first, then the ends of responses."""
        longest = max((len(response.ids) for response in tokens.responses), default=0)
        if len(tokens.prompt) + longest > self.max_length and len(tokens.prompt) > self.max_prompt_length:
            shorter = self._drop_oldest_turns(example, conversation)
            if shorter is None:
                return TokenizedExample(tokens.prompt[:0], (), dropped=TOO_LONG)
            tokens = TokenizedExample(shorter.prompt, shorter.responses, prompt_cut=True)
        room = self.max_length - len(tokens.prompt)
        responses = tuple(response.shortened(room) for response in tokens.responses)
        return TokenizedExample(tokens.prompt, responses, tokens.prompt_cut)

    def _drop_oldest_turns(self, example: Example, conversation: Conversation | None) -> TokenizedExample | None:
        turns = conversation.turns if conversation else ()
        while True:
            # A conversation begins with a user's turn: the next one that there is.
            later = next((i for i, (role, _) in enumerate(turns) if i and role == "user"), None)
            if later is None:
                return None
            turns = turns[later:]
            pieces = self._prompt(Conversation(conversation.opening, turns, conversation.open), example.system)
            prompt = self.encode([pieces])[0]
            if len(prompt) <= self.max_prompt_length:
                break
        stages = [self.encode(self._texts(pieces, generation)) for generation in example.generations]
        return self._assemble(prompt, example, stages)

    def prompt_ids(self, example: Example) -> TokenizedExample:
        """A prompt alone, as for sampling, cut like any other to `max_prompt_length` when it has more tokens."""
        asked = Example(example.prompt, system=example.system)
        (tokens,) = self._tokenize([asked])
        if len(tokens.prompt) <= self.max_prompt_length:
            return tokens
        conversation = Conversation.parse(example.prompt) if isinstance(example.prompt, str) else None
        shorter = self._drop_oldest_turns(asked, conversation)
        if shorter is None:
            return TokenizedExample(tokens.prompt[:0], (), dropped=TOO_LONG)
        return TokenizedExample(shorter.prompt, (), prompt_cut=True)

    def _key(self, examples: Sequence[Example]) -> str:
        digest = hashlib.sha256(f"{CACHE_VERSION} {self.max_length} {self.max_prompt_length}".encode())
        digest.update(tokenizer_identity(self.tokenizer).encode())
        strings = [getattr(self.format, name) for name in ChatFormat.__dataclass_fields__ if name != "tokenizer"]
        digest.update(json.dumps([strings, self.format.tokenizer is not None]).encode())
        for example in examples:
            digest.update(json.dumps([example.prompt, example.generations, example.system]).encode())
        return digest.hexdigest()[:32]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists have in common from the start."""
    limit = min(len(first), len(second))
    if list(first[:limit]) == list(second[:limit]):
        return limit
    return next(index for index in range(limit) if first[index] != second[index])


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything in a tokenizer that decides its tokens, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{content}{tokenizer.chat_template}{tokenizer.all_special_tokens}".encode()).hexdigest()


def _write(path: Path, examples: list[TokenizedExample]) -> None:
    responses = [response for example in examples for response in example.responses]
    arrays = {
        "prompts": _joined([example.prompt for example in examples], np.int32),
        "prompt_lengths": np.array([len(example.prompt) for example in examples], dtype=np.int32),
        "counts": np.array([len(example.responses) for example in examples], dtype=np.int32),
        "prompt_cut": np.array([example.prompt_cut for example in examples], dtype=bool),
        "dropped": np.array([example.dropped or "" for example in examples], dtype=str),
        "ids": _joined([response.ids for response in responses], np.int32),
        "scored": _joined([response.scored for response in responses], bool),
        "lengths": np.array([len(response.ids) for response in responses], dtype=np.int32),
        "cut": np.array([response.cut for response in responses], dtype=bool),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, **arrays)
    os.replace(file.name, path)


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _read(path: Path) -> list[TokenizedExample] | None:
    """What `_write` wrote; None for a damaged file, which is then written anew."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        ends = np.cumsum(data["lengths"])
        prompt_ends = np.cumsum(data["prompt_lengths"])
    except Exception as error:  # a zip file can be torn in many ways; each means the same: tokenize again
        log.warning("the cached tokens at %s are damaged (%s): tokenizing again", path, error)
        return None
    responses = [
        Response(data["ids"][end - length : end], data["scored"][end - length : end], bool(cut))
        for end, length, cut in zip(ends, data["lengths"], data["cut"], strict=True)
    ]
    examples, start = [], 0
    for index, count in enumerate(data["counts"]):
        end, length = prompt_ends[index], data["prompt_lengths"][index]
        examples.append(
            TokenizedExample(
                data["prompts"][end - length : end],
                tuple(responses[start : start + count]),
                bool(data["prompt_cut"][index]),
                str(data["dropped"][index]) or None,
            )  # fmt: skip
        )
        start += count
    return examples
