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
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("scorers", "models", "dataloaders", "trainers", "launch", "reports")
"""Names that are imported as ours wherever one stands."""


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
        ours = ROOT / module.partition(".")[0]
        if ours.name in PACKAGES and not path.resolve().is_relative_to(ours):
            raise ValueError(_taken(name, path, f"Aureole's own package {ours.name}"))
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
        with _readable_imports():
            module = importlib.import_module(name.rpartition(".")[0])
        if getattr(module, "__file__", None) and Path(module.__file__).resolve() != path.resolve():
            raise ValueError(_taken(name, path, module.__file__))
    else:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if not hasattr(module, attribute):
        raise ValueError(f"{path} has no {attribute!r}{did_you_mean(attribute, vars(module))}.")
    return getattr(module, attribute)


def _taken(name: str, path: Path, other: str | Path) -> str:
    """What to say of a dotted name whose module is not the one that Python has by that name."""
    return (
        f"the name {name.partition('.')[0]} is taken by {other}, which is imported in place of {path}: name the file, "
        f"{os.path.relpath(path)}:{name.rpartition('.')[2]}."
    )


@contextmanager
def _readable_imports() -> Iterator[None]:
    """Turns an import that fails in somebody's file into a ValueError that names the file, the line and the module."""
    try:
        yield
    except ImportError as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith("<frozen") and frame.filename != __file__]
        own = [frame for frame in own if "site-packages" not in frame.filename] or own
        where = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
        raise ValueError(
            f"{where}{error} (imports are looked for beside the file, in {Path.cwd()} and on PYTHONPATH)."
        ) from error
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: not valid Python: {error.msg}.") from error


_folders: list[str] = []  # of users' files: what lies beside them can be imported


def _beside_on_path(path: Path) -> None:
    """Makes what lies beside a file importable, behind everything else: a name of ours or a library's stays that.

    Raises:
        ValueError: when the file imports a neighbour whose name a neighbour of another file has already.
    """
    folder = str(path.parent)
    for node in ast.walk(parse(path)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        for module in (one.partition(".")[0] for one in modules):
            own = PathFinder.find_spec(module, [folder])
            other = getattr(sys.modules.get(module), "__file__", None)
            if own and own.origin and other and own.origin != other and str(Path(other).parent) in _folders:
                raise ValueError(f"{path} imports {module}, and {other} has that name: rename one of the two.")
    if folder not in _folders:
        _folders.append(folder)
    if folder not in sys.path:
        sys.path.append(folder)


def _import_file(path: Path) -> Any:
    """A file as a module, once; its name comes from its path, so that two files of one name do not meet."""
    _here_on_path()
    _beside_on_path(path)
    module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name not in sys.modules:
        specification = importlib.util.spec_from_file_location(module_name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[module_name] = module
        try:
            with _readable_imports():
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
