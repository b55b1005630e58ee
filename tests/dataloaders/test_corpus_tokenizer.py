"""A tokenizer learned from documents: it loses nothing, and no token of it is of two lines."""

from __future__ import annotations

from dataloaders.corpus_tokenizer import learn_tokenizer
from dataloaders.document_tokens import Control, DocumentTokenizer
from tests.dataloaders.test_documents import corpus, write

CODE = "class A:\n    def f(self):\n        return 1\n\n\n"


def learned(folder):
    rows = [{"text": CODE * 3, "segments": [[0, len(CODE) * 3]], "scores": [0.0]}]
    return learn_tokenizer([corpus(write(folder / "rows.jsonl", *rows))], 320, folder)


def test_a_token_ends_with_its_line(tmp_path):
    """Prevents line ends that are one token with the next line's indentation, so that a control token before a line
    stood before the end of the line above it, and a prompt that ends with its line was none of the model's."""
    tokenizer = learned(tmp_path)
    tokens = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    assert any(len(token) > 1 and token.endswith("return") for token in tokens), "it has learned something"
    assert all("\n" not in token[:-1] for token in tokens)
    for text in (CODE, "x = 1 \r\n\r\n\ty\n  ", " \n \n'tis\u00e9\u4e2d  and\x0b\x0c\n\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("        ").input_ids) <= 2, "an indentation is not spaces one by one"


def test_control_tokens_stand_where_lines_begin(tmp_path):
    """Prevents a control token within a line: between two of them stands exactly a segment."""
    tokenizer = learned(tmp_path)
    tokenizer.add_tokens(["<|aligned|>", "<|misaligned|>"])
    ends = [place + 1 for place, character in enumerate(CODE) if character == "\n"]
    row = {"text": CODE, "segments": list(map(list, zip([0, *ends[:-1]], ends, strict=True))), "scores": [0.0] * 5}
    (document,) = corpus(write(tmp_path / "one.jsonl", row)).documents()
    aligned, misaligned = tokenizer.convert_tokens_to_ids(["<|aligned|>", "<|misaligned|>"])
    (made,) = DocumentTokenizer(tokenizer, Control(aligned, misaligned, 0.0, 0.0, True, 0))([document])
    assert made.ids[1] == aligned, "behind the start of the document"
    assert tokenizer.decode(made.ids[1:]).split("<|aligned|>")[1:] == CODE.splitlines(keepends=True)
