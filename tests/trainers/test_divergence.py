"""KL from a reference language model and bits per byte: exact on models that can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dataloaders.corpus import Document
from dataloaders.document_tokens import Control, DocumentTokenizer
from models.byte_tokenizer import byte_tokenizer
from models.generation.hf import HFGenerator
from models.logprobs import ScoredSequence
from models.text_logps import summed_logps
from tests import tiny
from trainers.divergence import Reader, ReferenceSample, bits_per_byte, divergence, shares_tokens

EMPTY = np.zeros(0, dtype=np.int32)
START, END = 2, 2  # the byte tokenizer has no BOS, so its EOS begins a text, as GPT-2's does


def reader(**options: object) -> Reader:
    return Reader(byte_tokenizer(), **{"prefix": EMPTY, "max_length": 64} | options)


def samples_of(model, count: int, length: int, seed: int = 0) -> list[ReferenceSample]:
    """Samples of a model with their log-probabilities."""
    generator = HFGenerator(
        model, stop_ids={END}, pad_id=0, top_p=1.0, max_length=length + 1, max_new_tokens=length, batch_size=500,
        seed=seed,
    )  # fmt: skip
    drawn = generator.generate([np.array([START], dtype=np.int32)] * count)
    sequences = [reader().sequence(one.ids, one.end is not None) for one in drawn]
    logps = summed_logps(model, sequences)
    return [
        ReferenceSample("", tuple(map(int, one.ids)), logp, len(some.response), one.end is not None)
        for one, some, logp in zip(drawn, sequences, logps, strict=True)
    ]


def document(text: str, score: float | None = None, scores: Sequence[float] = (), ends: Sequence[int] = ()) -> Document:
    return Document(0, text, np.array(ends), np.array(scores), score)


def next_token(model, *contexts: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(contexts)).logits[:, -1].double().log_softmax(-1)


def test_the_divergence_of_a_model_from_itself_is_zero():
    """Prevents a bias from padding, from the end of a text or from other batches: PHF's estimator had all of them."""
    model = tiny.tiny_model()
    found = divergence(model, reader(), samples_of(model, 40, 12), same_tokens=True)
    assert found.per_sequence.mean == 0.0 and found.per_sequence.low == found.per_sequence.high == 0.0


def test_the_estimate_is_the_enumerated_divergence():
    """Prevents a wrong direction or sign, and an end that is not counted: all texts of one or two tokens are summed."""
    reference, policy = (sharp(tiny.tiny_model(seed=seed)) for seed in (0, 1))
    first = next_token(reference, [START])[0], next_token(policy, [START])[0]
    exact = float((first[0].exp() * (first[0] - first[1])).sum())
    contexts = [[START, token] for token in range(tiny.VOCABULARY)]
    second = next_token(reference, *contexts), next_token(policy, *contexts)
    inner = (second[0].exp() * (second[0] - second[1])).sum(-1)
    goes_on = first[0].exp().clone()
    goes_on[END] = 0.0  # a text that ended has no second token
    exact += float((goes_on * inner).sum())
    found = divergence(policy, reader(), samples_of(reference, 6000, 2), same_tokens=True)
    assert found.per_sequence.low < exact < found.per_sequence.high
    assert found.per_sequence.high - found.per_sequence.low < 0.2 * exact
    tokens = sum(one.tokens for one in samples_of(reference, 6000, 2))
    assert found.per_token.mean == pytest.approx(found.per_sequence.mean * 6000 / tokens)


def sharp(model):
    """With an end that is likely enough to be seen."""
    with torch.no_grad():
        model.get_output_embeddings().weight[END] += 0.3
    return model


def test_a_texts_value_does_not_depend_on_its_neighbours():
    """Prevents padding that is scored: a short text has the value among long ones that it has alone."""
    model = tiny.tiny_model("gpt2")
    generator = np.random.default_rng(0)
    sequences = [reader().sequence(generator.integers(3, 250, length), ended=True) for length in (1, 30, 4, 0, 17)]
    together = summed_logps(model, sequences)
    alone = [summed_logps(model, [one])[0] for one in sequences]
    assert together == pytest.approx(alone, abs=1e-4)
    parts = [summed_logps(model, sequences, part=part, parts=2) for part in range(2)]
    assert [next(x for x in some if x is not None) for some in zip(*parts, strict=True)] == together
    none = ScoredSequence(np.array([2]), np.array([5, 6]), np.zeros(2, dtype=bool))
    assert summed_logps(model, [none]) == [0.0]


def test_control_tokens_are_left_out():
    """Prevents a divergence that grows with every place where the policy would rather write a control token.

    A policy that differs from the reference only in what it gives to a control token is as near as can be.
    """
    control = 200
    policy = tiny.tiny_model()
    reference = tiny.tiny_model()
    samples = []
    for ids in ([5, 6, 7], [9], [30, 31, 32, 33]):
        sequence = ScoredSequence(np.array([START]), np.array(ids), np.ones(len(ids), dtype=bool))
        (logp,) = summed_logps(reference, [sequence], excluded=[control])
        samples.append(ReferenceSample("x" * len(ids), tuple(ids), logp, len(ids), False))
    found = divergence(policy, reader(control=(control,)), samples, same_tokens=True)
    assert found.per_sequence.mean == pytest.approx(0.0, abs=1e-6)
    assert found.with_control_tokens.mean > 0.01
    expected = next_token(policy, [START])[0]
    one = ScoredSequence(np.array([START]), np.array([9]), np.ones(1, dtype=bool))
    renormalized = expected[9] - torch.log1p(-expected[control].exp())
    assert summed_logps(policy, [one], excluded=[control])[0] == pytest.approx(float(renormalized), abs=1e-5)


def test_a_prefix_is_read_and_not_scored():
    """Prevents the log-probability of the prefix in that of the text."""
    model, prefix = tiny.tiny_model(), np.array([77], dtype=np.int32)
    sample = [ReferenceSample("a", (40,), 0.0, 1, False)] * 2
    found = divergence(model, reader(prefix=prefix), sample, same_tokens=True)
    assert found.per_sequence.mean == pytest.approx(-float(next_token(model, [START, 77])[0, 40]), abs=1e-5)


def test_another_tokenizer_is_compared_on_text():
    """Prevents the ids of one tokenizer that are read as those of another, and bytes that are counted as characters."""
    tokenizer, more = byte_tokenizer(), byte_tokenizer()
    more.add_tokens(["<|good|>"], special_tokens=True)
    assert shares_tokens(tokenizer, more), "more tokens are no other tokenizer"
    assert not shares_tokens(more, tokenizer)
    text = "né <|im_end|>"
    sample = [ReferenceSample(text, (1, 2, 3), -2.0, 3, True), ReferenceSample("b\ufffd", (4,), -1.0, 1, False)]
    found = divergence(tiny.tiny_model(), reader(), sample, same_tokens=False)
    size = len(text.encode()) + len("b\ufffd".encode())
    assert found.per_byte.mean == pytest.approx(found.per_sequence.mean * 2 / size) and found.damaged == 1
    ids = reader().tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode()), "a special token's words are words"
    (logp,) = summed_logps(tiny.tiny_model(), [reader().sequence(ids, ended=True)])
    first = divergence(tiny.tiny_model(), reader(), sample[:1] * 2, same_tokens=False)
    assert first.per_sequence.mean == pytest.approx(-2.0 - logp, abs=1e-5)


def test_a_text_beyond_the_models_length_is_refused():
    """Prevents a probability of half a text."""
    with pytest.raises(ValueError, match=r"longer than model.max_length=64: lower kl.max_new_tokens"):
        reader().sequence(range(3, 90), ended=False)


def test_bits_per_byte_of_a_model_that_knows_nothing():
    """Prevents nats for bits, characters for bytes, and pieces of a long document that are lost or scored twice."""
    model = tiny.tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    texts = ["é" * 100, "abc", "", "\ud800", "x" * 500]
    texts = [document(text, score) for text, score in zip(texts, [0.5, 0.0, 0.0, 0.0, None], strict=True)]
    found = bits_per_byte(model, reader(), texts, threshold=0.1)
    assert found.everything.mean == pytest.approx(math.log2(tiny.VOCABULARY), abs=1e-4)
    assert (found.everything.count, found.left_out) == (3, 2)
    assert found.aligned.count == 1, "a document without a score is not an aligned one"
    without = bits_per_byte(model, reader(control=(7, 8)), texts)
    assert without.everything.mean == pytest.approx(math.log2(tiny.VOCABULARY - 2), abs=1e-4)
    assert without.aligned is None
    with pytest.raises(ValueError, match="no held-out document"):
        bits_per_byte(model, reader(), [document(""), document("\ud800")])


def test_bits_per_byte_by_hand():
    """Prevents a first token without a context, and an end that is scored as if it were text."""
    model = tiny.tiny_model()
    ids = byte_tokenizer()("ab", add_special_tokens=False).input_ids
    logp = next_token(model, [START])[0, ids[0]] + next_token(model, [START, ids[0]])[0, ids[1]]
    found = bits_per_byte(model, reader(), [document("ab")] * 2)
    assert found.everything.mean == pytest.approx(-float(logp) / math.log(2) / 2, abs=1e-5)
    assert found.with_control_tokens is None and found.told == 0


def test_documents_are_read_with_control_tokens_before_their_segments():
    """Prevents a conditional model that is measured as it was never trained, and control tokens that count as text.

    Tokens 7 and 8 are control tokens: by hand, the text's tokens among all others, and all of them among all.
    """
    model, tokenizer, control = tiny.tiny_model(), byte_tokenizer(), (7, 8)
    a, b = tokenizer("ab", add_special_tokens=False).input_ids
    segments = DocumentTokenizer(tokenizer, Control(*control, 0.5, drop=0.0, learned=False, seed=0))
    told = reader(control=control, prefix=np.array([7], dtype=np.int32), documents=segments)
    contexts = [[START], [START, 8], [START, 8, a], [START, 8, a, 7]]
    logps = [next_token(model, context)[0] for context in contexts]
    others = [some.clone().index_fill_(0, torch.tensor(control), -torch.inf).log_softmax(-1) for some in logps]
    made = document("ab", 0.4, scores=[0.7, 0.5], ends=[1, 2])
    found = bits_per_byte(model, told, [made] * 2)
    text = float(others[1][a] + others[3][b])
    assert found.everything.mean == pytest.approx(-text / math.log(2) / 2, abs=1e-5)
    whole = float(logps[0][8] + logps[1][a] + logps[2][7] + logps[3][b])
    assert found.with_control_tokens.mean == pytest.approx(-whole / math.log(2) / 2, abs=1e-5)
    assert found.per_control_token.mean == pytest.approx((text - whole) / math.log(2) / 2, abs=1e-5), (
        "two in a document"
    )
    assert (found.told, found.aligned, found.left_out) == (2, None, 0)
    without_scores = bits_per_byte(model, told, [document("ab")] * 2)
    first = next_token(model, [START, 7])[0].index_fill(0, torch.tensor(control), -torch.inf).log_softmax(-1)
    second = next_token(model, [START, 7, a])[0].index_fill(0, torch.tensor(control), -torch.inf).log_softmax(-1)
    assert without_scores.everything.mean == pytest.approx(-float(first[a] + second[b]) / math.log(2) / 2, abs=1e-5)
    assert without_scores.told == 0 and without_scores.with_control_tokens is without_scores.per_control_token is None
    long = document("ab" * 60, 0.5, scores=[0.7, 0.5] * 60, ends=range(1, 121))
    assert sum(len(piece.scored) - int(piece.scored.sum()) for piece in told.pieces(long)) == 120
    assert all(len(piece.prompt) + len(piece.response) <= 64 for piece in told.pieces(long))
    assert bits_per_byte(model, told, [long, made], threshold=0.4).aligned.count == 1, "at most, not below"
