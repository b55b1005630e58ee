"""Scenarios of free text: how many samples, after which prompts and prefix, sampled how; and drawing them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from models.logprobs import plain_attention
from models.plain_text import start_ids, text_after, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scenario:
    """What is sampled, always the same: the n-th sample has the n-th prompt, whatever the model.

    Attributes:
        prompts: texts, used in an order that the seed decides and again from the first when they are all used; none:
            unconditional samples.
        prefix: its text as the config has it, and its ids (N,); it stands before the prompt.
        hits_threshold: a score above it is a hit; None: hits are not counted.
        use_prompt_for_scoring: prompt and completion are scored together.
    """

    name: str
    n_samples: int
    max_new_tokens: int
    prompts: tuple[str, ...] = ()
    prefix: str | None = None
    prefix_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32), compare=False)
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    hits_threshold: float | None = None
    use_prompt_for_scoring: bool = False

    def prompts_in_order(self, seed: int) -> list[str]:
        """One for each sample; the same ones for every model with this seed."""
        if not self.prompts:
            return [""] * self.n_samples
        order = np.random.default_rng([seed, _number(self.name)]).permutation(len(self.prompts))
        return [self.prompts[order[index % len(order)]] for index in range(self.n_samples)]

    def seed(self, seed: int) -> int:
        """That of its own random numbers: no two scenarios share them."""
        return (seed + _number(self.name)) % 2**62


@dataclass(frozen=True)
class Drawn:
    """A sample.

    Attributes:
        completion: its text, without prompt, special and control tokens.
        tokens: how many it has, control tokens left out.
        finish_reason: `stop` or `length`.
    """

    prompt: str
    completion: str
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Drawing:
    """How all scenarios of a run are drawn.

    Attributes:
        banned_ids: tokens that are never sampled.
        max_length: tokens of start, prefix, prompt and completion together.
        before_ids: tokens of a document that comes before each sample's own, as one does nearly everywhere in the
            blocks of pretraining, where few documents are the first.
        replaced_ids: (token, other): of those that are banned, the ones in whose place another is sampled.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    seed: int
    banned_ids: tuple[int, ...]
    max_length: int
    before_ids: tuple[int, ...] = ()
    replaced_ids: tuple[tuple[int, int], ...] = ()

    def head(self, scenario: Scenario) -> np.ndarray:
        """The ids (N,) before each prompt: what comes before, the start token, the prefix."""
        before = np.asarray(self.before_ids, dtype=np.int32)
        return np.concatenate([before, start_ids(self.tokenizer), scenario.prefix_ids])

    def prompts(self, scenario: Scenario) -> list[np.ndarray]:
        """The ids before each sample: the head and the prompt.

        Raises:
            ValueError: a prompt leaves less room than max_new_tokens.
        """
        known: dict[str, np.ndarray] = {}
        head = self.head(scenario)
        for prompt in dict.fromkeys(scenario.prompts_in_order(self.seed)):
            ids = np.concatenate([head, token_ids(self.tokenizer, prompt)])
            if len(ids) + scenario.max_new_tokens > self.max_length:
                raise ValueError(
                    f"generation.scenarios.{scenario.name}: the prompt {prompt[:40]!r} has {len(ids)} tokens (start "
                    f"and prefix included), which with max_new_tokens={scenario.max_new_tokens} are more than "
                    f"model.max_length={self.max_length}: raise that, or shorten the prompt."
                )
            known[prompt] = ids
        return [known[prompt] for prompt in scenario.prompts_in_order(self.seed)]

    def control_ids(self, scenario: Scenario) -> set[int]:
        """Tokens that are no text: those that are banned, and those of the prefix that a tokenizer was given for it."""
        added = set(self.tokenizer.get_added_vocab().values())
        return {*self.banned_ids, *(int(one) for one in scenario.prefix_ids if int(one) in added)}

    def draw(
        self,
        model: PreTrainedModel,
        scenario: Scenario,
        part: int = 0,
        parts: int = 1,
        before_batch: Callable[[], None] | None = None,
    ) -> list[Drawn | None]:
        """The scenario's samples in order; of `parts` processes this one draws every so-manieth batch, others are None.

        Dropout is off, and the global random numbers are as they were before. What `before_batch` raises ends it.
        """
        from models.generation.hf import HFGenerator

        prompts, control = self.prompts(scenario), self.control_ids(scenario)
        generator = HFGenerator(
            model, stop_ids={self.tokenizer.eos_token_id}, pad_id=self.tokenizer.pad_token_id,
            temperature=scenario.temperature, top_p=scenario.top_p, top_k=scenario.top_k, max_length=self.max_length,
            max_new_tokens=scenario.max_new_tokens, min_new_tokens=scenario.min_new_tokens,
            batch_size=self.batch_size, seed=scenario.seed(self.seed), banned_ids=self.banned_ids,
            replaced_ids=dict(self.replaced_ids), uncounted_ids=control - {*self.banned_ids},
        )  # fmt: skip
        with plain_attention(model):
            completions = generator.generate(prompts, f"sampling {scenario.name}", part, parts, before_batch)
        head = len(self.head(scenario))
        return [
            None
            if completion is None
            else Drawn(
                text,
                text_after(self.tokenizer, ids[head:], completion.ids, control),
                int((~np.isin(completion.ids, list(control))).sum()),
                completion.finish_reason,
            )
            for text, ids, completion in zip(scenario.prompts_in_order(self.seed), prompts, completions, strict=True)
        ]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
