"""What a trainer and a DataLoader say of themselves, read from their source: `roles`, and the parameters of `loss`.

Reading instead of importing lets a loss that does not fit its DataLoader be refused before torch is imported. Where the
text alone cannot tell (a base class made at run time, roles that are computed) the answer is None, and the trainer's
own checks decide.
"""

from __future__ import annotations

import ast
from pathlib import Path

from dataloaders.resolve import find_source, module_file, resolve, top_level_names

__all__ = ["class_roles", "find_source", "loss_parameters", "loss_settings", "resolve"]


def class_roles(name: str, package: str) -> tuple[str, ...] | None:
    """The class attribute `roles` of a trainer or DataLoader, its own or inherited; None when the text cannot tell.

    Raises:
        ValueError: when there is no such class (see `find_source`).
    """
    member = _find_member(*find_source(name, package), "roles")
    value = member.value if isinstance(member, ast.Assign | ast.AnnAssign) else None
    if value is None:
        return None
    try:
        roles = ast.literal_eval(value)
    except ValueError:
        return None
    return tuple(roles) if isinstance(roles, tuple | list) and all(isinstance(role, str) for role in roles) else None


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
