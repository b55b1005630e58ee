"""What keeps the code as it was designed: import direction, sizes, safe reading, words for every public name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("scorers", "models", "dataloaders", "trainers", "launch", "reports")
SCRIPTS = ("train", "eval", "compare")
MAY_IMPORT = {
    "scorers": set(),
    "models": {"scorers"},
    "dataloaders": {"scorers", "models"},
    "trainers": {"scorers", "models", "dataloaders"},
    "launch": {"scorers", "models", "dataloaders", "trainers"},
    "reports": set(),
    "train": {"scorers", "models", "dataloaders", "trainers", "launch", "reports"},
    "eval": {"scorers", "models", "dataloaders", "trainers", "launch", "reports"},
    "compare": {"scorers", "reports"},
}
"""Of our own packages; each may import itself. The direction is one way, and `reports` knows nobody."""

_ENGINE = tuple(
    f"models/{name}.py"
    for name in (
        "logprobs",
        "value_head",
        "tree_attention",
        "head",
        "lean",
        "compilation",
        "probe",
        "precision",
        "lora",
        "quantization",
        "reference",
        "reference_cache",
        "sharding",
        "footprint",
        "generation/hf",
    )
)
HEAVY = {
    "torch": (*_ENGINE, "trainers/", "launch/train.py", "launch/model_checks.py"),
    "transformers": (*_ENGINE, "trainers/basic.py"),
    **dict.fromkeys(
        ("datasets", "pyarrow", "pandas", "openai", "wandb", "matplotlib", "scipy", "accelerate", "safetensors",
         "tokenizers", "peft", "bitsandbytes", "vllm", "lm_eval", "detoxify", "scrubadub", "pycodestyle",
         "profanity_check", "sklearn", "dateparser"), (),
    ),
}  # fmt: skip
"""Libraries that take long to import, and where they may be imported at the top: what cannot work without them."""

FILES = sorted(
    [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    + [ROOT / f"{name}.py" for name in SCRIPTS if (ROOT / f"{name}.py").exists()]
)
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
MAX_LINES, MAX_SCRIPT_LINES, MAX_FUNCTION_LINES = 400, 120, 60


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """The top-level modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [(node.module or "").partition(".")[0]]
    return []


def at_the_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported; not those under `if TYPE_CHECKING`."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        for part in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from at_the_top(getattr(node, part, []) or [])


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name[0] != "_")


def test_the_walk_found_the_code():
    """Prevents rules that hold because nothing is looked at."""
    assert {name.partition("/")[0] for name in NAMES} >= set(PACKAGES)
    assert len(NAMES) > 50


@pytest.mark.parametrize("name", NAMES)
def test_imports_point_one_way(name: str):
    """Prevents a circle, and a loss that cannot be used without the launcher; imports inside functions count too."""
    package = name.partition("/")[0].removesuffix(".py")
    for node in ast.walk(tree_of(name)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}:{node.lineno}: name the package"
        for module in imported(node):
            if module in MAY_IMPORT and module != package:
                assert module in MAY_IMPORT[package], f"{name}:{node.lineno} imports {module}"
            assert module != "tests", f"{name}:{node.lineno} imports tests"


@pytest.mark.parametrize("name", NAMES)
def test_heavy_libraries_are_imported_where_they_are_used(name: str):
    """Prevents a command that takes five seconds to say that a key is misspelled."""
    for node in at_the_top(tree_of(name).body):
        for module in imported(node):
            allowed = HEAVY.get(module)
            assert allowed is None or name.startswith(allowed), f"{name}:{node.lineno} imports {module} at the top"


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str):
    """Prevents files and functions that nobody reads to the end."""
    lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
    assert lines <= (MAX_LINES if "/" in name else MAX_SCRIPT_LINES), f"{name} has {lines} lines"
    for function in functions(tree_of(name)):
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, f"{name}:{function.lineno} {function.name} has {length} lines"
    assert Path(name).stem not in ("utils", "util", "helpers", "common", "misc"), "a name that says nothing"


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_words_and_types(name: str):
    """Prevents an interface that has to be guessed. A loss of a trainer needs types too: its names are its contract."""
    tree = tree_of(name)
    if not name.endswith("__init__.py") or tree.body:
        assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in public(tree):
        where = f"{name}:{node.lineno} {node.name}"
        trivial = isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno <= 4
        assert ast.get_docstring(node) or trivial, f"{where} has no docstring"
        if isinstance(node, ast.ClassDef):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare = [one.arg for one in arguments if one is not None and one.annotation is None]
        assert set(bare) <= {"self", "cls"}, f"{where}: no types for {bare}"
        assert node.returns is not None, f"{where} does not say what it returns"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_read_is_executed(name: str):
    """Prevents a checkpoint, a cache or a hub model from running code: no pickle, no remote code by default."""
    for node in ast.walk(tree_of(name)):
        for module in imported(node):
            if module in ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal"):
                only_its_errors = name == "models/checkpoints.py" and module == "pickle"
                assert only_its_errors, f"{name}:{node.lineno} imports {module}"
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{name}:{node.lineno}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert given.get("trust_remote_code") != "True", where
        assert given.get("allow_pickle") != "True", where
        assert called not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), f"{where} calls {called}"
        if called == "torch.load":
            assert given.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            raise AssertionError(f"{where}: use yaml.safe_load")


def test_models_of_the_config_trust_no_remote_code():
    """Prevents a model YAML that runs the code of a hub repository unasked."""
    for path in (ROOT / "config").rglob("*.yaml"):
        assert not re.search(r"trust_remote_code:\s*true", path.read_text(encoding="utf-8"), re.IGNORECASE), path


def test_every_test_says_which_bug_it_prevents():
    """Prevents tests that nobody dares to change: the docstring says what they are for."""
    silent = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if function.name.startswith("test_") and not ast.get_docstring(function) and len(function.name.split("_")) < 6
    ]
    assert not silent, silent


def test_a_skip_without_reason_fails(tmp_path):
    """Prevents the hook of tests/conftest.py from losing its effect."""
    import os
    import subprocess
    import sys

    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "@pytest.mark.skip\ndef test_bare(): pass\n"
        "def test_call(): pytest.skip('')\n"
        "@pytest.mark.skip(reason='no such device')\ndef test_said(): pass\n"
        "def test_called(): pytest.skip('no such file')\n"
        "@pytest.mark.xfail(reason='known')\ndef test_expected(): assert False\n"
        "@pytest.mark.xfail\ndef test_expected_bare(): assert False\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
        "--rootdir",
        str(tmp_path),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "1 failed, 2 skipped, 2 xfailed, 1 error" in result.stdout, result.stdout
