"""From a checked config to what losses on documents need: corpora, thresholds, control tokens, blocks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from dataloaders.corpus import Corpus
from dataloaders.document_stream import Sharing
from dataloaders.pretraining import FilteredPretrainingDataLoader, PretrainingDataLoader
from dataloaders.resolve import resolve
from scorers.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trainers.loop import Evaluation

log = logging.getLogger(__name__)

LEARNED = "corpus:"
"""Before a number in model.tokenizer_name_or_path: the tokenizer is learned from the documents."""


def reads_documents(config: DictConfig) -> bool:
    """Whether the loss's DataLoader makes blocks of documents."""
    kind = resolve(config.loss.dataloader, "dataloaders")
    return isinstance(kind, type) and issubclass(kind, PretrainingDataLoader)


def build_corpora(config: DictConfig, split: str) -> list[Corpus]:
    """The documents of the chosen data sets.

    Raises:
        ValueError: for a data set that has none.
    """
    corpora = []
    for name, options in config.datasets.items():
        if options["function"] not in ("get_documents", "get_local"):
            raise ValueError(
                f"datasets=[{name}] has no documents, which loss={config.loss.name} is trained on: choose one of "
                "toxicity_pile, pii_pile, pep8_codeparrot, or your own by datasets=[local] datasets.local.path=FILE."
            )
        if options["weight"] != 1:
            raise ValueError(f"datasets.{name}.weight={options['weight']}: documents are not weighted; set it to 1.")
        path = options["path"]
        hub = None if path or "hub" not in options else list(options["hub"])
        limit = options["n_examples"] if split == "train" else None
        corpora.append(
            Corpus(
                name,
                split,
                hub,
                _plain(options.get("revision")),
                _plain(path),
                _plain(options["test_path"]),
                options["test_fraction"],
                limit,
            )
        )
    return corpora


def _plain(path: Any) -> str | list[str] | None:
    return path if path is None or isinstance(path, str) else [str(one) for one in path]


def learned_tokenizer(config: DictConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that `corpus:N` names."""
    from dataloaders.corpus_tokenizer import learn_tokenizer
    from trainers import distributed

    name = config.model.tokenizer_name_or_path
    number = name.removeprefix(LEARNED)
    if not number.isdecimal() or not reads_documents(config):
        raise ValueError(
            f"model.tokenizer_name_or_path={name}: `corpus:4096` learns a tokenizer of so many tokens from the "
            "documents of a loss on documents (mle, conditional, ...); for other losses name a model's."
        )

    def learn() -> PreTrainedTokenizerBase:
        return learn_tokenizer(build_corpora(config, "train"), int(number), config.cache_dir)

    if distributed.rank() == 0:
        learn()
    distributed.barrier()  # the others find it
    return learn()


def control_tokens(config: DictConfig) -> list[str]:
    """The control tokens of the loss, the good one first; none for most losses."""
    loss = config.loss
    return [loss.aligned_prefix, loss.misaligned_prefix] if "aligned_prefix" in loss else []


def settle_threshold(config: DictConfig) -> None:
    """Writes into the config what `loss.quantile` is in these documents, so that a run's saved config says it."""
    from trainers import distributed

    loss = config.loss
    if loss.get("quantile") is None or loss.get("mode") == "soft":
        return
    of_documents = issubclass(resolve(loss.dataloader, "dataloaders"), FilteredPretrainingDataLoader)
    scores: list[np.ndarray] = []
    corpora = build_corpora(config, "train")
    for corpus in corpora:
        documents = corpus.documents(scored=True, count=True)
        for document in progress(documents, desc=f"scores of {corpus.name}", unit="doc", leave=False):
            scores.append(np.array([document.score]) if of_documents else document.scores)
    if not scores:
        raise ValueError(
            f"loss.quantile={loss.quantile} is a share of scores, and no document has any "
            f"({'; '.join(f'{corpus.name}: {corpus.words()}' for corpus in corpora)}): score them with "
            "`python eval.py ++mode=score`, or choose loss=mle."
        )
    joined = np.concatenate(scores)
    loss.threshold = float(np.quantile(joined, loss.quantile, method="lower"))
    say = log.info if distributed.rank() == 0 else log.debug
    say(
        "loss.quantile=%g: loss.threshold=%.6g, by the scores of %d %s (%.1f %% of them are at most that)",
        loss.quantile, loss.threshold, len(joined), "documents" if of_documents else "segments",
        100 * float((joined <= loss.threshold).mean()),
    )  # fmt: skip


def build_document_loader(config: DictConfig, tokenizer: PreTrainedTokenizerBase, split: str) -> PretrainingDataLoader:
    """The loss's DataLoader over the documents of the chosen data sets."""
    from trainers import distributed

    kind: type[PretrainingDataLoader] = resolve(config.loss.dataloader, "dataloaders")
    model, task, loss = config.model, config.task, config.loss
    options: dict[str, Any] = {key: loss[key] for key in kind.settings if key != "quantile"}
    options |= {
        "block_size": model.max_length, "seed": config.seed, "shuffle": config.shuffle,
        "batch_size": model.batch_size * model.gradient_accumulation_steps, "shuffle_buffer": task.shuffle_buffer,
        "sharing": Sharing(distributed.rank(), distributed.processes(), distributed.gather_objects),
    }  # fmt: skip
    if split == "train":
        options |= {"n_blocks": blocks(config), "n_epochs": config.n_epochs, "skip_tokens": task.tokens_already_seen}
    return kind(build_corpora(config, split), tokenizer, **options)


def tell_scorers(loaders: Sequence[PretrainingDataLoader], evaluations: Sequence[Evaluation]) -> None:
    """Warns of scores that may not be comparable: of documents by several scorers, or of samples by another one."""
    found = list(dict.fromkeys(one for loader in loaders for one in loader.scorers))
    if len(found) > 1:
        log.warning("documents were scored by different scorers, whose scores may differ: %s", " | ".join(found))
    for evaluation in evaluations:
        scorer = getattr(evaluation, "scorer", None)
        if found and scorer is not None and scorer.identity not in found:
            log.warning(
                "samples are scored by another scorer than documents were, and scores may differ: %s | %s",
                scorer.identity, " | ".join(found),
            )  # fmt: skip


def blocks(config: DictConfig) -> int | None:
    """After how many blocks training ends, by n_examples and task.n_tokens; None where neither says."""
    task = config.task
    limits = [] if config.n_examples is None else [config.n_examples]
    if task.n_tokens is not None:
        limits.append((task.n_tokens - task.tokens_already_seen) // config.model.max_length)
    return min(limits, default=None)


def add_control_tokens(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer the control tokens of the loss, if it has any.

    Raises:
        ValueError: one of them is there already.
    """
    from models.vocabulary import add_tokens

    if control_tokens(config):
        add_tokens(tokenizer, control_tokens(config), "loss.aligned_prefix, loss.misaligned_prefix")


def embed_control_tokens(config: DictConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a model that starts from other weights embeddings for them."""
    from models.vocabulary import embed_tokens

    names = control_tokens(config)
    if names:
        embed_tokens(model, tokenizer.convert_tokens_to_ids(names), config.loss.embedding_noise, config.seed)
