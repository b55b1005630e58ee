"""How far a policy is from a reference language model, and how well it predicts held-out text.

KL(reference, policy) = E[log p_reference(x) - log p_policy(x)] over the reference's own unconditional samples x, in
nats: with the same tokenizer, the mean over samples of a model on this machine is an unbiased estimate of it. What is
scored are the tokens of the text and, where a sample ended by itself, the token that ended it; padding and control
tokens are not. A policy with control tokens reads that of good text first, and held-out documents with a control token
before each segment, as in training; its probabilities are those given that no control token comes next. In training it
read one before each segment, so that on texts of many segments, code above all, its divergence is too high by what it
misses them.

With another tokenizer the two are compared on text: the policy is given the text in its own tokens, whose probability
is at most that of the text (other ways to cut it add to it), so that the divergence is too high by a little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.logprobs import ScoredSequence
from models.plain_text import start_ids, token_ids
from models.sharding import shards_of
from models.text_logps import summed_logps
from scorers.estimates import Estimate, mean_estimate, ratio_estimate
from trainers import distributed
from trainers.rehearsal import generators_kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dataloaders.corpus import Document
    from dataloaders.document_tokens import DocumentTokenizer
    from trainers.basic import BasicTrainer


@dataclass(frozen=True)
class ReferenceSample:
    """A sample of the reference, without a prompt.

    Attributes:
        ids: its tokens without the one that ended it; None where an endpoint gave text.
        logp: log-probability in nats of its tokens, the one that ended it included where `ended`.
        tokens: how many that are.
        ended: it ended by itself, and `logp` says so. Endpoints leave the end out.
    """

    text: str
    ids: tuple[int, ...] | None
    logp: float
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Reader:
    """How the policy reads texts.

    Attributes:
        prefix: ids (N,) between the start token and the text.
        control: tokens that never come next.
        documents: puts control tokens before the segments of documents whose scores are known; None: nothing does.
        max_length: tokens of a text with what stands before it.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: np.ndarray
    control: tuple[int, ...] = ()
    max_length: int = 1024
    documents: DocumentTokenizer | None = None

    @property
    def head(self) -> np.ndarray:
        """What stands before a text (N,)."""
        return np.concatenate([start_ids(self.tokenizer), self.prefix]).astype(np.int32)

    def sequence(self, ids: Sequence[int] | np.ndarray, ended: bool) -> ScoredSequence:
        """A text of which every token is scored, with its end where it ended.

        Raises:
            ValueError: it is longer than max_length.
        """
        response = np.array([*ids, *([self.tokenizer.eos_token_id] if ended else [])], dtype=np.int32)
        if len(self.head) + len(response) > self.max_length:
            raise ValueError(
                f"a text of {len(response)} tokens and the {len(self.head)} before it are longer than "
                f"model.max_length={self.max_length}: lower kl.max_new_tokens, or raise it."
            )
        return ScoredSequence(self.head, response, np.ones(len(response), dtype=bool))

    def pieces(self, document: Document) -> list[ScoredSequence]:
        """A document without its end, cut into pieces of at most max_length tokens, each read from its own start; what
        is scored is the text."""
        head, room = self.head, self.max_length - len(self.head)
        if self.documents is None or not len(document.scores):
            ids = token_ids(self.tokenizer, document.text)
            is_text = np.ones(len(ids), dtype=bool)
        else:
            head = start_ids(self.tokenizer)
            ids, is_text = self.documents.text_of(document)
        places = range(0, len(ids), room)
        return [ScoredSequence(head, ids[place : place + room], is_text[place : place + room]) for place in places]


@dataclass(frozen=True)
class Divergence:
    """KL(reference, policy) in nats.

    Attributes:
        per_token: by the reference's tokens.
        per_byte: of the samples' UTF-8; the one to compare over tokenizers.
        with_control_tokens: per sequence, with the probabilities that the policy gives control tokens lost to the
            text; None without such tokens.
        same_tokens: both have one tokenizer, and the estimate is exact in the mean.
        damaged: samples whose text has U+FFFD in it: a character that was cut, most often.
    """

    per_sequence: Estimate
    per_token: Estimate
    per_byte: Estimate | None
    with_control_tokens: Estimate | None
    same_tokens: bool
    damaged: int

    def record(self) -> dict[str, float]:
        """Its numbers as they are logged; the first has the name of Pretraining with Human Preferences."""
        found: dict[str, float] = {}
        for name, estimate in (
            ("KL/KL(reference, model)", self.per_sequence),
            ("KL/per_token", self.per_token),
            ("KL/per_byte", self.per_byte),
            ("KL/with_control_tokens", self.with_control_tokens),
        ):
            if estimate is not None:
                found[name] = estimate.mean
                if estimate.low is not None and estimate.high is not None:
                    found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return found

    def as_json(self) -> dict[str, Any]:
        """For alignment.json."""
        names = ("per_sequence", "per_token", "per_byte", "with_control_tokens")
        estimates = {name: getattr(self, name) for name in names}
        found = {f"kl_{name}": one.as_json() for name, one in estimates.items() if one is not None}
        return {"kl": found.pop("kl_per_sequence"), **found}


def divergence(
    policy: PreTrainedModel, reader: Reader, samples: Sequence[ReferenceSample], same_tokens: bool
) -> Divergence:
    """Measures a policy on the reference's samples; all processes call it and each computes its share.

    Args:
        same_tokens: the samples' ids are the policy's own; else their texts are tokenized.
    """
    sequences = [
        reader.sequence(one.ids if same_tokens and one.ids is not None else token_ids(reader.tokenizer, one.text),
                        one.ended)
        for one in samples
    ]  # fmt: skip
    logps = _of_all_processes(policy, sequences, reader.control)
    gaps = np.array([one.logp for one in samples]) - logps
    lengths = [len(one.text.encode("utf-8", "replace")) for one in samples]
    return Divergence(
        mean_estimate(gaps),
        ratio_estimate(gaps, [one.tokens for one in samples]),
        ratio_estimate(gaps, lengths) if sum(lengths) else None,
        mean_estimate(np.array([one.logp for one in samples]) - _of_all_processes(policy, sequences, ()))
        if reader.control
        else None,
        same_tokens,
        sum("\ufffd" in one.text for one in samples),
    )


def _of_all_processes(
    model: PreTrainedModel, sequences: Sequence[ScoredSequence], control: Sequence[int]
) -> np.ndarray:
    # A sharded model goes forward on all processes together: each computes everything.
    part, parts = (0, 1) if shards_of(model) is not None else (distributed.rank(), distributed.processes())
    own = summed_logps(model, sequences, excluded=control, part=part, parts=parts)
    everybody = distributed.gather_objects(own) if parts > 1 else [own]
    return np.array([next(one for one in some if one is not None) for some in zip(*everybody, strict=True)])


def shares_tokens(reference: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase) -> bool:
    """Whether the policy's tokenizer cuts text as the reference's does, into the same ids; it may have more tokens."""
    own, others = policy.get_vocab(), reference.get_vocab()
    if any(own.get(token) != number for token, number in others.items()):
        return False
    probe = 'def f(x):\n    return x  # naïve 12,345 — the end.\n\n\tIt\'s  "so"'
    return (
        reference.eos_token_id == policy.eos_token_id
        and token_ids(reference, probe).tolist() == token_ids(policy, probe).tolist()
    )


# Held-out text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """Bits per byte of held-out documents.

    Attributes:
        aligned: of the documents whose score is at most the threshold; None without scores, or without such ones.
        with_control_tokens: with the bits of the control tokens before segments as well: at least what the
            text takes without being told any; None where nothing has such tokens before its segments.
        per_control_token: what is more in that, in bits for each of these tokens: about one where they were learned;
            None likewise.
        left_out: documents that are empty or hold half a surrogate pair, which no tokenizer reads.
        told: documents that were read with control tokens before their segments.
    """

    everything: Estimate
    aligned: Estimate | None
    with_control_tokens: Estimate | None
    per_control_token: Estimate | None
    left_out: int
    told: int


def bits_per_byte(
    model: PreTrainedModel, reader: Reader, documents: Sequence[Document], threshold: float | None = None
) -> HeldOut:
    """The bits that a model needs for a byte of documents, with the interval of a bootstrap over documents.

    All processes call it and each computes its share.

    Args:
        documents: whose `score` is None where it is not known: such a document is in `everything` only.
        threshold: at most that score is aligned.

    Raises:
        ValueError: no document is left.
    """
    kept = [document for document in documents if document.text and _is_readable(document.text)]
    if not kept:
        raise ValueError("there is no held-out document with text in it.")
    pieces = [reader.pieces(document) for document in kept]
    owners = [number for number, some in enumerate(pieces) for _ in some]
    flat = [piece for some in pieces for piece in some]
    sizes = np.array([len(document.text.encode()) for document in kept], dtype=np.float64)

    def bits(sequences: Sequence[ScoredSequence], control: Sequence[int]) -> np.ndarray:
        logps = _of_all_processes(model, sequences, control)
        return np.bincount(owners, weights=-logps / math.log(2), minlength=len(kept))

    of_text = bits(flat, reader.control)
    told = sum(not all(piece.scored.all() for piece in some) for some in pieces)
    whole = [piece._replace(scored=np.ones_like(piece.scored)) for piece in flat]
    tokens = np.bincount(owners, weights=[(~piece.scored).sum() for piece in flat], minlength=len(kept))
    of_all = bits(whole, ()) if told else None
    good = [
        number
        for number, document in enumerate(kept)
        if threshold is not None and document.score is not None and document.score <= threshold
    ]
    return HeldOut(
        ratio_estimate(of_text, sizes),
        ratio_estimate(of_text[good], sizes[good]) if good else None,
        None if of_all is None else ratio_estimate(of_all, sizes),
        None if of_all is None else ratio_estimate(of_all - of_text, tokens),
        len(documents) - len(kept),
        told,
    )


def _is_readable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# While training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DivergenceEvaluation:
    """Measures the policy on samples of a reference that were drawn before.

    Attributes:
        every: training examples between two; it is measured at the end too.
    """

    reader: Reader
    samples: Sequence[ReferenceSample]
    same_tokens: bool
    every: int

    def due(self, before: int, now: int, last: bool) -> bool:
        """Whether it is due once so many examples were seen, and was not yet at `before`."""
        return last or now // self.every > before // self.every

    def run(self, trainer: BasicTrainer, last: bool) -> None:
        """Measures and logs; all processes call it."""
        start = time.perf_counter()
        with generators_kept(trainer.policy.device), trainer.computer.in_its_precision():
            found = divergence(trainer.policy, self.reader, self.samples, self.same_tokens)
        if trainer.metrics_log is not None:
            seconds = {"kl_seconds": time.perf_counter() - start}
            record = found.record() | trainer.counters() | seconds
            trainer.metrics_log.write(record, trainer.examples, "kl")
