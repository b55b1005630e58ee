"""Documents as tokens and blocks: which score a token has, and where control tokens stand."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from dataloaders import pretraining
from dataloaders.document_stream import DocumentStream, Sharing
from dataloaders.document_tokens import Control, DocumentTokenizer
from dataloaders.pretraining import (
    ConditionalPretrainingDataLoader,
    FilteredPretrainingDataLoader,
    PretrainingDataLoader,
    ScoredPretrainingDataLoader,
    UnlikelihoodDataLoader,
)
from models.byte_tokenizer import byte_tokenizer
from tests import documents
from tests.dataloaders.test_corpus import LOADERS, corpus, only, write


def test_a_token_has_the_score_of_its_last_character(tmp_path):
    """Prevents the original's tokenization by segments, in which the space between two sentences is a token alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"
    merges = [("A", "b"), (space, "C"), (f"{space}C", "d")]
    tokens = ["<|end|>", *alphabet, "Ab", f"{space}C", f"{space}Cd"]
    model = models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    document = only(tmp_path, {"text": "Ab. Cd", "segments": [[0, 4], [4, 6]], "scores": [0.0, 1.0]})
    (made,) = DocumentTokenizer(tokenizer)([document])
    assert tokenizer.convert_ids_to_tokens(made.ids) == ["<|end|>", "Ab", ".", f"{space}Cd"]
    assert made.scores.tolist() == [0, 0, 0, 1]
    (made,) = DocumentTokenizer(tokenizer, Control(7, 8, 0.5, 0.0, False, seed=1))([document])
    assert made.ids[[0, 1, 4]].tolist() == [0, 7, 8]
    assert tokenizer.decode(np.delete(made.ids, [0, 1, 4])) == document.text
    assert made.scores.tolist() == [0, 0, 0, 0, 1, 1]
    assert made.learned.tolist() == [True, False, True, True, False, True]


def test_a_score_at_the_threshold_is_good(tmp_path):
    """Prevents a corpus whose best score is its threshold (0, say) and which has no aligned segment."""
    row = {"text": "abc", "segments": [[0, 1], [1, 2], [2, 3]], "scores": [0.5, 0.25, 0.75]}
    (made,) = DocumentTokenizer(byte_tokenizer(), Control(0, 2, 0.5, 0.0, True, seed=1))([only(tmp_path, row)])
    assert made.ids[1::2].tolist() == [0, 0, 2]


def test_each_token_of_a_block_has_the_score_of_its_segment(tmp_path):
    """Prevents scores that stand one token beside: the first token is given, and all after it have their own."""
    rows = [
        {"text": text, "segments": [[0, 1], [1, 2]], "scores": [low, low + 0.25]}
        for text, low in (("ab", 0.0), ("cd", 0.5))
    ]
    path = write(tmp_path / "rows.jsonl", *rows)
    loader = ScoredPretrainingDataLoader([corpus(path)], byte_tokenizer(), block_size=6, batch_size=1, n_blocks=1)
    ((block,),) = loader.after(0)
    end, *text = block.responses["target"].ids.tolist()
    assert loader.tokenizer.decode(text).replace(loader.tokenizer.decode(end), "|") == "ab|cd"
    assert block.token_scores.tolist() == [0.0, 0.25, 0.5, 0.5, 0.75]


def test_control_tokens_are_dropped_by_seed_epoch_and_document(tmp_path):
    """Prevents control tokens that depend on who asks: a share is dropped, others in each epoch, the same ones anew."""
    row = {"text": "x\n" * 400, "segments": [[2 * n, 2 * n + 2] for n in range(400)], "scores": [0.0, 1.0] * 200}
    document = only(tmp_path, row)

    def dropped(epoch: int, seed: int = 1) -> set[int]:
        control = Control(0, 2, 0.5, 0.25, True, seed)
        ids = DocumentTokenizer(byte_tokenizer(), control)([document], epoch)[0].ids
        after = np.flatnonzero(np.isin(ids[1:], [0, 2]))
        return set(range(400)) - {int(place - number) // 2 for number, place in enumerate(after)}

    assert 70 < len(dropped(0)) < 130
    assert dropped(0) == dropped(0)
    assert len({frozenset(one) for one in (dropped(0), dropped(1), dropped(0, seed=2))}) == 3


def test_the_text_of_a_special_token_is_text(tmp_path):
    """Prevents a document that forges its end, or a control token, by writing it out."""
    document = only(tmp_path, {"text": "a<|im_end|>b<|endoftext|>"})
    tokenizer = byte_tokenizer()
    (made,) = DocumentTokenizer(tokenizer)([document])
    assert not np.isin(made.ids[1:], tokenizer.all_special_ids).any()
    assert tokenizer.decode(made.ids[1:]) == document.text


def blocks(loader: PretrainingDataLoader, steps: int = 0) -> list[list[int]]:
    return [row.responses["target"].ids.tolist() for rows in loader.after(steps) for row in rows]


@pytest.mark.parametrize("kind", LOADERS)
def test_blocks_hold_the_documents_end_to_end(kind):
    """Prevents tokens that are lost, doubled or cut out between documents, blocks, chunks and passes."""
    loader = documents.loader(kind, shuffle=False, n_blocks=60)
    stream = list(itertools.chain(*blocks(loader)))
    tokenize = DocumentTokenizer(byte_tokenizer(), loader.control())
    wanted: list[int] = []
    epoch = 0
    while len(wanted) < len(stream):
        kept = [document for document in documents.corpus().documents() if loader.keeps(document)]
        for tokens in tokenize(kept, epoch):
            wanted += tokens.ids.tolist()
        epoch += 1
    assert stream == wanted[: len(stream)] and epoch > 1
    assert len(stream) == 60 * 48


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stream_is_taken_up(kind):
    """Prevents another order after a resume, from a state or from nothing, at any step."""
    whole_loader = documents.loader(kind)
    whole = blocks(whole_loader)
    assert whole != blocks(documents.loader(kind, seed=1)) and len({str(block) for block in whole}) > 15
    for steps in range(7):
        loader = documents.loader(kind)
        it = loader.after(0)
        for _ in range(steps):
            next(it)
        state = loader.state(steps)
        taken = documents.loader(kind)
        taken.take_up(state)
        assert blocks(taken, steps) == whole[4 * steps :]
        assert blocks(documents.loader(kind), steps) == whole[4 * steps :]
        assert taken.account == whole_loader.account


def test_processes_tokenize_together():
    """Prevents streams that differ between processes: each tokenizes a part, and all have the whole."""
    alone = blocks(documents.loader(ConditionalPretrainingDataLoader))
    parts: dict[int, list] = {}

    def gather_as(rank: int):
        def gather(own):
            parts[rank] = own
            return [own if one == rank else parts[one] for one in range(2)]

        return gather

    tokenize = DocumentTokenizer(byte_tokenizer(), documents.loader(ConditionalPretrainingDataLoader).control())
    kept = list(documents.corpus().documents())
    parts[1] = tokenize(kept[1::2], 0)
    loader = documents.loader(ConditionalPretrainingDataLoader, n_blocks=12, sharing=Sharing(0, 2, gather_as(0)))
    first_pass = min(len(alone), sum(len(one.ids) for one in tokenize(kept, 0)) // 48 // 6 * 6)
    assert blocks(loader)[:12] == alone[: min(12, first_pass)]


def test_filtering_and_passes_are_said(tmp_path):
    """Prevents epochs over filtered data that nobody hears of."""
    loader = documents.loader(FilteredPretrainingDataLoader, n_blocks=120)
    blocks(loader)
    account = loader.account["made"]
    kept = [one for one in documents.corpus().documents() if one.score <= 0.4]
    assert account["used"] == len(kept) < account["rows"]
    assert account["dropped"] == {"score above the threshold": account["rows"] - len(kept)}
    unique = sum(len(tokens.ids) for tokens in DocumentTokenizer(byte_tokenizer())(kept))
    assert f"{120 * 48 / unique:.2f} passes over the {unique:,}" in loader.passes()
    assert account["passes"] == round(120 * 48 / unique, 4) > 1 and account["examples"] == 120
    assert "passes" not in documents.corpus(split="test").account()


def test_an_epoch_is_counted():
    """Prevents a length that is a guess: without n_blocks all documents are tokenized once, and counted once."""
    loader = documents.loader(PretrainingDataLoader, n_blocks=None, n_epochs=2)
    tokens = sum(len(one.ids) for one in DocumentTokenizer(byte_tokenizer())(list(documents.corpus().documents())))
    assert sum(loader.sizes()) == tokens * 2 // 48 // 4 * 4
    blocks(loader)
    assert loader.account["made"]["rows"] == len(list(documents.corpus().documents()))


def test_what_another_run_has_seen_is_passed_over():
    """Prevents a finetuning that begins with the documents of the pretraining before it; the next pass has them."""
    documents_ = list(documents.corpus().documents())
    tokens = DocumentTokenizer(byte_tokenizer())(documents_)
    seen = len(tokens[0].ids) + len(tokens[1].ids) // 2
    loader = documents.loader(PretrainingDataLoader, skip_tokens=seen, shuffle=False, n_blocks=120)
    stream = list(itertools.chain(*blocks(loader)))
    rest = list(itertools.chain(*(one.ids.tolist() for one in tokens[2:])))
    assert stream[: len(rest) + 40] == rest + tokens[0].ids.tolist()[:40]
    whole = sum(len(one.ids) for one in tokens)
    assert f"{120 * 48 / whole:.2f} passes over the {whole:,}" in loader.passes()
    end = sum(len(one.ids) for one in tokens)
    first = blocks(documents.loader(PretrainingDataLoader, skip_tokens=end, shuffle=False))[0]
    assert first[:40] == tokens[0].ids.tolist()[:40]
    with pytest.raises(ValueError, match=r"task.tokens_already_seen=1,000,000, and the documents have"):
        documents.loader(PretrainingDataLoader, skip_tokens=10**6).begin()


def left(count: int) -> tuple[int, int]:
    """How many tokens the last so many documents have, and how many those before them."""
    lengths = [len(one.ids) for one in DocumentTokenizer(byte_tokenizer())(list(documents.corpus().documents()))]
    return sum(lengths[-count:]), sum(lengths[:-count])


def test_documents_that_were_passed_over_and_seen_again_are_said():
    """Prevents `less than one pass` of a finetuning that has come to what the run before it has seen."""
    new, seen = left(3)
    loader = documents.loader(PretrainingDataLoader, skip_tokens=seen)
    assert loader.passes().startswith("1,152 tokens: less than one pass over the documents (")
    blocks(loader)
    said = (
        f"1,152 tokens: {new} of the documents behind those that task.tokens_already_seen passed over, and then "
        f"{1152 - new} from the first document on, which were seen before ("
    )
    assert loader.passes().startswith(said) and loader.account["made"]["passes"] is None
    resumed = documents.loader(PretrainingDataLoader, skip_tokens=seen)
    resumed.take_up(loader.state(6))
    assert resumed.passes() == loader.passes()
    for count in (2, 3):
        new, seen = left(count)
        loader = documents.loader(PretrainingDataLoader, skip_tokens=seen, n_blocks=4)
        blocks(loader)
        said = "192 tokens: less than one pass" if new >= 192 else f"192 tokens: {new} of the documents behind"
        assert loader.passes().startswith(said), "a chunk of 288 tokens was read, and 192 of them were seen"


def test_a_resume_passes_over_nothing(monkeypatch):
    """Prevents hours of tokenizing in front of a resume that knows its place."""
    seen = left(20)[1]
    whole = documents.loader(PretrainingDataLoader, skip_tokens=seen)
    expected = blocks(whole)
    monkeypatch.setattr(DocumentStream, "after", None)
    resumed = documents.loader(PretrainingDataLoader, skip_tokens=seen)
    resumed.take_up(whole.state(5))
    assert blocks(resumed, 5) == expected[20:]


@pytest.mark.parametrize(("kind", "options", "message"), [
    (FilteredPretrainingDataLoader, {"threshold": 1.5}, r"threshold=1.5 leaves all of the first \d+ documents on one"),
    (ConditionalPretrainingDataLoader, {"threshold": -1.0}, "scores lie between 0 and 1"),
    (UnlikelihoodDataLoader, {"threshold": 1.0}, "leaves all of the first"),
    (PretrainingDataLoader, {"batch_size": 30}, "24 blocks of model.max_length=48 tokens are fewer than one step"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_documents(kind, options: dict, message: str):
    """Prevents a training that tells nothing apart, or makes no step."""
    with pytest.raises(ValueError, match=message):
        documents.loader(kind, **options)


@pytest.mark.parametrize("looked_at", [1000, 5])
def test_soft_scores_are_shares(tmp_path, monkeypatch, looked_at: int):
    """Prevents a negative weight: in soft mode every score is between 0 and 1, those of later documents too."""
    path = write(tmp_path / "rows.jsonl", *[{"text": f"doc {n}", "scores": [n / 10]} for n in range(20)])
    message = r"loss.mode=soft takes scores between 0 and 1, and document 10 has one of 1.1"
    monkeypatch.setattr(pretraining, "LOOKED_AT", looked_at)
    if looked_at == 1000:
        with pytest.raises(ValueError, match=message):
            documents.loader(UnlikelihoodDataLoader, path=path, mode="soft", threshold=None)
    else:
        loader = documents.loader(UnlikelihoodDataLoader, path=path, mode="soft", threshold=None)
        with pytest.raises(ValueError, match=message):
            blocks(loader)


def test_filtering_that_leaves_nothing_to_evaluate_on_says_so(tmp_path):
    """Prevents a message about training where the test documents are what is all above the threshold."""
    path = write(tmp_path / "rows.jsonl", *[{"text": f"doc {n}", "scores": [0.9]} for n in range(20)])
    test = documents.corpus(path, "test", test_fraction=0.5)
    loader = FilteredPretrainingDataLoader([test], byte_tokenizer(), block_size=48, threshold=0.4)
    with pytest.raises(ValueError, match=r"no test document is left: made: \d+ documents read, 0 used"):
        loader.fixed_rows(None)


def test_documents_without_scores_are_refused(tmp_path):
    """Prevents a run on nothing: the loss needs scores and no document has any."""
    path = write(tmp_path / "rows.jsonl", *[{"text": f"doc {n}"} for n in range(20)])
    with pytest.raises(ValueError, match=r"no train document can be used .* no scores"):
        documents.loader(ScoredPretrainingDataLoader, path=path)


def test_how_many_documents_are_good_is_said(caplog):
    """Prevents a threshold of a recipe that nobody sees, and which calls nearly all of this corpus good."""
    caplog.set_level("INFO")
    for kind, words in (
        (FilteredPretrainingDataLoader, r"threshold=0.4: [\d.]+ % of the first 3\d documents have at most that"),
        (ConditionalPretrainingDataLoader, r"threshold=0.5: [\d.]+ % of the first \d+ segments have"),
    ):
        caplog.clear()
        loader = documents.loader(kind)
        share = float(re.search(words, caplog.text).group().split()[1])
        scores = [one.score if "documents" in words else one.scores for one in loader.corpora[0].documents(scored=True)]
        assert share == round(100 * np.mean(np.hstack(scores) <= loader.threshold), 1)
        assert 0 < share < 100
