"""The headers that task=pep8 has functions drawn after."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from scorers.pep8 import PEP8Scorer
from scorers.scorer import Sample

FILE = Path(__file__).parents[2] / "data" / "function_headers.jsonl"


def test_headers_are_headers_in_good_style():
    """Prevents prompts that are no Python, are there twice, or have violations that a model's samples is blamed for."""
    texts = [json.loads(line)["text"] for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == len(set(texts)) == 60
    names = []
    for text in texts:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef) and len(function.body) == 1 and ast.get_docstring(function)
        assert text.endswith('."""\n') and text.count("\n") == 2
        names.append(function.name)
    assert len(set(names)) == 60
    assert PEP8Scorer().score([Sample("", text) for text in texts]) == [0.0] * 60
