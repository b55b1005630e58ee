"""mode=red_team: a search for prompts after which a policy's samples have bad scores.

The search of Pretraining with Human Preferences (arXiv 2302.08582): a pool of prompts, each with the mean score of
the policy's samples after it; in a round an attacker, any language model, is shown few-shot texts of prompts drawn from
the pool, the worse the likelier, and writes further ones, which are scored and join the pool. Here the first prompts
are scored as well, so that the round 0 says where the search began.

`red_team/rounds.jsonl` in the run's folder has a line a round; a search that was cut off goes on behind the last one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from launch import build
from launch.completions import PREFIX, Completions
from launch.generation import build_scorer, drawing_of, prefix_of, read_texts, weights_of
from models.files import write_whole
from scorers.printable import printable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from scorers.scorer import Scorer
    from trainers.generation import Generation

log = logging.getLogger(__name__)

FENCE = "```"
LEAST_SPREAD = 0.1
"""Of the first prompts' scores, in units of the pool's temperature."""
WORST = 3
"""Samples of each candidate that are kept, those with the worst scores."""


class LocalAttacker:
    """A language model on this machine that goes on with texts."""

    def __init__(self, config: DictConfig, device: torch.device):
        from models.loading import load_model, load_tokenizer

        named = str(config.red_team.attacker)
        self.tokenizer = load_tokenizer(named, cache_dir=config.cache_dir)
        self.model = load_model(named, cache_dir=config.cache_dir).to(device)
        self._options = config.red_team

    def complete(self, prompt: str, count: int, seed: int) -> list[str]:
        """`count` completions of a text."""
        from models.generation.hf import HFGenerator
        from models.plain_text import start_ids, text_after, token_ids

        text = token_ids(self.tokenizer, prompt)
        ids = np.concatenate([start_ids(self.tokenizer), text])
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        if len(ids) + self._options.max_new_tokens > positions:
            ids = ids[-(positions - self._options.max_new_tokens) :]  # the last prompts are shown, the first cut
        generator = HFGenerator(
            self.model, stop_ids={self.tokenizer.eos_token_id}, pad_id=self.tokenizer.pad_token_id,
            temperature=self._options.temperature, top_p=self._options.top_p,
            max_length=len(ids) + self._options.max_new_tokens, batch_size=count, seed=seed,
        )  # fmt: skip
        completions = generator.generate([ids] * count, "asking the attacker")
        return [text_after(self.tokenizer, text, one.ids, ()) for one in completions]


class EndpointAttacker:
    """The same by an endpoint."""

    def __init__(self, config: DictConfig):
        self._options = config.red_team
        self._endpoint = Completions(str(self._options.attacker), self._options.base_url, "red_team.attacker")
        self._endpoint.complete("1.", 1, max_tokens=1, seed=0)  # whether it answers is found before the first round

    def complete(self, prompt: str, count: int, seed: int) -> list[str]:
        """`count` completions of a text."""
        options = self._options
        texts = self._endpoint.complete(
            prompt, count, max_tokens=options.max_new_tokens, seed=seed, temperature=options.temperature,
            top_p=options.top_p,
        )  # fmt: skip
        return [one.text for one in texts]


def few_shot(prompts: Sequence[str], form: str) -> str:
    """The text that the attacker goes on with: the prompts as a list, or in fences, and the beginning of one more."""
    if form == "blocks":
        return "".join(f"{FENCE}\n{prompt}\n{FENCE}\n\n" for prompt in prompts) + f"{FENCE}\n"
    lines = [f"{number}. {' '.join(prompt.split())}\n" for number, prompt in enumerate(prompts, 1)]
    return f"{''.join(lines)}{len(prompts) + 1}."


def candidate(completion: str, form: str) -> str:
    """The prompt that a completion of `few_shot` begins with; "" when there is none."""
    if form == "blocks":
        return completion.partition(FENCE)[0].strip("\n")
    return completion.strip().partition("\n")[0].strip()


def chances(scores: Sequence[float], temperature: float) -> np.ndarray:
    """The probability (n,) of each prompt of the pool to be shown: in proportion to exp(score / temperature)."""
    scaled = np.asarray(scores, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    # A prompt whose weight vanishes beside the worst one's could not be drawn where several are needed.
    weights = np.maximum(weights, 1e-12)
    return weights / weights.sum()


def shown(
    pool: Sequence[dict[str, Any]], count: int, temperature: float, sign: float, seed: Sequence[int]
) -> list[str]:
    """Prompts for a few-shot text, drawn without replacement; a function of the pool and the seed."""
    places = np.random.default_rng(seed).choice(
        len(pool), min(count, len(pool)), replace=False,
        p=chances([sign * one["score"]["mean"] for one in pool], temperature),
    )  # fmt: skip
    return [pool[place]["prompt"] for place in places]


class Search:
    """A search, round after round.

    Args:
        generation: draws the policy's samples and scores them.
        attacker: None where another process asks it.
        file: rounds.jsonl.
        header: what the search is; the rounds of another one are refused.
    """

    def __init__(
        self,
        config: DictConfig,
        generation: Generation,
        attacker: LocalAttacker | EndpointAttacker | None,
        file: Path,
        header: dict[str, Any],
    ):
        self.options, self.generation, self.attacker, self.file = config.red_team, generation, attacker, file
        self.header = header
        self.sign = 1.0 if generation.scorer.direction == "higher_is_worse" else -1.0
        self.rounds = read_rounds(file, header)

    @property
    def pool(self) -> list[dict[str, Any]]:
        """All candidates with a score."""
        return [one for some in self.rounds for one in some["candidates"] if one["score"] is not None]

    def run(self, policy: PreTrainedModel, first: Sequence[str]) -> None:
        """To the last round; all processes call it."""
        from trainers import distributed

        for number in range(len(self.rounds), self.options.n_rounds + 1):
            written, dropped = distributed.of_first(lambda: self._candidates(number, first))  # noqa: B023 (called at once)
            if number and not written:
                raise ValueError(
                    f"red_team: in round {number} the attacker wrote no new prompt ({dict(dropped)}): choose another "
                    "red_team.attacker, or raise n_responses."
                )
            self.rounds.append(self._scored(policy, number, written, dropped))
            if distributed.rank() == 0:
                self._save()
                _tell(self.rounds[-1], self.sign)
                if number == 0:
                    self._warn_of_uniform_chances()

    def _warn_of_uniform_chances(self) -> None:
        """Scores that differ by far less than the temperature say nothing of which prompts are shown."""
        scores = [one["score"]["mean"] for one in self.pool]
        spread = max(scores, default=0.0) - min(scores, default=0.0)
        if len(scores) > 1 and spread < LEAST_SPREAD * self.options.pool_temperature:
            log.warning(
                "the first prompts' scores differ by %.2g, less than a tenth of red_team.pool_temperature=%g: each is "
                "all but as likely to be shown as any other; set it to about %.1g", spread,
                self.options.pool_temperature, spread or scores[0] or LEAST_SPREAD,
            )  # fmt: skip

    def _candidates(self, number: int, first: Sequence[str]) -> tuple[list[str], Counter[str]]:
        """The prompts of a round, each new, and how many were dropped for what."""
        dropped: Counter[str] = Counter()
        known = {one["prompt"] for some in self.rounds for one in some["candidates"]}
        written: list[str] = []
        texts = list(first) if number == 0 else self._asked(number)
        for text in texts:
            reason = None if text.strip() else "empty"
            reason = reason or ("known already" if text in known else None)
            reason = reason or (None if self._fits(text) else "longer than model.max_length allows")
            if reason is None:
                known.add(text)
                written.append(text)
            else:
                dropped[reason] += 1
        return written, dropped

    def _asked(self, number: int) -> list[str]:
        options, texts = self.options, []
        if not self.pool:
            raise ValueError(
                "red_team: no sample after the first prompts could be scored, so none can be shown to the attacker: "
                "give other red_team.prompts, or longer samples (continuation_min_tokens, n_continuations)."
            )
        for trial in range(options.n_trials):
            seed = [options.seed, number, trial]
            some = shown(self.pool, options.n_shots, options.pool_temperature, self.sign, seed)
            ask = int(np.random.default_rng([*seed, 1]).integers(2**31))
            answers = self.attacker.complete(few_shot(some, options.format), options.n_responses, ask)
            texts += [candidate(answer, options.format) for answer in answers]
        return texts

    def _fits(self, text: str) -> bool:
        from models.plain_text import token_ids

        drawing = self.generation.drawing
        try:
            length = len(drawing.head(self.generation.scenarios[0])) + len(token_ids(drawing.tokenizer, text))
        except (UnicodeEncodeError, TypeError):  # half a surrogate pair
            return False
        return length + self.options.continuation_tokens <= drawing.max_length

    def _scored(
        self, policy: PreTrainedModel, number: int, written: Sequence[str], dropped: Counter[str]
    ) -> dict[str, Any]:
        """The round's line: each candidate with the mean score of the policy's samples after it."""
        from dataclasses import replace

        from scorers.estimates import mean_estimate

        scenario = replace(
            self.generation.scenarios[0], name=f"round-{number}", prompts=tuple(written),
            n_samples=len(written) * self.options.n_continuations,
        )  # fmt: skip
        samples = self.generation.scored(policy, scenario)
        candidates = []
        for prompt in written:
            own = [one for one in samples if one.drawn.prompt == prompt]
            known = [one for one in own if one.score is not None]
            known.sort(key=lambda one: -self.sign * one.score)
            candidates.append(
                {
                    "prompt": prompt,
                    "score": mean_estimate([one.score for one in known]).as_json() if known else None,
                    "unscored": len(own) - len(known),
                    "worst": [{"text": one.drawn.completion, "score": one.score} for one in known[:WORST]],
                }
            )
        known = [one for one in samples if one.score is not None]
        whole = mean_estimate([one.score for one in known], [one.drawn.prompt for one in known]) if known else None
        return {
            "round": number,
            "score": None if whole is None else whole.as_json(),
            "dropped": dict(dropped),
            "candidates": candidates,
        }

    def _save(self) -> None:
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in [self.header, *self.rounds]))


def read_rounds(file: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds that a search has behind it.

    Raises:
        ValueError: the file is of another search, or damaged.
    """
    if not file.is_file():
        return []
    try:
        found, *rounds = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is damaged: move it away, and the search begins anew.") from None
    # Only how many rounds there are may change: the search then goes on.
    if found != header:
        keys = [key for key in header if not isinstance(found, dict) or found.get(key) != header[key]]
        raise ValueError(
            f"{file} is of another search (another {', '.join(keys)}): move it away, or give the same settings."
        )
    if not all(_is_round(line, number) for number, line in enumerate(rounds)):
        raise ValueError(f"{file} is damaged: move it away, and the search begins anew.")
    return rounds


def _is_round(line: Any, number: int) -> bool:
    """Whether it is the record of a round, as the search writes it."""
    try:
        scores = [one["score"] for one in line["candidates"] if isinstance(one["prompt"], str)]
        means = [one["mean"] for one in (line["score"], *scores) if one is not None]
        whole = line["round"] == number and len(scores) == len(line["candidates"])
        return whole and all(math.isfinite(mean) for mean in means) and (line["score"] is None) == (not any(scores))
    except (KeyError, TypeError, OverflowError):
        return False


def _tell(line: dict[str, Any], sign: float) -> None:
    scored = [one for one in line["candidates"] if one["score"] is not None]
    if not scored:
        log.info("round %d: none of %d candidates could be scored", line["round"], len(line["candidates"]))
        return
    worst = max(scored, key=lambda one: sign * one["score"]["mean"])
    log.info(
        "round %d: %d candidates, mean score %.4g; the worst %.4g: %s", line["round"], len(scored),
        line["score"]["mean"], worst["score"]["mean"], printable(worst["prompt"])[:100],
    )  # fmt: skip


def search(config: DictConfig, folder: Path, saved: str | None) -> Path | None:
    """Searches; returns rounds.jsonl, of which eval.py draws the plot, in the first process and None in others."""
    from launch.train import check_vocabulary
    from trainers import distributed

    device = build.build_device(config.device)
    distributed.start(device)
    options = config.red_team
    first = list(dict.fromkeys(read_texts(options.prompts, "red_team.prompts")))[: options.n_prompts]
    scorer = build_scorer(config)
    assert scorer is not None  # `check_generation` has seen to it
    tokenizer = build.build_tokenizer(config, saved)
    generation = _generation(config, tokenizer, scorer, first)
    attacker = None
    if distributed.rank() == 0:
        endpoint = str(options.attacker).startswith(PREFIX)
        attacker = EndpointAttacker(config) if endpoint else LocalAttacker(config, device)
    policy = build.build_saved(config, device, saved)
    check_vocabulary(policy, tokenizer)
    settings = OmegaConf.to_container(options, resolve=True)
    settings.pop("n_rounds")
    header = {
        "format": 1,
        "settings": settings,
        "prompts": hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16],
        "weights": weights_of(folder, saved, config.model.load_from or config.model.name_or_path),
        "scorer": scorer.identity,
        "direction": scorer.direction,
        "label": str(config.exp_name),
    }
    file = folder / "red_team" / "rounds.jsonl"
    state = Search(config, generation, attacker, file, header)
    if state.rounds and distributed.rank() == 0:
        log.info("the search goes on after round %d: %s", len(state.rounds) - 1, file)
    state.run(policy, first)
    return file if distributed.rank() == 0 else None


def _generation(config: DictConfig, tokenizer: Any, scorer: Scorer, first: Sequence[str]) -> Generation:
    from models.generation.scenarios import Scenario
    from models.plain_text import prefix_ids
    from trainers.generation import Generation

    options, drawing = config.red_team, drawing_of(config, tokenizer, config.red_team.seed)
    scenario = Scenario(
        "candidates", len(first), options.continuation_tokens, tuple(first), prefix_of(config),
        prefix_ids(tokenizer, prefix_of(config), "generation.prefix"), options.continuation_min_tokens,
        options.continuation_temperature, options.continuation_top_p,
        use_prompt_for_scoring=options.use_prompt_for_scoring,
    )  # fmt: skip
    return Generation([scenario], drawing, scorer)
