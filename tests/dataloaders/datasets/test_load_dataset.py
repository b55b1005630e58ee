"""load_dataset: which function is called with which options, and how one file becomes two splits."""

import inspect
import subprocess
import sys

import pytest
import yaml

from dataloaders.datasets import FOR_OTHERS, find_function, load_dataset
from dataloaders.datasets.everyday import DATA
from dataloaders.datasets.rows import load_rows
from dataloaders.examples import Dataset, in_test_split

CONFIG = DATA.parent / "config" / "datasets"
PAIRS = [{"prompt": f"Question {n}?", "chosen": "A", "rejected": "A" if n % 7 == 0 else "B"} for n in range(200)]
USERS_MODULE = """
from dataloaders.datasets.rows import load_rows
from dataloaders.examples import Dataset

def get_mine(split, human_prefix, human_suffix, assistant_prefix, assistant_suffix, path=None, shout=False):
    dataset = Dataset("mine")
    for where, row in load_rows(split, path=path):
        dataset.read()
        prompt = human_prefix + row["prompt"] + human_suffix + assistant_prefix
        dataset.add_pair(prompt.upper() if shout else prompt, row["chosen"], row["rejected"])
    return dataset
"""


def test_every_yaml_fits_its_function():
    """Prevents a key of a YAML that no function reads."""
    doors = set(inspect.signature(load_rows).parameters)
    for file in CONFIG.glob("*.yaml"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines[0] == f"# @package datasets.{file.stem}"
        assert all("  # " in line for line in lines[1:]), f"{file.name}: every key has a comment"
        options = yaml.safe_load("\n".join(lines))
        assert options["function"] in (f"get_{file.stem}", "get_documents") and set(FOR_OTHERS) <= set(options)
        parameters = inspect.signature(find_function(options["function"])).parameters
        taken = set(parameters) | (doors if any(one.kind is one.VAR_KEYWORD for one in parameters.values()) else set())
        assert set(options) - set(FOR_OTHERS) - {"test_fraction"} <= taken, file.name


def test_one_file_is_split_once_by_its_prompts(sources):
    """Prevents a row in both splits or in neither, dropped rows included, and a split that a model's strings change."""
    path = sources.file(PAIRS)
    shares = {split: sources.load("local", split, path=path, test_fraction=0.25) for split in ("train", "test")}
    prompts = {split: {example.prompt for example in share} for split, share in shares.items()}
    assert not prompts["train"] & prompts["test"] and len(prompts["train"] | prompts["test"]) == 171
    for split, share in shares.items():
        mine = [n for n in range(200) if in_test_split(f"Question {n}?", 0.25) == (split == "test")]
        assert share.rows == len(mine) and share.used == len(share)
        assert share.dropped == {"chosen equals rejected": sum(n % 7 == 0 for n in mine)}
    options = sources.options("local", path=path, test_fraction=0.25)
    other = load_dataset("local", "test", "get_local", ("\n<|user|>\n", "", "\n<|assistant|>\n", ""), options)
    assert {example.prompt[10:-15] for example in other} == {prompt[3:-7] for prompt in prompts["test"]}


def test_a_test_file_is_not_split(sources):
    """Prevents a test file of the user's own from losing 95 % of its rows."""
    paths = {"path": sources.file(PAIRS[1:4]), "test_path": sources.file(PAIRS[4:7], "test.jsonl")}
    assert [sources.load("local", split, **paths).rows for split in ("train", "test")] == [3, 3]


@pytest.mark.parametrize("by", ["file", "module"])
def test_function_of_a_user(sources, tmp_path, monkeypatch, by):
    """Prevents a function outside the repository from being out of reach, or from getting options it does not take."""
    (tmp_path / "my_data_of_this_test.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    start = str(tmp_path / "my_data_of_this_test.py") + ":" if by == "file" else "my_data_of_this_test."
    options = {"path": sources.file(PAIRS), "test_path": None, "test_fraction": 0.25, "n_examples": 3, "weight": 2.0}
    shares = {s: load_dataset("mine", s, start + "get_mine", sources.strings, options) for s in ("train", "test")}
    assert sum(share.rows for share in shares.values()) == 200 and all(share.used for share in shares.values())
    for split, share in shares.items():
        assert all(in_test_split(example.prompt, 0.25) == (split == "test") for example in share)
    loud = load_dataset("mine", "train", start + "get_mine", sources.strings, options | {"shout": True})
    assert next(iter(loud)).prompt.startswith("<U>QUESTION")
    with pytest.raises(
        ValueError, match=r"datasets\.mine\.shuot: .* takes no option 'shuot' \(did you mean 'shout'\?\)"
    ):
        load_dataset("mine", "train", start + "get_mine", sources.strings, options | {"shuot": True})
    with pytest.raises(ValueError, match="did you mean 'get_mine'"):
        load_dataset("mine", "train", start + "get_mein", sources.strings, options)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("get_hhh", "did you mean 'get_hh'"),
        ("get_nothing_like_it", r"no 'get_nothing_like_it'.*my_package\.my_module"),
        ("no_such_package.get_foo", "no module no_such_package.*PYTHONPATH"),
        ("no/such/file.py:get_foo", "there is no file"),
    ],
)
def test_function_that_is_not_there(function, message):
    """Prevents a misspelled function from ending in an AttributeError."""
    with pytest.raises(ValueError, match=message):
        find_function(function, "foo")


def test_empty_split_is_an_error_with_its_reasons(sources):
    """Prevents training on nothing, or evaluating on it."""
    path = sources.file([{"prompt": "Q?", "chosen": "A", "rejected": "A"}])
    with pytest.raises(ValueError, match=r"train split is empty \(1 rows, dropped: 1 x chosen equals rejected\)"):
        sources.load("local", path=path, test_path=path)
    with pytest.raises(ValueError, match=r"test split is empty .*datasets\.local\.test_path=FILE"):
        sources.load("local", "test", path=sources.file(PAIRS), test_fraction=0.0)
    with pytest.raises(ValueError, match=r"datasets\.local\.test_fraction must be at least 0 and below 1"):
        sources.load("local", path=path, test_fraction=5)
    with pytest.raises(ValueError, match="the split must be train or test"):
        sources.load("local", "validation", path=path)


def test_example_without_read_is_refused():
    """Prevents a user's function that never counts its rows from making the account wrong."""
    with pytest.raises(ValueError, match=r"call dataset\.read"):
        Dataset("mine").add_pair("Q?", "A", "B")


def test_everyday_serves_pairs_and_single_feedback(sources):
    """Prevents the embedded default from losing the facts that its judge needs."""
    row = {"topic": "cooking", "prompt": "Q?", "chosen": "A.", "rejected": "Well ...", "facts": ["a|b"]}
    (example,) = sources.load("everyday", path=sources.file([row]), test_fraction=0.0)
    assert (example.pairs, example.desirable, example.sft_index) == ([(0, 1)], [True, False], 0)
    assert example.metadata == {"facts": ["a|b"], "topic": "cooking"}
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no field 'facts'"):
        sources.load("everyday", path=sources.file([{key: row[key] for key in row if key != "facts"}]))


@pytest.mark.skipif(not (DATA / "everyday_test.jsonl").exists(), reason="data/everyday_*.jsonl is not written yet")
def test_embedded_files_are_found_from_anywhere(sources, tmp_path, monkeypatch):
    """Prevents the default from depending on the folder that it is started in, and its splits from overlapping."""
    monkeypatch.chdir(tmp_path)
    train, test = (sources.load("everyday", split) for split in ("train", "test"))
    assert not {example.prompt for example in train} & {example.prompt for example in test}
    assert not train.dropped and not test.dropped and all(example.metadata["facts"] for example in test)


def test_torch_is_not_imported():
    """Prevents bad input from being reported only after seconds of importing torch."""
    functions = sorted({yaml.safe_load(file.read_text())["function"] for file in CONFIG.glob("*.yaml")})
    code = f"import sys, dataloaders.datasets as d; [d.find_function(f) for f in {functions}]\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DATA.parent)
