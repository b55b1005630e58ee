"""The corpus of the pretraining benchmark: definitions as they stand in files, each once, split by file."""

from __future__ import annotations

from benchmarks import phf_corpus

CODE = """\
# A licence.
import os

@cache
@other(1)
def first(x):
  return x


class Second:
\tx = 1
\ty = 2

    # of nobody


def short(): pass
"""


def test_definitions_stand_as_in_their_file():
    """Prevents a lost decorator, indentation that was changed, and what stands between definitions."""
    first, second = phf_corpus.definitions(CODE)
    assert first == "@cache\n@other(1)\ndef first(x):\n  return x\n"
    assert second == "class Second:\n\tx = 1\n\ty = 2\n"
    fed = "x = 1\n\f\ndef f(x):\n    y = x\n    return y\n"
    assert phf_corpus.definitions(fed) == ["def f(x):\n    y = x\n    return y\n"], "a form feed ends no line"
    assert phf_corpus.definitions("def f(:\n") == [] and phf_corpus.definitions("x = 1\0") == []
    assert phf_corpus.definitions("def f(x):\n    y = x\n" + "    y += 1\n" * 600) == [], "too long"


def test_each_definition_is_there_once(tmp_path, monkeypatch):
    """Prevents copies of a text among those trained on and those held out, and tests and packages of others in it."""
    library, packages = tmp_path / "python", tmp_path / "packages"
    for path in (library / "one.py", library / "test" / "two.py", packages / "jax" / "test" / "three.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE if path.parent == library else f"{CODE}\n\ndef of_{path.stem}(x):\n  y = x\n  return y\n")
    monkeypatch.setattr(phf_corpus.sysconfig, "get_path", lambda name: str(library))
    monkeypatch.setattr(phf_corpus, "FOLDERS", ("jax",))
    code = phf_corpus.write(tmp_path)
    found = sorted(str(file.relative_to(code)) for file in code.rglob("*.py") if file.is_file())
    assert found == ["jax/test/three.py/0002.py", "python/one.py/0000.py", "python/one.py/0001.py"]
    assert phf_corpus.file_of(found[1]) == phf_corpus.file_of(found[2]) == "python/one"
    assert phf_corpus.file_of("notes.py") == "notes.py"
    (library / "one.py").unlink()
    assert phf_corpus.write(tmp_path) == code and len(list(code.rglob("0*.py"))) == 3, "what is there is not made again"
