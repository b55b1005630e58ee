"""What a trainer and a DataLoader say of themselves, read from their source: `roles`, the parameters of `loss`, ...

Reading instead of importing lets a loss that does not fit its DataLoader be refused before torch is imported. Where the
text alone cannot tell (a base class made at run time, roles that are computed) the answer is None, and the trainer's
own checks decide.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from dataloaders.resolve import find_source, module_file, resolve, top_level_names

__all__ = ["class_words", "find_source", "loss_parameters", "loss_settings", "resolve", "settings_read"]


def class_words(name: str, package: str, attribute: str = "roles") -> tuple[str, ...] | None:
    """A class attribute that holds words, its own or inherited; None when the text cannot tell.

    Args:
        attribute: `roles` of a trainer or DataLoader, `reads` or `may_be_zero` of a trainer, `gives` or `settings` of a
            DataLoader.

    Raises:
        ValueError: when there is no such class (see `find_source`).
    """
    member = _find_member(*find_source(name, package), attribute)
    value = member.value if isinstance(member, ast.Assign | ast.AnnAssign) else None
    if value is None:
        return None
    try:
        words = ast.literal_eval(value)
    except ValueError:
        return None
    return tuple(words) if isinstance(words, tuple | list) and all(isinstance(word, str) for word in words) else None


def loss_parameters(name: str, package: str = "trainers") -> tuple[str, ...] | None:
    """The tensors that a trainer's `loss` names, without self; None when the text cannot tell.

    Raises:
        ValueError: when there is no such class (see `find_source`).
    """
    method, itself = _loss_of(name, package)
    if method is None:
        return None
    arguments = [*method.args.posonlyargs, *method.args.args]
    return tuple(one.arg for one in arguments[itself:])


def loss_settings(name: str, package: str = "trainers") -> tuple[str, ...] | None:
    """What a trainer's `loss = formula(...)` takes from its section of the config; None when the text cannot tell.

    Raises:
        ValueError: when there is no such class (see `find_source`).
    """
    method, itself = _loss_of(name, package)
    return None if method is None or itself else tuple(one.arg for one in method.args.kwonlyargs)


def settings_read(name: str, package: str = "trainers") -> tuple[str, ...]:
    """The keys of the config's section `loss` that a trainer's method `loss` surely reads, as `self.config.loss.beta`.

    What stands under an `if`, in a loop or behind a possible return is left out.

    Raises:
        ValueError: when there is no such class (see `find_source`).
    """
    method, itself = _loss_of(name, package)
    if method is None or not itself or not method.args.args:
        return ()
    sections = {f"{method.args.args[0].arg}.config.loss"}
    read: dict[str, None] = {}
    for node in _surely(method.body):
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in sections:
            sections |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if not isinstance(node, ast.Attribute | ast.Subscript) or ast.unparse(node.value) not in sections:
            continue
        key = node.attr if isinstance(node, ast.Attribute) else getattr(node.slice, "value", None)
        if isinstance(node.ctx, ast.Load) and isinstance(key, str) and not hasattr(DictConfig, key):
            read[key] = None
    return tuple(read)


_SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
_MAYBE = (ast.IfExp, ast.BoolOp, ast.Compare, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _surely(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes of a function's statements that are evaluated in every call, in their order."""
    for statement in body:
        if isinstance(statement, ast.With):
            yield from _surely(statement.body)
        if isinstance(statement, _SIMPLE):
            yield from _evaluated(statement)
        if any(isinstance(node, ast.Return | ast.Raise) for node in ast.walk(statement)):
            return


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _MAYBE):
            yield from _evaluated(child)


def _loss_of(name: str, package: str) -> tuple[ast.FunctionDef | None, int]:
    """The function that a trainer's loss is, and how many parameters come before its tensors (self, or none)."""
    source, class_name = find_source(name, package)
    path, member = _find_with_path(source, class_name, "loss")
    if isinstance(member, ast.FunctionDef):
        return (None if member.decorator_list else member), 1
    call = member.value if isinstance(member, ast.Assign) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "formula" or len(call.args) != 1:
        return None, 0
    function = call.args[0].id if isinstance(call.args[0], ast.Name) else None
    for _ in range(20):
        node = top_level_names(path)[0].get(function)
        if not isinstance(node, ast.ImportFrom):
            return (node if isinstance(node, ast.FunctionDef) else None), 0
        function = next((one.name for one in node.names if (one.asname or one.name) == function), function)
        path = _imported_from(path, node)
        if path is None:
            break
    return None, 0


def _find_member(path: Path, class_name: str, member: str) -> ast.AST | None:
    """The statement that binds `member` in a class or in the first of its bases that has it."""
    return _find_with_path(path, class_name, member)[1]


def _find_with_path(path: Path, class_name: str, member: str, depth: int = 0) -> tuple[Path, ast.AST | None]:
    """The same, with the file that it stands in."""
    names, _ = top_level_names(path)
    node = names.get(class_name)
    if isinstance(node, ast.ImportFrom) and depth < 20:
        source = _imported_from(path, node)
        original = next((one.name for one in node.names if (one.asname or one.name) == class_name), class_name)
        return _find_with_path(source, original, member, depth + 1) if source else (path, None)
    if not isinstance(node, ast.ClassDef) or node.decorator_list or depth >= 20:
        return path, None
    for statement in node.body:
        if member in _bound(statement):
            return path, statement
    for base in node.bases:
        found = _find_in_base(path, base, member, depth + 1)
        if found[1] is not None:
            return found
    return path, None


def _find_in_base(path: Path, base: ast.expr, member: str, depth: int) -> tuple[Path, ast.AST | None]:
    if isinstance(base, ast.Name):
        return _find_with_path(path, base.id, member, depth)
    if isinstance(base, ast.Attribute):  # `import trainers.paired` and `trainers.paired.DPOTrainer`
        module, _, class_name = ast.unparse(base).rpartition(".")
        source = module_file(module)
        return _find_with_path(source, class_name, member, depth) if source else (path, None)
    return path, None


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a class body gives a value."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return {ast.unparse(statement.target)}
    if isinstance(statement, ast.Assign):
        return {ast.unparse(target) for target in statement.targets}
    return set()


def _imported_from(path: Path, node: ast.ImportFrom) -> Path | None:
    """The file of the module in `from module import ...`, a relative one seen from `path`."""
    if not node.level:
        return module_file(node.module or "")
    folder = path.parents[node.level - 1]
    place = folder.joinpath(*(node.module or "").split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
