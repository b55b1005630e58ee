"""Sampling with transformers' `generate`: batched, KV cache, left padding, a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
)

from scorers.progress import Bar, progress

_GREEDY = {"do_sample": False}


@dataclass(frozen=True)
class Completion:
    """Sampled token ids, without the token `end` that ended them; it is None when the length limit cut them off."""

    ids: np.ndarray
    end: int | None

    @property
    def finish_reason(self) -> str:
        """`stop` when the model ended by itself, else `length`."""
        return "length" if self.end is None else "stop"


class _Rows(StoppingCriteria):
    """The completions of a batch: which of them have ended, and what those have that are still being generated.

    It ends those that have as many counted tokens as they may; and all of them once a quarter of the batch has ended,
    so that the others go on in a smaller one.

    Args:
        room: how many counted tokens each completion may have.
        uncounted_ids: tokens that do not count.
        pad_id: what stands behind the end of a completion.
    """

    GOING_ON = 0.75
    """Of a batch: with fewer of its completions the batch is made smaller."""

    def __init__(
        self, room: Sequence[int], stop_ids: Sequence[int], uncounted_ids: Sequence[int], pad_id: int, bar: Bar
    ):
        self.stop_ids = torch.tensor(stop_ids)
        self.uncounted_ids = torch.tensor(uncounted_ids, dtype=torch.long)
        self.pad_id = pad_id
        self.bar = bar
        self.room = torch.tensor(room)
        self.ended = torch.zeros(len(room), dtype=torch.bool)
        self.rows = torch.arange(len(room))
        """The rows of the batch that are generated; the others have ended, and left."""
        self.ids: list[torch.Tensor] = []
        """(rows,) of each step, of all rows."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """(those generated,) bool: the completions that have no room left, or all."""
        last, before = input_ids[:, -1].cpu(), int(self.ended.sum())
        step = torch.full_like(self.room, self.pad_id)
        step[self.rows] = last
        self.ids.append(step)
        self.room[self.rows] -= (~torch.isin(last, self.uncounted_ids)).long()
        full = self.room[self.rows] <= 0
        self.ended[self.rows] |= torch.isin(last, self.stop_ids) | full
        self.bar.update(int(self.ended.sum()) - before)
        going_on = len(last) - int(self.ended[self.rows].sum())
        return (full | (going_on < self.GOING_ON * len(last))).to(input_ids.device)

    def leave(self) -> torch.Tensor:
        """Takes those that have ended out; (those left,) which of the rows of before these are."""
        left = torch.nonzero(~self.ended[self.rows]).flatten()
        self.rows = self.rows[left]
        return left


class Replaced(LogitsProcessor):
    """Writes one token wherever the model would write another.

    Args:
        replaced: tokens that are never taken, and the token that has the probability of each beside its own.
    """

    def __init__(self, replaced: Mapping[int, int]):
        self.replaced = dict(replaced)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, V), of which those of the replaced tokens are -inf; all others are as probable as before."""
        scores = scores.clone()
        for token, other in self.replaced.items():
            scores[:, other] = torch.logaddexp(scores[:, other], scores[:, token])
            scores[:, token] = -torch.inf
        return scores


class Nucleus(LogitsProcessor):
    """Top-p (Holtzman et al. 2020, arXiv 1904.09751, section 3.1) at a temperature, without a sort of the vocabulary.

    A few hundred tokens nearly always hold the nucleus; where they do not, more are looked at, and in the end all. What
    is kept is the same either way, but for which of equally likely tokens come first: each token such that those before
    it have less than `top_p` of the probability.
    """

    CANDIDATES = (512, 8192)

    def __init__(self, temperature: float, top_p: float):
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, V) divided by the temperature, -inf outside of the nucleus."""
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores
        probabilities = scores.softmax(dim=-1)
        for count in (*self.CANDIDATES, scores.shape[-1]):
            likeliest, ids = probabilities.topk(min(count, scores.shape[-1]), dim=-1)
            kept = likeliest.cumsum(dim=-1) - likeliest < self.top_p
            if not bool(kept[:, -1].any()):
                break
        values = scores.gather(1, ids).masked_fill_(~kept, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids, values)


class HFGenerator:
    """Samples completions of prompts given as token ids.

    Args:
        model: any causal language model of transformers.
        stop_ids: tokens that end a completion.
        pad_id: what fills the left of shorter prompts; it is masked.
        temperature: 0 takes the likeliest token at each step.
        top_p: nucleus of probability mass that is sampled from.
        max_length: tokens of prompt and completion together.
        max_new_tokens: tokens of a completion; None: as many as max_length leaves.
        batch_size: prompts generated at once; with the seed, it decides which random numbers a prompt gets.
        top_k: so many of the likeliest tokens are sampled from, before top_p; 0: all.
        min_new_tokens: a completion is not ended before it has so many.
        banned_ids: tokens that are never taken.
        replaced_ids: tokens in whose place others are taken: token -> other.
        uncounted_ids: tokens that are no part of a text, and of max_new_tokens, as long as there are no more of them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Collection[int],
        pad_id: int,
        temperature: float = 1.0,
        top_p: float = 0.95,
        max_length: int = 1024,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        top_k: int = 0,
        min_new_tokens: int = 0,
        banned_ids: Collection[int] = (),
        replaced_ids: Mapping[int, int] | None = None,
        uncounted_ids: Collection[int] = (),
    ):
        self.model = model
        self.stop_ids = sorted(stop_ids)
        self.uncounted_ids = sorted(uncounted_ids)
        self.pad_id = pad_id
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.min_new_tokens = min_new_tokens
        self.batch_size = batch_size
        self.seed = seed
        self._shaping: list[LogitsProcessor] = [Nucleus(temperature, top_p)] if temperature > 0 else []
        if temperature > 0 and top_k:
            self._shaping.insert(0, TopKLogitsWarper(top_k))
        if replaced_ids:
            self._shaping.insert(0, Replaced(replaced_ids))
        self._settings: dict[str, object] = {
            **({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0} if temperature > 0 else _GREEDY),
            "eos_token_id": self.stop_ids, "pad_token_id": pad_id, "use_cache": True,
            "return_dict_in_generate": True,
        }  # fmt: skip
        banned = {*banned_ids} - {*(replaced_ids or {})}  # transformers would hide those before they are replaced
        if banned:
            self._settings["suppress_tokens"] = sorted(banned)

    def room(self, prompt: np.ndarray) -> int:
        """How many tokens a completion of this prompt may have, those that do not count left out."""
        left = self.max_length - len(prompt)
        return left if self.max_new_tokens is None else min(left, self.max_new_tokens)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        description: str = "sampling",
        part: int = 0,
        parts: int = 1,
        before_batch: Callable[[], None] | None = None,
    ) -> list[Completion | None]:
        """One completion for each prompt (P,), in the order given; the same prompts and seed give the same ones.

        Args:
            part, parts: of so many processes this one generates every so-manieth batch; the completions of the others
                are None. Whoever generates a batch, it gets the same random numbers.
            before_batch: called as often in all processes, so that they may agree in it.
        """
        self.model.eval()
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # like lengths: little padding
        completions: dict[int, Completion] = {}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
            everybody = range(0, len(order), self.batch_size)
            starts = everybody[part::parts]
            total = sum(min(self.batch_size, len(order) - start) for start in starts)
            bar = progress(total=total, desc=description, unit="prompt", disable=part > 0)
            for start, _ in zip_longest(starts, everybody[::parts]):
                if before_batch is not None:
                    before_batch()
                if start is None:  # another process has one batch more
                    continue
                batch = order[start : start + self.batch_size]
                torch.manual_seed(self.seed + start)
                for index, ids in zip(batch, self._batch([prompts[index] for index in batch], bar), strict=True):
                    completions[index] = self._finish(ids, prompts[index])
            bar.close()
        return [completions.get(index) for index in range(len(prompts))]

    def _batch(self, prompts: Sequence[np.ndarray], bar: Bar) -> np.ndarray:
        """(P, T) token ids of the completions, anything behind their ends."""
        width, device = max(map(len, prompts)), self.model.device
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - len(prompt) :] = 1
        ids, mask, cache = ids.to(device), mask.to(device), None
        rows = _Rows([self.room(prompt) for prompt in prompts], self.stop_ids, self.uncounted_ids, self.pad_id, bar)
        longest = max(map(self._longest, prompts))
        while len(rows.rows) and len(rows.ids) < longest:
            done = len(rows.ids)
            shortest = {"min_new_tokens": self.min_new_tokens - done} if self.min_new_tokens > done else {}
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=GenerationConfig(**self._settings, **shortest, max_new_tokens=longest - done),
                logits_processor=LogitsProcessorList(self._shaping),
                stopping_criteria=StoppingCriteriaList([rows]),
            )
            left = rows.leave().to(device)
            ids = output.sequences[left]
            mask = torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
            cache = output.past_key_values
            if cache is not None:  # of a model that has none, the whole is read again
                cache.reorder_cache(left)
        bar.update(int((~rows.ended).sum()))
        return torch.stack(rows.ids, dim=1).numpy()

    def _longest(self, prompt: np.ndarray) -> int:
        """Tokens of a completion of this prompt, those that do not count among them."""
        return min(self.room(prompt) * (2 if self.uncounted_ids else 1), self.max_length - len(prompt))

    def _finish(self, ids: np.ndarray, prompt: np.ndarray) -> Completion:
        counted = np.cumsum(~np.isin(ids, self.uncounted_ids))
        ids = ids[: self._longest(prompt)][counted[: self._longest(prompt)] <= self.room(prompt)]
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        if len(ends):
            return Completion(ids[: ends[0]], int(ids[ends[0]]))
        return Completion(ids, None)
