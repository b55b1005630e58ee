"""Functions and classes of Python files in many styles, as a corpus of which a small model learns within minutes.

Of whole files it would learn first how files begin: licences and imports, which have no style to speak of. The packages
are those of pinned versions, so that the corpus differs by Python's own library alone; nothing of them is run.
"""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "flax==0.12.8", "optax==0.2.8", "dm-haiku==0.0.17", "tensor2tensor==1.15.7", "apache-beam==2.77.0",
    "fonttools==3.44.0", "reportlab==5.1.0", "mpmath==1.3.0",
)  # fmt: skip
"""Beside Python's standard library, without its tests: five indented by two blanks, one by tabs, two terse."""
FOLDERS = ("flax", "optax", "haiku", "tensor2tensor", "apache_beam", "fontTools", "reportlab", "mpmath")
FEWEST_LINES, MOST_CHARACTERS = 3, 6000


def file_of(source: str) -> str:
    """The file that a document was cut from; what was not cut is a file by itself."""
    return source.partition(".py/")[0]


def definitions(code: str) -> list[str]:
    """The functions and classes at the outermost level of a file, as they stand there; none of what is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError):
        return []
    lines, found = [f"{line}\n" for line in code.split("\n")], []  # as ast counts them: a form feed ends none
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            text = "".join(lines[first - 1 : node.end_lineno]).rstrip("\n") + "\n"
            if text.count("\n") >= FEWEST_LINES and len(text) <= MOST_CHARACTERS:
                found.append(text)
    return found


def write(folder: Path) -> Path:
    """The folder `code` in a folder: NAME/FILE.py/NUMBER.py for each definition that no file before had."""
    code = folder / "code"
    if code.is_dir():
        return code
    copying, seen = folder / "copying", set[bytes]()
    shutil.rmtree(copying, ignore_errors=True)
    for name, file in _files(_packages(folder)):
        for number, text in enumerate(definitions(file.read_text(encoding="utf-8", errors="replace"))):
            digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
            if digest not in seen:
                seen.add(digest)
                path = copying / name / f"{number:04}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    copying.rename(code)
    return code


def _packages(folder: Path) -> Path:
    """The packages' files, fetched once."""
    packages = folder / "packages"
    if not packages.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "fetching")]
        subprocess.run([*command, *PACKAGES], check=True)
        (folder / "fetching").rename(packages)
    return packages


def _files(packages: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of all .py files, in an order that is the same everywhere."""
    for place in (Path(sysconfig.get_path("stdlib")), *(packages / name for name in FOLDERS)):
        for file in sorted(place.rglob("*.py")):
            path = file.relative_to(place)
            if place.parent == packages or path.parts[0] not in ("test", "site-packages", "dist-packages"):
                yield f"{place.name}/{path.as_posix()}", file
