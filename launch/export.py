"""mode=export: a run as a Hugging Face folder that transformers, vLLM and lm-eval load."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dataloaders.chat_format import ChatFormat
from launch import build
from launch.evaluate import stop_ids
from models.checkpoints import write_folder

log = logging.getLogger(__name__)


def export(config: DictConfig, folder: Path, saved: str | None) -> Path:
    """Writes safetensors, tokenizer, generation settings and a model card; uploads them when `push_to` says where."""
    import torch

    target = Path(config.export_dir) if config.export_dir else folder / "export"
    if target.exists() and not is_export(target):
        raise ValueError(
            f"export_dir={target} is there already and is no export, so nothing is written there: name a new folder."
        )
    tokenizer = build.build_tokenizer(config, saved)
    example_tokenizer = build.build_example_tokenizer(config, tokenizer)
    model = build.build_saved(config, torch.device("cpu"), saved)
    if not tokenizer.chat_template:
        tokenizer.chat_template = template_of(example_tokenizer.format, tokenizer.bos_token)
    settings = model.generation_config
    settings.eos_token_id = sorted(stop_ids(model, example_tokenizer))
    settings.pad_token_id = tokenizer.pad_token_id
    settings.do_sample = config.temperature > 0
    if settings.do_sample:
        settings.temperature, settings.top_p = float(config.temperature), float(config.top_p)

    def fill(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        settings.save_pretrained(temporary)
        (temporary / "README.md").write_text(model_card(config, folder), encoding="utf-8")

    write_folder(target, fill)
    log.info("exported to %s", target)
    if config.push_to:
        push(target, config.push_to)
    return target


def push(folder: Path, name: str) -> None:
    """Uploads a folder to the hub as ORG/NAME, with the token that `hf auth login` or HF_TOKEN gave."""
    if name.count("/") != 1:
        raise ValueError(f"push_to={name} must be ORG/NAME.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True, private=True)
        api.upload_folder(repo_id=name, folder_path=str(folder))
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"could not upload to {name}: {first}. The export is in {folder}; is HF_TOKEN set?") from error
    log.info("uploaded to %s (private)", name)


def template_of(format: ChatFormat, bos_token: str | None) -> str:
    """A chat template that joins turns with the four strings that the model was trained with."""
    preamble = json.dumps(format.preamble)
    if bos_token and format.preamble == bos_token:
        preamble = "bos_token"
    user = f"{json.dumps(format.human_prefix)} + message['content'] + {json.dumps(format.human_suffix)}"
    ending = json.dumps(format.assistant_suffix)
    assistant = f"{json.dumps(format.assistant_prefix)} + message['content'] + {ending}"
    return (
        f"{{{{ {preamble} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'assistant' %}}{{{{ {assistant} }}}}"
        f"{{% else %}}{{{{ {user} }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {json.dumps(format.assistant_prefix)} }}}}{{% endif %}}"
    )


def model_card(config: DictConfig, folder: Path) -> str:
    """The README.md of an export: data, loss, settings and results, from the run's own files."""
    results = _read_json(folder / "LATEST" / "metrics.json")
    account = _read_json(folder / "data.json")
    loss = OmegaConf.to_container(config.loss, resolve=True)
    rows = [f"| {name} | {value:.4f} |" for name, value in sorted(results.items()) if isinstance(value, float)]
    data = [
        f"| {name} | {split} | {counts['rows']:,} | {counts['used']:,} |"
        for name, splits in account.items()
        for split, counts in splits.items()
    ]
    settings = ("lr", "optimizer", "scheduler", "n_epochs", "n_examples", "seed")
    return "\n".join(
        [
            "---", f"base_model: {json.dumps(str(config.model.name_or_path))}", "library_name: transformers",
            f"tags: [aureole, {loss['name']}]", "---", "", f"# {config.exp_name}", "",
            f"{config.model.name} trained with the loss `{loss['name']}` by Aureole.", "", "## Data", "",
            "| data set | split | rows | used |", "|---|---|---|---|", *data, "", "## Loss and settings", "", "```yaml",
            OmegaConf.to_yaml(OmegaConf.create({"loss": loss, **{key: config[key] for key in settings}})).strip(),
            f"batch: {config.model.batch_size * config.model.gradient_accumulation_steps}", "```", "",
            "## Results on the held-out examples", "", "| metric | value |", "|---|---|", *rows, "",
        ]
    )  # fmt: skip


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_export(folder: Path) -> bool:
    """Whether a folder is empty or an earlier export with nothing else in it, so that it may be replaced."""
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    card = folder / "README.md"
    ours = card.is_file() and "tags: [aureole" in card.read_text(encoding="utf-8", errors="replace")[:2000]
    endings = {Path(name).suffix for name in names if (folder / name).is_file()}
    return not names or (ours and endings <= {".json", ".safetensors", ".jinja", ".txt", ".model", ".md"})
