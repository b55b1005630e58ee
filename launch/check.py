"""The values of a composed config: of the schema's type, inside their range, none left open. No torch here.

The YAML is the schema: a key's type is that of the value that its YAML has. What the YAML leaves null says nothing of
its type, so `NULLABLE` does.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dataloaders.resolve import did_you_mean
from launch import generation_checks
from launch.keys import check_key, flatten
from launch.loss_checks import check_section

NULLABLE: dict[str, tuple[type, ...]] = {
    "exp_name": (str,),
    "n_examples": (int,),
    "n_eval_examples": (int,),
    "warmup_steps": (int,),
    "keep_best": (str,),
    "save_every": (int,),
    "keep_last": (int,),
    "distributed.processes": (int,),
    "distributed.processes_per_host": (int,),
    "task.n_tokens": (int,),
    "task.tokens_already_seen": (int,),
    "loss.threshold": (float,),
    "loss.quantile": (float,),
    "distributed.heartbeat_seconds": (float,),
    "corpus": (str,),
    "documents_path": (str,),
    "scoring_processes": (int,),
    "scorer.kind": (str,),
    "scorer.ignore": (list,),
    "scorer.detectors": (list,),
    "scorer.ner": (bool,),
    "scorer.base": (str,),
    "n_samples": (int,),
    "max_new_tokens": (int,),
    "saved_policy": (str,),
    "export_dir": (str,),
    "push_to": (str,),
    "wandb.entity": (str,),
    "wandb.project": (str,),
    "model.name": (str,),
    "model.name_or_path": (str,),
    "model.tokenizer_name_or_path": (str,),
    "model.revision": (str,),
    "model.load_from": (str,),
    "model.lora.rank": (int,),
    "model.lora.targets": (list,),
    "model.lora.quantize": (str,),
    "model.block_name": (str,),
    "model.max_grad_norm": (float,),
    "model.human_prefix": (str,),
    "model.human_suffix": (str,),
    "model.assistant_prefix": (str,),
    "model.assistant_suffix": (str,),
    "datasets.*.path": (str, list),
    "datasets.*.test_path": (str, list),
    "datasets.*.data_dir": (str,),
    "datasets.*.revision": (str, list),
    "datasets.*.n_examples": (int,),
    "datasets.*.desirable_threshold": (float,),
    **generation_checks.NULLABLE,
}
"""Keys that may be null (or are `???` in a YAML) and the type that they have otherwise."""

EVALUATIONS = ("sample", "eval", "export", "inspect", "generate", "kl", "red_team", "score")
MODES = {"train.py": ("train", "inspect", "memory"), "eval.py": EVALUATIONS}

CHOICES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "pair_weight": ("mean", "product"),
    "optimizer": ("AdamW", "Adam", "RMSprop", "SGD", "AdamW8bit", "PagedAdamW8bit"),
    "scheduler": ("constant", "linear", "cosine"),
    "split": ("test", "train"),
    "task.phase": ("pretrain", "finetune"),
    "loss.mode": ("threshold", "soft"),
    "model.policy_dtype": ("float32", "bfloat16", "auto"),
    "model.reference_dtype": ("float32", "bfloat16", "auto"),
    "model.lora.quantize": ("nf4",),
    "distributed.reduce_dtype": ("float32", "bfloat16"),
    "scorer.device": ("auto", "cpu", "cuda", "mps"),
    "loss.divergence": ("reverse_kl", "forward_kl", "js", "alpha"),
    "loss.reward_shift": ("running_mean", "none"),
    "loss.nll_reduction": ("sum", "mean"),
    "loss.sft_reduction": ("sum", "mean"),
    "datasets.*.score_pairs": ("best_worst", "all"),
    **generation_checks.CHOICES,
}


def _above_zero(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _at_least_zero(value: float) -> bool:
    return value >= 0 and math.isfinite(value)


def _at_least_one(value: float) -> bool:
    return value >= 1


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: 0 <= value < 2**63, "at least 0 and below 2^63"),
    "n_epochs": (_at_least_one, "at least 1"),
    "n_examples": (_at_least_one, "at least 1, or null for no limit"),
    "n_eval_examples": (_at_least_zero, "at least 0, or null for all"),
    "eval_every": (_at_least_one, "at least 1"),
    "save_every": (_at_least_one, "at least 1, or null for one at the end"),
    "keep_last": (_at_least_one, "at least 1, or null for all"),
    "distributed.processes": (_at_least_one, "at least 1"),
    "distributed.processes_per_host": (_at_least_one, "at least 1"),
    "task.n_tokens": (_at_least_one, "at least 1, or null"),
    "task.tokens_already_seen": (_at_least_zero, "at least 0"),
    "task.shuffle_buffer": (_at_least_one, "at least 1"),
    "distributed.heartbeat_seconds": (
        lambda value: 1 <= value <= 86400,
        "at least 1 and at most 86400 (a day), or null for no heartbeat",
    ),
    "scoring_processes": (_at_least_one, "at least 1, or null for one on each core"),
    "scorer.max_line_length": (_at_least_one, "at least 1"),
    "scorer.max_characters": (_at_least_one, "at least 1"),
    "scorer.batch_size": (_at_least_one, "at least 1"),
    "scorer.seconds": (_above_zero, "above 0"),
    "log_every": (_at_least_one, "at least 1"),
    "lr": (_above_zero, "above 0"),
    "weight_decay": (_at_least_zero, "at least 0"),
    "beta1": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "beta2": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "eps": (_above_zero, "above 0"),
    "warmup": (lambda value: 0 <= value < 1, "at least 0 and below 1 (a share of the steps; warmup_steps is a number)"),
    "warmup_steps": (lambda value: 0 <= value < 2**31, "at least 0 and below 2^31"),
    "minimum_log_interval_secs": (_at_least_zero, "at least 0"),
    "n_samples": (_at_least_one, "at least 1, or null for all"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "temperature": (_at_least_zero, "at least 0 (0: always the likeliest token)"),
    "max_new_tokens": (_at_least_one, "at least 1"),
    "model.v_head_max_grad_norm": (_above_zero, "above 0"),
    "model.max_grad_norm": (_above_zero, "above 0, or null not to clip"),
    "model.lora.rank": (_at_least_one, "at least 1, or null to train all weights"),
    "model.lora.alpha": (_above_zero, "above 0"),
    "model.lora.dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "model.max_length": (_at_least_one, "at least 1"),
    "model.max_prompt_length": (_at_least_one, "at least 1"),
    "model.batch_size": (_at_least_one, "at least 1"),
    "model.gradient_accumulation_steps": (_at_least_one, "at least 1"),
    "model.tokens_per_microbatch": (_at_least_one, "at least 1"),
    "model.eval_batch_size": (_at_least_one, "at least 1"),
    "log_epsilon_P": (lambda value: value < 0, "below 0"),
    "log_epsilon_R": (_above_zero, "above 0"),
    "loss.beta": (_at_least_zero, "above 0"),
    "loss.losses.*.weight": (_at_least_zero, "at least 0"),
    "loss.tau": (_above_zero, "above 0"),
    "loss.epsilon": (lambda value: 0 <= value < 0.5, "at least 0 and below 0.5"),
    "loss.smoothing": (lambda value: 0 < value < 0.5, "above 0 and below 0.5"),
    "loss.divergence_alpha": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "loss.ld_alpha": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "loss.length_alpha": (_at_least_zero, "at least 0"),
    "loss.cpo_alpha": (_at_least_zero, "at least 0"),
    "loss.gamma_beta_ratio": (_at_least_zero, "at least 0"),
    "loss.lambda_coef": (_at_least_zero, "at least 0"),
    "loss.cliprange": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "loss.gamma": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "loss.lam": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "loss.critic_coef": (_at_least_zero, "at least 0"),
    "loss.KL_coef": (_at_least_zero, "at least 0"),
    "loss.alpha": (_at_least_zero, "at least 0"),
    "loss.weight_max": (_above_zero, "above 0"),
    "loss.quantile": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "loss.drop_token_fraction": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "loss.embedding_noise": (_at_least_zero, "at least 0"),
    "loss.rank_weight": (_at_least_zero, "at least 0"),
    "loss.length_penalty": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "loss.OR_scale": (_at_least_zero, "at least 0"),
    "loss.desirable_weight": (_at_least_zero, "at least 0"),
    "loss.undesirable_weight": (_at_least_zero, "at least 0"),
    "datasets.*.weight": (_above_zero, "above 0"),
    "datasets.*.n_examples": (_at_least_one, "at least 1, or null for all"),
    "datasets.*.test_fraction": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "datasets.*.minimum_ratio": (_at_least_one, "at least 1"),
    "datasets.*.max_pairs": (_at_least_one, "at least 1"),
    **generation_checks.RANGES,
}
"""What a number has to be; a user's own YAML may use these keys with the same meaning."""

_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(?![A-Z])", re.IGNORECASE)
_RESOLVER = re.compile(r"\$\{\s*([^\s${}:]+)\s*:([^${}]*)")  # ${name:arguments}, also inside of another
_REFERENCES = ("oc.select", "oc.dict.keys", "oc.dict.values", "hydra")  # resolvers whose argument is a key
SHORTEST_SECRET = 8  # a shorter value of a variable may stand in a config by chance

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def check_values(config: DictConfig, schema: DictConfig, script: str) -> DictConfig:
    """The config with interpolations resolved and every value of its key's type.

    Args:
        config: what was composed from all overrides.
        schema: what was composed from the chosen files alone.
        script: train.py or eval.py; each has modes of its own.

    Raises:
        ValueError: naming the key, its value and what is expected, for the first value that is wrong.
    """
    refuse_secrets(config)
    check_section(OmegaConf.to_container(schema, resolve=False).get("loss"))
    plain, expected = resolved(config), flatten(OmegaConf.to_container(schema, resolve=False))
    flat = flatten(plain)
    missing = [key for key, value in flat.items() if value == "???"]
    if missing:
        fixes = " ".join(f"{key}={'FILE' if key.endswith('path') else 'VALUE'}" for key in missing)
        raise ValueError(f"{', '.join(missing)} must be given: add {fixes}")
    for key, value in flat.items():
        if generation_checks.is_open(key) or (key == "generation.scenarios" and value is None):
            continue  # `generation_checks` knows their types; null takes away a task's
        check_key(key, expected, {})
        if key not in expected:
            inside = next(one for one in expected if one.startswith(f"{key}."))
            raise ValueError(f"{key}={show(value)}: {key} is a section; set one of its keys, such as {inside}.")
        _put(plain, key, _typed(key, value, expected[key]))
    check_section(plain["loss"])
    _check_ranges(flatten(plain), script)
    return OmegaConf.create(plain)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers; ValueError for an interpolation that leads nowhere."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ValueError(f"cannot resolve an interpolation of the config: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return plain


def refuse_secrets(config: DictConfig) -> None:
    """Refuses a value that is looked up in a secret's environment variable; the value itself is never shown.

    A config is saved with its values resolved, and goes with samples and model cards.
    """

    def refuse(key: str, variable: str) -> None:
        raise ValueError(
            f"{key} takes the value of {variable}, a secret by its name, and a config is saved with the run. Leave it "
            "out: code that needs it reads the environment variable itself."
        )

    for key, value in flatten(OmegaConf.to_container(config, resolve=False)).items():
        for resolver, arguments in _RESOLVER.findall(str(value)):
            variable = arguments.partition(",")[0].strip(" '\"")
            if resolver not in _REFERENCES and _SECRET.search(variable):
                refuse(key, variable)
    secrets = {
        name: text
        for name, text in os.environ.items()
        if len(text) >= SHORTEST_SECRET and (found := _SECRET.search(name)) and found.end() == len(name)
    }
    for key, value in flatten(resolved(config)).items():
        for name, text in secrets.items():
            if text in str(value):  # however it got there
                refuse(key, name)


def show(value: Any) -> str:
    """A value as one writes it in an override."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _put(container: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        container = container[section]
    container[leaf] = value


def lookup(table: Mapping[str, Any], key: str) -> Any:
    """The entry of a table whose keys may hold `*` for one part of a dotted key; None when there is none."""
    if key in table:
        return table[key]
    for pattern, entry in table.items():
        if "*" in pattern and pattern.count(".") == key.count(".") and fnmatchcase(key, pattern):
            return entry
    return None


def _typed(key: str, value: Any, example: Any) -> Any:
    """The value as the type of `example`, the schema's own value; ValueError when it is no such value."""
    kinds = lookup(NULLABLE, key)
    if value is None and (kinds or example is None):
        return None
    if kinds is None:
        if example is None or (isinstance(example, str) and ("${" in example or example == "???")):
            return value  # a user's YAML that says nothing of the type
        kinds = (type(example),)
    if kinds == (int,) and key.startswith("loss."):
        kinds = (int, float)  # `beta: 1` in a YAML says nothing against 0.5
    for kind in kinds:
        fits, converted = _convert(value, kind)
        if fits:
            return converted
    wanted = " or ".join(WORDS.get(kind, kind.__name__) for kind in kinds)
    null = " or null" if lookup(NULLABLE, key) else ""
    raise ValueError(f"{key}={show(value)}: expected {wanted}{null}, such as {_sample(example, kinds[0])}.")


def _sample(example: Any, kind: type) -> str:
    if example is None or example == "???":
        return {int: "100", float: "1.0", str: "name", bool: "true"}.get(kind, "[a,b]")
    return show(example)


def _convert(value: Any, kind: type) -> tuple[bool, Any]:
    """Whether the value is one of that type, and the value in that type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        whole = number and math.isfinite(value) and value == int(value)
        return whole, int(value) if whole else None
    if kind is float:
        if isinstance(value, str):  # "1e-6" in quotes, or without a dot in a YAML that a tool has written
            try:
                return True, float(value)
            except ValueError:
                return False, None
        return number, float(value) if number else None
    if kind is str:
        if number and math.isfinite(value):
            return True, str(value)
        return isinstance(value, str), value
    if kind is list:
        return isinstance(value, list) and all(isinstance(one, str | int | float) for one in value), value
    return isinstance(value, kind), value


def _check_ranges(flat: dict[str, Any], script: str) -> None:
    _check_mode(flat["mode"], script)
    for key, value in flat.items():
        as_loss = re.sub(r"^loss\.losses\.[^.]+\.", "loss.", key)
        allowed = lookup(RANGES, as_loss) or lookup(RANGES, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if allowed and not number and (value is not None or (key.startswith("loss.") and not lookup(NULLABLE, key))):
            raise ValueError(f"{key}={show(value)}: expected a number, and it must be {allowed[1]}.")
        if value is None:
            continue
        options = lookup(CHOICES, as_loss)
        if options and value not in options:
            raise ValueError(f"{key}={value}: must be one of {', '.join(options)}{did_you_mean(str(value), options)}.")
        if allowed and not allowed[0](value):
            raise ValueError(f"{key}={value}: must be {allowed[1]}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}: must be a finite number.")
    longest, prompt = flat["model.max_length"], flat["model.max_prompt_length"]
    if prompt >= longest:
        raise ValueError(
            f"model.max_prompt_length={prompt} leaves no token for a response in model.max_length={longest}: "
            "make the first the smaller."
        )


def _check_mode(mode: str, script: str) -> None:
    if mode in MODES[script]:
        return
    other = next((name for name, modes in MODES.items() if mode in modes), None)
    if other:
        raise ValueError(f"mode={mode} is for {other}: run `python {other} ... mode={mode}`.")
    raise ValueError(f"mode={mode}: must be one of {', '.join(MODES[script])}{did_you_mean(mode, MODES[script])}.")
