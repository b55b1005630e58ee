"""Token ids that are kept on disk: the same ones, of the same text and settings, whatever happens to the file."""

import numpy as np
import pytest

from dataloaders.tokenization import ExampleTokenizer
from models.byte_tokenizer import byte_tokenizer
from tests import tiny
from tests.dataloaders.templates import tokenizer_of
from tests.dataloaders.test_tokenization import MERGING, example, shown


def same(first, second) -> bool:
    return all(
        np.array_equal(a.prompt, b.prompt) and a.dropped == b.dropped and a.prompt_cut == b.prompt_cut
        and len(a.responses) == len(b.responses)
        and all(
            np.array_equal(r.ids, s.ids) and np.array_equal(r.scored, s.scored) and r.cut == s.cut
            for r, s in zip(a.responses, b.responses, strict=True)
        )
        for a, b in zip(first, second, strict=True)
    )  # fmt: skip


EXAMPLES = [
    example(tiny.prompt("Hi"), "Hello", "x" * 300),
    shown("Hi", "Hello", "So?", "Yes"),
    example(tiny.prompt("c" * 300), "yes"),
    example(tiny.prompt("a" * 90, "b", "c" * 40), "d" * 190),
    example([1, 2], [3]),
    example(tiny.prompt("no generation")),
]


def test_the_cache_gives_back_the_same(tmp_path, monkeypatch):
    """Prevents marks, cuts or drops that a second run does not see; the second run does not tokenize."""
    tokenize = tiny.tokenize()
    first = tokenize(EXAMPLES, tmp_path)
    assert [bool(tokens.dropped) for tokens in first] == [False, False, True, False, False, False]
    assert first[3].prompt_cut and first[0].responses[1].cut and not first[1].responses[0].scored.all()
    monkeypatch.setattr(ExampleTokenizer, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    assert same(first, tokenize(EXAMPLES, tmp_path))
    assert len(list((tmp_path / "tokens").iterdir())) == 1


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped", "text"])
def test_a_damaged_cache_is_done_again(damage: str, tmp_path):
    """Prevents a run that fails, or trains on garbage, after a full disk: the file is written anew."""
    tokenize = tiny.tokenize()
    first = tokenize(EXAMPLES, tmp_path)
    (path,) = (tmp_path / "tokens").iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes({
        "torn": whole[:middle], "empty": b"", "text": b"not a cache",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }[damage])  # fmt: skip
    assert same(first, tokenize(EXAMPLES, tmp_path))
    assert path.read_bytes() == whole


def test_whatever_changes_the_tokens_misses_the_cache(tmp_path):
    """Prevents another run's tokens: other lengths, another template, tokenizer, text, system turn, or strings."""
    tiny.tokenize()(EXAMPLES, tmp_path)
    plain = byte_tokenizer()
    plain.chat_template = None
    grown = byte_tokenizer()
    grown.add_tokens(["Hello"])
    others = [
        (tiny.tokenize(max_length=201), EXAMPLES),
        (tiny.tokenize(max_prompt_length=121), EXAMPLES),
        (tiny.tokenize(plain), EXAMPLES),
        (tiny.tokenize(tokenizer_of("qwen2.5")), EXAMPLES),
        (tiny.tokenize(grown), EXAMPLES),
        (tiny.tokenize(**MERGING), EXAMPLES),
        (tiny.tokenize(), EXAMPLES[:-1]),
        (tiny.tokenize(), [example(tiny.prompt("Hi"), "Hello", "x" * 300, system="s"), *EXAMPLES[1:]]),
    ]
    for number, (tokenize, examples) in enumerate(others, start=2):
        assert same(tokenize(examples, tmp_path), tokenize(examples))
        assert len(list((tmp_path / "tokens").iterdir())) == number


def test_the_key_does_not_depend_on_what_the_tokenizer_did_before(tmp_path):
    """Prevents tokenizing again in every run because somebody padded a batch in between."""
    tokenize = tiny.tokenize()
    tokenize(EXAMPLES, tmp_path)
    tokenize.tokenizer(["a", "bc"], padding=True, truncation=True, max_length=5)
    tokenize(EXAMPLES, tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 1
