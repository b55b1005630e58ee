"""mode=kl: how far a policy is from a reference language model, and bits per byte of held-out documents.

The reference's samples are drawn once and kept in `{cache_dir}/kl`, a JSONL for each reference, settings and seed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from dataloaders.corpus import Document, read_document
from launch import build
from launch.completions import PREFIX, Completions
from launch.generation import banned_of, prefix_of
from launch.pretraining import control_tokens
from models.files import write_whole
from models.loading import locate
from scorers.scorer import HIGHER_IS_WORSE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from trainers.divergence import DivergenceEvaluation, Reader, ReferenceSample

log = logging.getLogger(__name__)

FORMAT = 1
CAVEAT = (
    "the two have different tokenizers and are compared on text: the policy's probability of a text is taken from one "
    "way to cut it, so the divergence is a little too high; compare it per byte"
)
MANY_BITS = 4.0
"""Of a control token, above which it was not learned."""
ENDPOINT_CAVEAT = "the endpoint does not say how likely it was to end, so ends are counted on neither side"


def build_reader(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Reader:
    """How the policy reads: behind its prefix, with the control tokens left out of its vocabulary."""
    from dataloaders.document_tokens import Control, DocumentTokenizer
    from models.plain_text import banned_ids, prefix_ids
    from trainers.divergence import Reader

    prefix, key = (config.kl.prefix, "kl.prefix") if config.kl.prefix is not None else (
        prefix_of(config), "generation.prefix"
    )  # fmt: skip
    without = dict.fromkeys([*banned_of(config), *control_tokens(config)])
    banned = banned_ids(tokenizer, list(without), "generation.banned_tokens")
    documents = None
    if control_tokens(config) and config.loss.threshold is not None:
        ids = tokenizer.convert_tokens_to_ids(control_tokens(config))
        control = Control(*ids, config.loss.threshold, drop=0.0, learned=False, seed=0)
        documents = DocumentTokenizer(tokenizer, control)
    ids = prefix_ids(tokenizer, prefix, key)
    return Reader(tokenizer, ids, tuple(banned), config.model.max_length, documents)


def build_divergence(
    config: DictConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> DivergenceEvaluation:
    """For a training: the reference's samples, drawn now if they are not in the cache."""
    from trainers import distributed
    from trainers.divergence import DivergenceEvaluation

    reader = build_reader(config, tokenizer)
    samples, same = distributed.of_first(lambda: reference_samples(config, tokenizer, device))
    return DivergenceEvaluation(reader, samples, same, config.kl.every)


def reference_samples(
    config: DictConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[list[ReferenceSample], bool]:
    """The samples, and whether their tokens are the policy's own."""
    section = config.kl
    named = str(section.reference)
    identity = reference_identity(config)
    settings = {key: section[key] for key in ("n_samples", "max_new_tokens", "batch_size", "seed")}
    header = {"format": FORMAT, "reference": identity, **settings}
    if named.startswith(PREFIX):
        header["prompt"] = section.prompt
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16]
    file = Path(config.cache_dir).expanduser() / "kl" / f"{digest}.jsonl"
    samples, torn = read_samples(file, header)
    if torn:
        log.warning("%s: %d unreadable lines are passed over and drawn again", file, torn)
    if len(samples) < section.n_samples:
        draw = _draw_from_endpoint if named.startswith(PREFIX) else _draw_locally
        samples = draw(config, file, header, samples, device)
        log.info("%d samples of the reference %s: %s", len(samples), named, file)
    else:
        log.info("%d samples of the reference %s were there: %s", len(samples), named, file)
    if named.startswith(PREFIX):
        return samples, False
    from models.loading import load_tokenizer
    from trainers.divergence import shares_tokens

    return samples, shares_tokens(load_tokenizer(named, cache_dir=config.cache_dir), tokenizer)


def reference_identity(config: DictConfig) -> str:
    """What the reference is, as far as can be told without loading it: its files by size and time, or its name."""
    named = str(config.kl.reference)
    if named.startswith(PREFIX):
        return f"{named} at {config.kl.base_url or os.environ.get('OPENAI_BASE_URL') or 'api.openai.com'}"
    where = locate(named, config.cache_dir)
    if where.kind == "random":
        raise ValueError(
            "kl.reference=random: name a model that has weights, a folder, a .gguf, a policy.pt or a hub id."
        )
    if where.kind == "hub":
        return f"hub {named}"
    path = Path(where.path)
    files = sorted(one for one in (path.iterdir() if path.is_dir() else [path]) if one.is_file())
    facts = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return f"{path.resolve()} {hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


def read_samples(file: Path, header: dict[str, Any]) -> tuple[list[ReferenceSample], int]:
    """The samples of a cache file in their order, and how many lines of it could not be read (a killed process's)."""
    from trainers.divergence import ReferenceSample

    if not file.is_file():
        return [], 0
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    found: list[ReferenceSample] = []
    try:
        if json.loads(lines[0]) != header:
            return [], len(lines)
        for line in lines[1:-1]:
            one = json.loads(line)
            if not (math.isfinite(one["logp"]) and all(0 <= index < 2**31 for index in one["ids"] or ())):
                raise ValueError("no numbers of a sample")
            found.append(ReferenceSample(**one | {"ids": None if one["ids"] is None else tuple(one["ids"])}))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return found, len(lines) - 1 - len(found) - (not lines[-1])  # the header; behind the last line end is none
    return found, int(bool(lines[-1]))


def _write_samples(file: Path, header: dict[str, Any], samples: list[ReferenceSample]) -> None:
    lines = [json.dumps(header), *(json.dumps(asdict(one)) for one in samples)]
    write_whole(file, "\n".join(lines) + "\n")


def _draw_locally(
    config: DictConfig, file: Path, header: dict[str, Any], known: list[ReferenceSample], device: torch.device
) -> list[ReferenceSample]:
    """All of them at once: a batch's random numbers are a function of the seed, so nothing is taken over."""
    from models.generation.hf import HFGenerator
    from models.loading import load_model, load_tokenizer
    from models.plain_text import start_ids, text_after
    from trainers.divergence import Reader, ReferenceSample, summed_logps

    section, named = config.kl, str(config.kl.reference)
    tokenizer = load_tokenizer(named, cache_dir=config.cache_dir)
    model = load_model(named, cache_dir=config.cache_dir).to(device)
    length = section.max_new_tokens + 1
    generator = HFGenerator(
        model, stop_ids={tokenizer.eos_token_id}, pad_id=tokenizer.pad_token_id, temperature=1.0, top_p=1.0,
        max_length=length, max_new_tokens=section.max_new_tokens, batch_size=section.batch_size, seed=section.seed,
    )  # fmt: skip
    start = start_ids(tokenizer)
    completions = generator.generate([start] * section.n_samples, "sampling the reference")
    reader = Reader(tokenizer, np.zeros(0, dtype=np.int32), max_length=length)
    sequences = [reader.sequence(one.ids, one.end is not None) for one in completions]
    logps = summed_logps(model, sequences, description="scoring by the reference")
    empty = np.zeros(0, dtype=np.int32)
    samples = [
        ReferenceSample(
            text_after(tokenizer, empty, one.ids, ()), tuple(int(i) for i in one.ids), logp, len(sequence.response),
            one.end is not None,
        )
        for one, sequence, logp in zip(completions, sequences, logps, strict=True)
    ]  # fmt: skip
    _write_samples(file, header, samples)
    return samples


def _draw_from_endpoint(
    config: DictConfig, file: Path, header: dict[str, Any], known: list[ReferenceSample], device: torch.device
) -> list[ReferenceSample]:
    """Batch after batch, each in the cache before the next is asked for; batches that are there are not paid again."""
    from scorers.progress import progress
    from trainers.divergence import ReferenceSample

    section = config.kl
    endpoint = Completions(str(section.reference), section.base_url, "kl.reference")
    whole = len(known) if len(known) == section.n_samples else len(known) // section.batch_size * section.batch_size
    samples = known[:whole]
    with progress(total=section.n_samples, initial=len(samples), desc="asking the reference", unit="sample") as bar:
        while len(samples) < section.n_samples:
            count = min(section.batch_size, section.n_samples - len(samples))
            texts = endpoint.complete(
                section.prompt, count, max_tokens=section.max_new_tokens, seed=section.seed + len(samples),
                logprobs=True,
            )  # fmt: skip
            samples += [ReferenceSample(one.text, None, one.logp, one.tokens, ended=False) for one in texts]
            _write_samples(file, header, samples)
            bar.update(count)
    endpoint.close()
    return samples


# Held-out documents ------------------------------------------------------------------------------------------------


def read_documents(file: str, limit: int | None, told: bool = False) -> list[Document]:
    """A JSONL (or .jsonl.gz) of documents, with scores where they have what can be read as such.

    Args:
        told: scores say which documents, or segments, are good.

    Raises:
        ValueError: a line is no JSON object with a text, or says that high scores are good where scores tell anything.
    """
    found: list[Document] = []
    for number, line in enumerate(_lines(Path(file).expanduser()), 1):
        if limit is not None and len(found) == limit:
            break
        if not line.strip():
            continue
        where = f"kl.documents={file}, line {number}"
        try:
            row = json.loads(line)
            if not isinstance(row.get("text", ""), str) or not row.keys() & {"text", "texts"}:
                raise TypeError("no text")
            document = read_document(number, where, row, scored=False)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f'{where}: every line must be {{"text": "...", ...}}.') from None
        if told and row.get("direction") not in (None, HIGHER_IS_WORSE):
            raise ValueError(
                f"{where}: its scores are {row['direction']}, and here low ones are good: write -score for each "
                f'score, and "direction": "{HIGHER_IS_WORSE}".'
            )
        if isinstance(document, str):  # why it is nothing to train on; its text can be measured all the same
            document = Document(number, str(row.get("text") or ""), np.zeros(0, dtype=np.int64), np.zeros(0))
        found.append(document)
    if not any(document.text.strip() for document in found):
        raise ValueError(f"kl.documents={file}: there is no document with text in it.")
    return found


def _lines(path: Path) -> Iterator[str]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream
        ):
            yield from stream
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"kl.documents={path} cannot be read to its end as UTF-8 text: {error}.") from None


# mode=kl -------------------------------------------------------------------------------------------------------------


def measure(config: DictConfig, folder: Path, saved: str | None) -> dict[str, Any]:
    """Measures a run's policy, or any model: printed, and kept in the run's `alignment.json`."""
    from launch.generation import label_of, weights_of
    from launch.train import check_vocabulary
    from trainers import distributed
    from trainers.divergence import divergence
    from trainers.generation import write_alignment

    device = build.build_device(config.device)
    distributed.start(device)
    tokenizer = build.build_tokenizer(config, saved)
    reader = build_reader(config, tokenizer)
    documents = None
    if config.kl.documents is not None:
        told = config.kl.aligned_threshold is not None or reader.documents is not None
        documents = read_documents(config.kl.documents, config.kl.n_documents, told)
    drawn = None
    if config.kl.reference is not None:
        drawn = distributed.of_first(lambda: reference_samples(config, tokenizer, device))
    policy = build.build_saved(config, device, saved)
    check_vocabulary(policy, tokenizer)
    found: dict[str, Any] = {}
    if drawn is not None:
        samples, same = drawn
        result = divergence(policy, reader, samples, same)
        found |= result.as_json()
        notes = [] if same else [CAVEAT]
        notes += [ENDPOINT_CAVEAT] if str(config.kl.reference).startswith(PREFIX) else []
        if result.damaged and not same:
            notes.append(f"{result.damaged} of {len(samples)} samples hold U+FFFD, most often a character that was cut")
        found["kl_reference"] = {
            "name": config.kl.reference, "samples": len(samples), "max_new_tokens": config.kl.max_new_tokens,
            "same_tokenizer": same, "ended": sum(one.ended for one in samples), "notes": notes,
        }  # fmt: skip
    if documents is not None:
        found |= _held_out(config, policy, reader, documents)
    if distributed.rank() == 0:
        print(json.dumps(found, indent=1))
        folder.mkdir(parents=True, exist_ok=True)
        weights = weights_of(folder, saved, config.model.load_from or config.model.name_or_path)
        log.info("kept in %s", write_alignment(folder, label_of(config), weights, found))
    return found


def _held_out(config: DictConfig, policy: Any, reader: Reader, documents: list[Document]) -> dict[str, Any]:
    from trainers.divergence import bits_per_byte

    threshold = config.kl.aligned_threshold
    held_out = bits_per_byte(policy, reader, documents, threshold)
    found: dict[str, Any] = {"bits_per_byte": held_out.everything.as_json()}
    if held_out.aligned is not None:
        found["bits_per_byte_aligned"] = held_out.aligned.as_json()
    elif threshold is not None:
        log.warning("no document has a score of at most kl.aligned_threshold=%g", threshold)
    if held_out.with_control_tokens is not None:
        found["bits_per_byte_with_control_tokens"] = held_out.with_control_tokens.as_json()
    if held_out.per_control_token is not None:
        found["bits_per_control_token"] = held_out.per_control_token.as_json()
        if held_out.per_control_token.mean > MANY_BITS:
            log.warning(
                "a control token costs %.1f bits, and about one where it was learned: samples will hardly heed it. New "
                "tokens of a model that is there need many updates, each of which moves an entry by lr at most: train "
                "longer, with a smaller model.batch_size or a higher lr.", held_out.per_control_token.mean,
            )  # fmt: skip
    found["held_out"] = {
        "documents": config.kl.documents, "documents_sha256": _digest(Path(config.kl.documents).expanduser()),
        "aligned_threshold": threshold, "left_out": held_out.left_out,
        "without_score": sum(document.score is None for document in documents),
        "with_control_tokens_before_segments": held_out.told,
    }  # fmt: skip
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
