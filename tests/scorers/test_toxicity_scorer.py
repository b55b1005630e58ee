"""Detoxify's format: a small checkpoint that the test makes, transformers called directly, and files that are none."""

import pytest
import torch
import transformers

from scorers.scorer import EMPTY, Sample
from scorers.toxicity import CHECKPOINTS, ToxicityScorer
from tests.scorers import tiny_detoxify

TEXTS = ["abc def", "g", "hello world this is a longer text", "z y x w v", "hello."]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_detoxify.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scorer(tiny):
    return ToxicityScorer(*tiny[:1], base=tiny[1], batch_size=2, device="cpu")


def direct(tiny, text: str, label: int) -> float:
    """The probability by transformers alone."""
    contents = torch.load(tiny[0], weights_only=True)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig.from_pretrained(tiny[1], num_labels=tiny_detoxify.OUTPUTS)
    )
    model.load_state_dict(contents["state_dict"], strict=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[1])
    with torch.no_grad():
        return float(model.eval()(**tokenizer(text, return_tensors="pt")).logits[0, label].sigmoid())


def test_as_transformers_itself_computes(tiny, scorer):
    """Prevents another label's probability, a softmax in place of Detoxify's sigmoid, and dropout while scoring."""
    scores = scorer.score([Sample("", text) for text in TEXTS])
    assert scores == pytest.approx([direct(tiny, text, 0) for text in TEXTS], abs=1e-6)
    assert max(scores) - min(scores) > 0.05
    insult = ToxicityScorer(tiny[0], label="insult", base=tiny[1], device="cpu")
    assert insult.score([Sample("", "abc def")]) == pytest.approx([direct(tiny, "abc def", 2)], abs=1e-6)
    assert insult.identity != scorer.identity


def test_batches_hold_what_is_of_like_length(scorer, monkeypatch):
    """Prevents that all texts are one batch, as wide as the longest, and scores that the sorting mixes up."""
    seen = []
    forward = scorer._model.forward

    def spy(**inputs):
        seen.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(scorer._model, "forward", spy)
    together = scorer.score_texts(TEXTS)
    assert [shape[0] for shape in seen] == [2, 2, 1]
    assert [shape[1] for shape in seen] == sorted((shape[1] for shape in seen), reverse=True) and seen[-1][1] == 3
    assert together == pytest.approx([scorer.score_texts([text])[0] for text in TEXTS], abs=1e-6)


def test_a_long_text_is_read_to_its_end(scorer, tiny):
    """Prevents that what stands behind the model's window is never seen: the highest of the pieces counts."""
    letters = [*"abcdefghijklmnopqrstuvwxyzabcd"]
    pieces = [" ".join(letters), " ".join(letters[::-1])]  # the window is 32 tokens, two of them [CLS] and [SEP]
    alone = [direct(tiny, piece, 0) for piece in pieces]
    assert abs(alone[0] - alone[1]) > 1e-3, "or the order tells nothing"
    found = scorer.score_texts([" ".join(pieces), " ".join(pieces[::-1])])
    assert found == pytest.approx([max(alone)] * 2, abs=1e-6)


def test_flaws_and_documents(scorer):
    """Prevents a probability of an empty text, which a tokenizer gives without complaint."""
    assert scorer.score([Sample("abc", ""), Sample("", "abc")])[0] is None
    empty, document = scorer.score_documents(["", "Hello there. How are you?"])
    assert empty.flaw == EMPTY and len(document.segments) == 2
    assert document.score == pytest.approx(sum(scorer.score_texts(["Hello there. ", "How are you?"])) / 2, abs=1e-6)


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (print, ("ran",))


def test_checkpoints_that_are_none(tiny, tmp_path, capsys):
    """Prevents that a checkpoint runs code, and errors out of the depth of torch."""
    made = torch.load(tiny[0], weights_only=True)
    bad = {
        "evil": {**made, "more": Evil()},
        "other": {"weights": 1},
        "arch": {
            **made,
            "config": {**made["config"], "arch": {"args": {"model_name": "Foo", "model_type": "x", "num_classes": 3}}},
        },
        "missing": {**made, "state_dict": {k: v for k, v in made["state_dict"].items() if k != "classifier.bias"}},
        "shape": {**made, "state_dict": {**made["state_dict"], "classifier.bias": torch.zeros(7)}},
    }
    said = {
        "evil": "is refused: loading it would execute code",
        "other": "no checkpoint of Detoxify",
        "arch": "Foo is none of",
        "missing": "1 weights",
        "shape": "does not fit",
    }
    for name, contents in bad.items():
        torch.save(contents, tmp_path / name)
        with pytest.raises(ValueError, match=said[name]):
            ToxicityScorer(str(tmp_path / name), base=tiny[1])
    (tmp_path / "text").write_text("hello")
    for path, message in (
        (tmp_path / "text", "plain weights"),
        (tmp_path / "none", "original, unbiased, multilingual"),
    ):
        with pytest.raises(ValueError, match=message):
            ToxicityScorer(str(path), base=tiny[1])
    assert "ran" not in capsys.readouterr().out


def test_wrong_settings_name_what_there_is(tiny, tmp_path):
    """Prevents a KeyError for a label of another model, and a hub's traceback for a missing tokenizer."""
    with pytest.raises(ValueError, match="toxicity, severe_toxicity, insult"):
        ToxicityScorer(tiny[0], label="threat", base=tiny[1])
    with pytest.raises(ValueError, match=r"scorer\.base=FOLDER"):
        ToxicityScorer(tiny[0], base=str(tmp_path))


def test_named_checkpoints_without_internet(monkeypatch):
    """Prevents that a cluster without internet learns nothing but `URLError`."""
    assert set(CHECKPOINTS) == {"original", "unbiased", "multilingual"}

    def refuse(url, **arguments):
        assert arguments["weights_only"] and arguments["check_hash"]
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match="scorer=profanity"):
        ToxicityScorer()
