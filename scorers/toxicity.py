"""Toxicity by the Detoxify classifiers (Hanu and Unitary 2020), read and built here: the probability of a label.

The package detoxify is not needed. Its checkpoints are read without running anything that may be in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorers.scorer import Scorer

if TYPE_CHECKING:
    import torch

_RELEASES = "https://github.com/unitaryai/detoxify/releases/download/"
CHECKPOINTS = {
    "original": f"{_RELEASES}v0.1-alpha/toxic_original-c1212f89.ckpt",
    "unbiased": f"{_RELEASES}v0.3-alpha/toxic_debiased-c7548aa0.ckpt",
    "multilingual": f"{_RELEASES}v0.4-alpha/multilingual_debiased-0b549669.ckpt",
}
"""Where the published checkpoints are; the eight digits begin the file's sha256, which is checked."""

ARCHITECTURES = tuple(f"{name}ForSequenceClassification" for name in ("Bert", "Roberta", "XLMRoberta", "Albert"))
RENAMED = {"toxic": "toxicity", "severe_toxic": "severe_toxicity", "identity_hate": "identity_attack"}
"""Labels of the original model under the names that the others have."""
_RULES = 1  # of this module; in the identity


class ToxicityScorer(Scorer):
    """The probability of a label, by one of Detoxify's models or a checkpoint in its format. Segments are sentences.

    A text that is longer than the model reads at once is read in pieces, and the highest probability counts. Texts are
    computed in batches of like length.

    Args:
        checkpoint: original, unbiased or multilingual, which are downloaded once, or a file: a dict of `state_dict` and
            `config`, with `config["arch"]["args"]` naming `model_name`, `model_type` and `num_classes`, and
            `config["dataset"]["args"]["classes"]` the labels of the first outputs, of which a model may have more.
        label: which of the model's labels is the score.
        base: a folder with the config.json and the tokenizer of the architecture; None: what the checkpoint names as
            model_type, of the hub.
        batch_size: pieces of text in a forward pass.
        device: auto, cpu, cuda or mps.
        max_characters: a longer text is flawed ("too long").

    Raises:
        ValueError: naming what is missing or does not fit.
    """

    name = "toxicity"
    bounds = (0.0, 1.0)

    def __init__(
        self,
        checkpoint: str = "unbiased",
        label: str = "toxicity",
        base: str | None = None,
        batch_size: int = 32,
        device: str = "auto",
        max_characters: int = 1_000_000,
    ):
        import torch
        import transformers

        self.max_characters = max_characters
        self._batch_size = batch_size
        contents, digest = _read(checkpoint)
        arch, labels = _described(contents, checkpoint)
        if label not in labels:
            raise ValueError(f"scorer.label={label}: the labels of {checkpoint} are {', '.join(labels)}.")
        self._label = labels.index(label)
        base = base or arch["model_type"]
        try:
            config = transformers.AutoConfig.from_pretrained(base, num_labels=int(arch["num_classes"]))
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{base}: no config and tokenizer could be read ({str(error).splitlines()[0]}); with both in a local "
                "folder, scorer.base=FOLDER reads that instead."
            ) from error
        model = getattr(transformers, arch["model_name"])(config)
        _load(model, contents["state_dict"], checkpoint)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        self._model = model.to(device).eval()
        # RoBERTa's positions begin behind the padding's.
        offset = 0 if arch["model_name"].startswith(("Bert", "Albert")) else config.pad_token_id + 1
        self._longest = min(self._tokenizer.model_max_length, config.max_position_embeddings - offset)
        self._identity = (
            f"toxicity rules={_RULES} checkpoint={digest[:16]} label={label} transformers={transformers.__version__} "
            f"max_characters={max_characters}"
        )

    @property
    def identity(self) -> str:
        return self._identity

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """The label's probability, of a long text the highest of its pieces."""
        import torch

        if not texts:
            return []
        pieces = self._tokenizer(
            list(texts), truncation=True, max_length=self._longest, return_overflowing_tokens=True
        )  # fmt: skip
        owners, rows = pieces["overflow_to_sample_mapping"], pieces["input_ids"]
        scores = [0.0] * len(texts)
        for batch in self._batches(rows):
            padded = self._tokenizer.pad({"input_ids": [rows[index] for index in batch]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**padded.to(self._model.device)).logits[:, self._label]
            for index, score in zip(batch, logits.float().sigmoid().tolist(), strict=True):
                scores[owners[index]] = max(scores[owners[index]], score)
        return list(scores)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of rows, the longest first, so that little is padded and what does not fit fails at once."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]


def _read(checkpoint: str) -> tuple[dict[str, Any], str]:
    """The checkpoint's contents, and the beginning of its sha256."""
    import torch

    if checkpoint in CHECKPOINTS:
        url = CHECKPOINTS[checkpoint]
        try:
            contents = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"scorer.checkpoint={checkpoint}: {url} could not be had ({error}). Fetch it elsewhere and name the "
                "file, scorer.checkpoint=FILE; without internet there is scorer=profanity."
            ) from error
        return contents, url.rpartition("-")[2].partition(".")[0]
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ValueError(f"scorer.checkpoint={checkpoint}: no such file; named are {', '.join(CHECKPOINTS)}.")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch raises many types
        if type(error).__name__ == "UnpicklingError":  # torch's own words go on to advise loading it unsafely
            raise ValueError(
                f"scorer.checkpoint={checkpoint} is refused: loading it would execute code, or it is no checkpoint."
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"scorer.checkpoint={checkpoint} cannot be read as plain weights: {reason}") from error
    with path.open("rb") as file:
        return contents, hashlib.file_digest(file, "sha256").hexdigest()


def _described(contents: Any, checkpoint: str) -> tuple[Mapping[str, Any], list[str]]:
    """How the checkpoint says that its model is built, and its labels."""
    try:
        arch = contents["config"]["arch"]["args"]
        labels = [RENAMED.get(one, one) for one in contents["config"]["dataset"]["args"]["classes"]]
        known = arch["model_name"] in ARCHITECTURES
        complete = isinstance(arch["model_type"], str) and int(arch["num_classes"]) >= len(labels) > 0
        complete = complete and isinstance(contents["state_dict"], Mapping)
    except (KeyError, TypeError, ValueError):
        known = complete = False
    if not complete:
        raise ValueError(
            f"scorer.checkpoint={checkpoint} is no checkpoint of Detoxify: it needs `state_dict` and `config` with the "
            "arguments of `arch` (model_name, model_type, num_classes) and no more classes in those of `dataset`."
        )
    if not known:
        raise ValueError(f"scorer.checkpoint={checkpoint}: {arch['model_name']} is none of {', '.join(ARCHITECTURES)}.")
    return arch, labels


def _load(model: torch.nn.Module, state: Mapping[str, Any], checkpoint: str) -> None:
    """Weights into a model, every one of them; old checkpoints have a few buffers more, which new models compute."""
    state = {name.removeprefix("model."): value for name, value in state.items()}
    try:
        missing, more = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"scorer.checkpoint={checkpoint} does not fit its config: {str(error).splitlines()[-1].strip()}"
        ) from error
    wrong = [*missing, *(name for name in more if not name.endswith((".position_ids", ".token_type_ids")))]
    if wrong:
        raise ValueError(
            f"scorer.checkpoint={checkpoint} does not fit its config: {len(wrong)} weights, such as {wrong[0]}."
        )
