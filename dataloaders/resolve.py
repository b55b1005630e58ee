"""Names in a config to Python objects: a trainer, a DataLoader, a data set's function; ours or a user's.

A name is one of a package of ours (`KTOTrainer`), a dotted path (`my_package.my_module.MyTrainer`, looked for in the
current directory and on PYTHONPATH) or a file with a name (`path/to/file.py:MyTrainer`). `find_source` finds it by
reading source text, so that a wrong name is an error before anything heavy is imported; `resolve` imports it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as a question to end a sentence with, or nothing when none is near."""
    known = list(known)
    lower = {one.lower(): one for one in reversed(known)}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


def find_source(name: str, package: str) -> tuple[Path, str]:
    """The file that defines `name`, and the name inside it, without importing anything.

    Args:
        name: a bare name, a dotted path or `path/to/file.py:Name`.
        package: the package of ours in whose modules a bare name is looked for, such as `dataloaders.datasets`.

    Raises:
        ValueError: when there is no such name, with the nearest one.
    """
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        path = Path(file).expanduser().resolve()
        if not path.is_file():
            siblings = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise ValueError(f"there is no file {file}{did_you_mean(path.name, siblings)}.")
    elif "." in name:
        module, _, attribute = name.rpartition(".")
        path = module_file(module)
        if path is None:
            raise ValueError(
                f"there is no module {module} in {Path.cwd()} or on PYTHONPATH; "
                "a file is named by path/to/file.py:Name."
            )
    else:
        return _find_bare(name, package)
    names, whole = top_level_names(path)
    if whole and attribute not in names:
        raise ValueError(f"{path} defines no {attribute!r}{did_you_mean(attribute, names)}.")
    return path, attribute


def _find_bare(name: str, package: str) -> tuple[Path, str]:
    known: dict[str, Path] = {}
    for path in sorted(ROOT.joinpath(*package.split(".")).glob("*.py")):
        for node in ast.iter_child_nodes(parse(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                known.setdefault(node.name, path)
    if name not in known:
        raise ValueError(
            f"there is no {name!r} in {package}{did_you_mean(name, known)}; one of your own is named by "
            "my_package.my_module.Name or path/to/file.py:Name."
        )
    return known[name], name


def resolve(name: str, package: str) -> Any:
    """The object itself: imports the module that `find_source` finds.

    Raises:
        ValueError: when there is no such name, or its module cannot be imported.
    """
    path, attribute = find_source(name, package)
    if ":" in name:
        module = _import_file(path)
    elif "." in name:
        _here_on_path()
        module = importlib.import_module(name.rpartition(".")[0])
    else:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if not hasattr(module, attribute):
        raise ValueError(f"{path} has no {attribute!r}{did_you_mean(attribute, vars(module))}.")
    return getattr(module, attribute)


def _import_file(path: Path) -> Any:
    """A file as a module, once; its name comes from its path, so that two files of one name do not meet."""
    _here_on_path()
    module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        specification = importlib.util.spec_from_file_location(module_name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[module_name] = module
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _here_on_path() -> None:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def module_file(module: str) -> Path | None:
    """The source file of a dotted module name, found without importing its packages; None when there is none."""
    places: list[str] | None = [str(Path.cwd()), *sys.path]
    specification = None
    for part in module.split("."):
        specification = PathFinder.find_spec(part, places)
        if specification is None:
            return None
        places = list(specification.submodule_search_locations or ())
    file = specification.origin if specification else None
    return Path(file) if file and file.endswith(".py") else None


def parse(path: Path) -> ast.Module:
    """The syntax tree of a source file; ValueError where it is not Python."""
    return _parse(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _parse(path: Path, changed: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"{path}{line}: not valid Python: {error.args[0]}.") from error


def top_level_names(path: Path) -> tuple[dict[str, ast.AST], bool]:
    """What a module binds at its top level, and whether that is all of it (no `import *`, no `__getattr__`)."""
    names: dict[str, ast.AST] = {}
    whole = True
    for node in _statements(parse(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
            whole &= node.name != "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                whole &= alias.name != "*"
                names[alias.asname or alias.name.partition(".")[0]] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names.update({part.id: node for part in ast.walk(target) if isinstance(part, ast.Name)})
    return names, whole


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module, those under a top-level `if`, `try` or `with` among them."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(child)
