"""The one place where text becomes token ids: prompts, responses, which tokens are scored, and what is cut.

No second BOS or EOS is ever added; a response that was cut has no end of turn; all responses of a prompt share the
prompt's ids to the token; where a token spans the boundary of prompt and response it belongs to the response.
"""

from __future__ import annotations

import hashlib
import itertools
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

from dataloaders.chat_format import ChatFormat, Conversation, Piece, bos
from dataloaders.examples import Example
from scorers.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CACHE_VERSION = 2  # raise it when the same input gives other tokens than before


@dataclass(frozen=True)
class Response:
    """A response as tokens: `ids` (T,), `scored` (T,) true where a token counts in a loss, `cut` when too long."""

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
    """An Example as tokens: `prompt` (P,), one Response for each generation; `dropped` says why it does not fit."""

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
                f"model.max_prompt_length ({max_prompt_length}) must be positive and below model.max_length "
                f"({max_length})."
            )
        self.tokenizer = tokenizer
        self.format = format
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        added = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()), key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._bos = bos(tokenizer)

    def __call__(self, examples: Sequence[Example], cache_dir: str | Path | None = None) -> list[TokenizedExample]:
        """Tokenizes examples, or reads them from the cache on disk when the same ones were tokenized before."""
        path = None if cache_dir is None else Path(cache_dir) / "tokens" / f"{self._key(examples)}.npz"
        if path is not None and path.exists():
            cached = _read(path)
            if cached is not None:
                return cached
        chunks = range(0, len(examples), 1000)
        bar = progress(chunks, desc="tokenizing", unit="k", disable=len(examples) <= 2000)
        done = [one for start in bar for one in self._tokenize(examples[start : start + 1000])]
        if path is not None:
            try:
                _write(path, done)
            except OSError as error:
                log.warning("the tokens are not kept on disk: %s", error)
        return done

    def encode(self, texts: Sequence[list[Piece]]) -> list[list[int]]:
        """Token ids of texts that belong together, given as pieces: where they begin alike, so do their ids.

        A text is tokenized whole, so that merges across pieces are the model's own. Only where somebody's words contain
        the text of a special token are those words' special tokens plain text, in all of the texts.
        """
        return self._encode_groups([texts])[0]

    def _encode_groups(self, groups: Sequence[Sequence[list[Piece]]]) -> list[list[list[int]]]:
        """`encode` for many groups at once: one call of the tokenizer for all that are harmless."""
        hostile = [
            any(words and self._has_special(text) for pieces in texts for text, words in pieces) for texts in groups
        ]
        plain = [
            "".join(text for text, _ in pieces)
            for texts, guarded in zip(groups, hostile, strict=True)
            for pieces in ([] if guarded else texts)
        ]
        ids = iter(self.tokenizer(plain, add_special_tokens=False).input_ids if plain else [])
        return [
            [self._encode_guarded(pieces) if guarded else next(ids) for pieces in texts]
            for texts, guarded in zip(groups, hostile, strict=True)
        ]

    def _has_special(self, text: str) -> bool:
        return self._special is not None and self._special.search(text) is not None

    def _encode_guarded(self, pieces: list[Piece]) -> list[int]:
        """The template's special tokens as themselves; what stands between them as text, whatever it contains."""
        ids: list[int] = []
        text = ""
        for content, words in pieces:
            for number, part in enumerate([content] if words else self._special.split(content)):
                if number % 2 == 0:  # what a pattern in brackets splits by stands at the odd places
                    text += part
                    continue
                ids += self._encode_text(text)
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
                text = ""
        return ids + self._encode_text(text)

    def _encode_text(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids if text else []

    def _tokenize(self, examples: Sequence[Example]) -> list[TokenizedExample]:
        """Tokenizes prompts and full texts in one batch each; the few that do not fit are then treated one by one."""
        conversations = [Conversation.parse(e.prompt) if isinstance(e.prompt, str) else None for e in examples]
        texts = [self._example_texts(*pair) for pair in zip(examples, conversations, strict=True)]
        encoded = self._encode_groups([[prompt, *itertools.chain(*stages)] for prompt, stages in texts])
        done = []
        for example, conversation, (_, stages), ids in zip(examples, conversations, texts, encoded, strict=True):
            tokens = self._assemble(example, stages, ids)
            done.append(self._fit(tokens, example, conversation))
        return done

    def _example_texts(
        self, example: Example, conversation: Conversation | None
    ) -> tuple[list[Piece], list[list[list[Piece]]]]:
        """The prompt of an example and, for each generation, the texts of `_stages`; a prompt of ids has no text."""
        if conversation is None:
            chat, prompt = True, []
        else:
            chat = bool(conversation.turns or conversation.open)
            prompt = self._prompt(conversation, example)
        return prompt, [self._stages(prompt, generation, chat) for generation in example.generations]

    def _prompt(self, conversation: Conversation, example: Example) -> list[Piece]:
        if conversation.turns or conversation.open:
            return self.format.prompt(conversation.turns, example.system, conversation.opening)
        # A text of no chat at all, or a document: as it is, behind BOS; ids have a BOS of their own or want none.
        of_ids = any(not isinstance(generation, str) for generation in example.generations)
        return [("" if of_ids else self._bos, False), (conversation.opening, True)]

    def _stages(self, prompt: list[Piece], generation: str | list[int], chat: bool) -> list[list[Piece]]:
        """The texts whose tokens show where a generation's scored stretches begin and end, each a prefix of the next.

        For one response: [prompt + response + end of turn]. For a demonstration with later responses also the texts
        up to each of them. What is no chat ends with EOS.
        """
        if not isinstance(generation, str):
            return []
        format, conversation = self.format, Conversation.parse(generation)
        if not chat:
            return [[*prompt, (conversation.opening, True), (self.tokenizer.eos_token, False)]]
        lead, end = (format.lead, False), (format.end_of_turn, False)
        stages = [[*prompt, lead, (format.said(conversation.opening), True), end]]
        if conversation.turns:
            replies = [content for role, content in conversation.turns if role == "assistant"]
            for between, reply in zip(format.later_turns(conversation.turns), replies, strict=True):
                stages.append([*stages[-1], *between])
                stages.append([*stages[-1], lead, (format.said(reply), True), end])
        return stages

    def _assemble(
        self, example: Example, stages: Sequence[Sequence[list[Piece]]], encoded: Sequence[list[int]]
    ) -> TokenizedExample:
        """Cuts full token lists into the shared prompt and responses, by longest common token prefix.

        `encoded` has the ids of the prompt, then those of all stages.
        """
        given = None if isinstance(example.prompt, str) else list(example.prompt)
        prompt, rest = given if given is not None else encoded[0], iter(encoded[1:])
        texts_of = [[(given or []) + next(rest) for _ in texts] for texts in stages]
        full = [
            texts[-1] if texts else prompt + list(g) for texts, g in zip(texts_of, example.generations, strict=True)
        ]
        boundary = min([len(prompt), *(common_prefix(prompt, ids) for ids in full)])
        responses = []
        for ids, texts in zip(full, texts_of, strict=True):
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
            prompt, stages = self._example_texts(example, Conversation(conversation.opening, turns, conversation.open))
            encoded = self.encode([prompt, *itertools.chain(*stages)])
            if len(encoded[0]) <= self.max_prompt_length:
                return self._assemble(example, stages, encoded)

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
    content = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:  # what the last batch of somebody's was padded and cut to
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    content = json.dumps(content, sort_keys=True)
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
        try:
            np.savez(file, **arrays)
            file.flush()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _read(path: Path) -> list[TokenizedExample] | None:
    """What `_write` wrote; None for a damaged file, which is then written anew."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
        ends = np.cumsum(data["lengths"])
        prompt_ends = np.cumsum(data["prompt_lengths"])
        whole = (
            (data["prompt_lengths"].sum(), data["lengths"].sum(), data["lengths"].sum(), data["counts"].sum()),
            (len(data["prompts"]), len(data["ids"]), len(data["scored"]), len(data["cut"])),
            (len(data["counts"]),) * 3,
            (len(data["prompt_lengths"]), len(data["prompt_cut"]), len(data["dropped"])),
        )
        if whole[0] != whole[1] or whole[2] != whole[3]:
            raise ValueError("its arrays do not fit together")
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
            )
        )
        start += count
    return examples
