"""From the config's sections `generation` and `kl` to what looks at a policy, and mode=generate."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from launch import build
from launch.generation_checks import has_scorer, prompt_file, scenarios_of
from launch.pretraining import control_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from models.generation.scenarios import Drawing, Scenario
    from scorers.scorer import Scorer
    from trainers.generation import Generation
    from trainers.loop import Evaluation

log = logging.getLogger(__name__)

COMPARED = (
    "prompts", "prompts_sha256", "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "seed",
    "use_prompt_for_scoring", "before_ids",
)  # fmt: skip
"""Settings of a scenario that its scores depend on; the prefix, which belongs to the loss, is none of them."""


def build_evaluations(config: DictConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> list[Evaluation]:
    """What looks at the policy while it is trained; nothing without scenarios and `kl.every`.

    Raises:
        ValueError: a prefix or banned token that is none of the tokenizer's, a prompt that does not fit, a reference
            that cannot be had.
    """
    found: list[Evaluation] = []
    if scenarios_of(config.generation):
        found.append(build_generation(config, tokenizer))
    if config.kl.every is not None:
        from launch.kl import build_divergence

        found.append(build_divergence(config, tokenizer, device))
    return found


def build_generation(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Generation:
    """The scenarios, their scorer and metrics; everything that the tokenizer decides is checked."""
    from trainers.generation import Generation

    section = config.generation
    drawing = drawing_of(config, tokenizer, section.seed)
    scenarios = [_scenario(config, tokenizer, name, some) for name, some in scenarios_of(section).items()]
    for scenario in scenarios:
        drawing.prompts(scenario)  # refuses those that do not fit
    scorer = build_scorer(config)
    for scenario in scenarios:
        _check_threshold(scenario, scorer)
    return Generation(scenarios, drawing, scorer, [str(one) for one in section.metrics], section.every)


def drawing_of(config: DictConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Drawing:
    """How samples are drawn: what is banned, what stands before them.

    A segment that the model would begin with the token of bad text begins with that of good text. Were the first merely
    banned, its probability would go to all else that can follow a segment, such as the end of the text.

    Raises:
        ValueError: a banned token that is none of the tokenizer's.
    """
    from models.generation.scenarios import Drawing
    from models.plain_text import banned_ids

    banned = banned_ids(tokenizer, banned_of(config), "generation.banned_tokens")
    good, *bad = tokenizer.convert_tokens_to_ids(control_tokens(config)) or [None]
    return Drawing(
        tokenizer, config.generation.batch_size, seed, tuple(banned), config.model.max_length,
        before_ids(tokenizer, config), tuple((one, good) for one in bad if good not in banned),
    )  # fmt: skip


def prefix_of(config: DictConfig) -> str | None:
    """What stands before every prompt: what the config says, else the token of good text where the loss has one."""
    section = config.generation
    return section.prefix if section.prefix is not None else next(iter(control_tokens(config)), None)


def banned_of(config: DictConfig) -> list[str | int]:
    """Tokens that are never sampled: what the config says, and the token of bad text where the loss has one.

    That of good text may stand before each segment, as it does in training; it is no part of a sample's text.
    """
    return [*config.generation.banned_tokens, *control_tokens(config)[1:]]


def before_ids(tokenizer: PreTrainedTokenizerBase, config: DictConfig) -> tuple[int, ...]:
    """The tokens of generation.before."""
    from models.plain_text import token_ids

    return tuple(int(one) for one in token_ids(tokenizer, config.generation.before or ""))


def _scenario(config: DictConfig, tokenizer: PreTrainedTokenizerBase, name: str, options: dict[str, Any]) -> Scenario:
    from models.generation.scenarios import Scenario
    from models.plain_text import prefix_ids

    options = dict(options)
    file, key = options.pop("prompts"), f"generation.scenarios.{name}.prefix"
    if options["prefix"] is None:
        options["prefix"], key = prefix_of(config), "generation.prefix"
    prompts = () if file is None else tuple(read_texts(file, f"generation.scenarios.{name}.prompts"))
    ids = prefix_ids(tokenizer, options["prefix"], key)
    return Scenario(name, prompts=prompts, prefix_ids=ids, **options)


def build_scorer(config: DictConfig) -> Scorer | None:
    """The scorer that the config names, if any; what it has scored once is known from then on."""
    if not has_scorer(config):
        return None
    from launch.scorers import build_scorer as build_named

    return build_named(OmegaConf.to_container(config.scorer, resolve=True), config.cache_dir)


def _check_threshold(scenario: Scenario, scorer: Scorer | None) -> None:
    """A threshold outside of what scores can be would make every sample a hit, or none."""
    threshold = scenario.hits_threshold
    if threshold is None or scorer is None:
        return
    low, high = scorer.bounds
    if not low <= threshold < high:
        raise ValueError(
            f"generation.scenarios.{scenario.name}.hits_threshold={threshold:g}: scores of {scorer.name} lie between "
            f"{low:g} and {high:g}, and a hit is above it: choose a value from {low:g} to below {high:g}."
        )


def read_texts(file: str, key: str) -> list[str]:
    """The `text` of every line of a JSONL file.

    Raises:
        ValueError: a line is no JSON object with a text.
    """
    texts = []
    lines = prompt_file(file).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{key}={file}, line {number}: every line must be {{"text": "..."}}.') from None
        if not isinstance(text, str) or not text:
            raise ValueError(f"{key}={file}, line {number}: `text` must be text that is not empty.")
        texts.append(text)
    if not texts:
        raise ValueError(f"{key}={file}: no line has a text.")
    return texts


# Results ------------------------------------------------------------------------------------------------------------


def label_of(config: DictConfig) -> str:
    """What a figure calls the run; whoever draws it may say otherwise."""
    return str(config.exp_name)


def keep_final_scores(config: DictConfig, folder: Path, examples: int) -> None:
    """After a training: the scores of its last samples to `alignment.json`."""
    scenarios = scenarios_of(config.generation)
    if not scenarios:
        return
    from trainers.generation import write_alignment

    files = [folder / "samples" / f"{name}-{examples}.json" for name in scenarios]
    there = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    write_alignment(folder, label_of(config), weights_of(folder, None), scores_of(there))


def weights_of(folder: Path, saved: str | None, named: str | None = None) -> dict[str, Any]:
    """Which weights results belong to: the checkpoint of a run, or the name of a model."""
    path = folder / "LATEST" / "policy.pt" if saved is None else Path(saved)
    if saved is None and not path.is_file():
        return {"name": named}
    return {"checkpoint": path.resolve().parent.name}


def scores_of(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `alignment.json` says of scenarios: the score of the first, and all figures and settings of each."""
    scored = [one for one in summaries if "score" in one["metrics"]]
    found: dict[str, Any] = {"scenarios": {one["scenario"]: one["metrics"] for one in summaries}}
    found["settings"] = {one["scenario"]: _compared(one["settings"]) for one in summaries}
    if scored:
        first = scored[0]
        found |= {"score": first["metrics"]["score"], "scenario": first["scenario"], "scorer": first["scorer"]}
        found |= {"direction": first["direction"]}
    return found


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in COMPARED if key in settings}


# mode=generate ------------------------------------------------------------------------------------------------------


def generate(config: DictConfig, folder: Path, saved: str | None) -> dict[str, Any]:
    """Runs the scenarios on a run's policy, or any model: samples and figures go to the run's `samples/`."""
    from models.checkpoints import read_policy
    from trainers.distributed import rank, start
    from trainers.generation import write_alignment

    tokenizer = build.build_tokenizer(config, saved)
    generation = build_generation(config, tokenizer)
    device = build.build_device(config.device)
    start(device)
    from launch.train import check_vocabulary

    policy = build.build_saved(config, device, saved)
    check_vocabulary(policy, tokenizer)
    examples = 0
    if saved is not None:
        examples = int(read_policy(saved)["metrics"].get("counters/examples", 0))
    summaries = []
    for result in generation.results(policy):
        summaries.append(generation.summary(result, examples))
        if rank() == 0:
            log.info("%d samples: %s", len(result.samples), generation.save(result, folder, examples))
    if rank() == 0:
        weights = weights_of(folder, saved, config.model.load_from or config.model.name_or_path)
        write_alignment(folder, label_of(config), weights, scores_of(summaries))
        print(json.dumps({one["scenario"]: one["metrics"] for one in summaries}, indent=1))
    return {one["scenario"]: one for one in summaries}
