"""Names in a config to classes, with and without importing them."""

from __future__ import annotations

import pytest

from dataloaders.resolve import find_source, resolve
from launch.resolve import class_words, loss_parameters


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder of a user's, outside the repository, in which they stand."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "losses.py").write_text(
        "from trainers.paired import DPOTrainer as Base\nimport trainers.sft\n\n\n"
        "class Inherits(Base):\n    pass\n\n\n"
        "class Dotted(trainers.sft.SFTTrainer):\n    roles: tuple = ('target', 'extra')\n\n\n"
        "class Dynamic(make_base()):\n    pass\n\n\n"
        "class Computed(Base):\n    roles = tuple(sorted(['b', 'a']))\n"
    )
    (package / "again.py").write_text("from .losses import Inherits as Renamed\nfrom trainers.kinds import *\n")
    (tmp_path / "one.py").write_text("if True:\n    class Hidden:\n        roles = ('a',)\nVALUE = 3\n")
    (tmp_path / "broken.py").write_text("class Half(:\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_found_without_importing(outside):
    """Prevents that checking a command runs a user's module, or imports torch."""
    assert find_source("my_package.losses.Inherits", "trainers") == (outside / "my_package" / "losses.py", "Inherits")
    assert find_source("one.py:Hidden", "trainers") == (outside / "one.py", "Hidden")
    assert find_source("KTOTrainer", "trainers")[0].name == "unpaired.py"
    assert find_source("get_hh_helpful", "dataloaders.datasets")[0].name == "hh.py"
    assert find_source("my_package.again.Anything", "trainers")[1] == "Anything", "import * may bring it"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KTOTraner", "did you mean 'KTOTrainer'"),
        ("my_package.losses.Inherit", "did you mean 'Inherits'"),
        ("my_package.loss.Inherits", "no module my_package.loss"),
        ("on.py:Hidden", "no file on.py \\(did you mean 'one.py'"),
        ("one.py:Hiden", "did you mean 'Hidden'"),
        ("broken.py:Half", "broken.py:1: not valid Python"),
    ],
)
def test_a_wrong_name_is_an_error_that_helps(outside, name, message):
    """Prevents an ImportError from the depths of a run."""
    with pytest.raises(ValueError, match=message):
        find_source(name, "trainers")


def test_roles_and_parameters_are_inherited(outside):
    """Prevents that a loss is checked only when its class spells everything out itself."""
    assert class_words("KTOTrainer", "trainers") == ("target",)
    assert class_words("PairedPreferenceDataLoader", "dataloaders") == ("chosen", "rejected")
    assert class_words("my_package.losses.Inherits", "trainers") == ("chosen", "rejected")
    assert class_words("my_package.again.Renamed", "trainers") == ("chosen", "rejected")
    assert class_words("my_package.losses.Dotted", "trainers") == ("target", "extra")
    assert loss_parameters("my_package.losses.Dotted") == ("policy_target_token_logps",)
    assert "reference_chosen_logps" in loss_parameters("my_package.again.Renamed")


@pytest.mark.parametrize("name", ["Dynamic", "Computed"])
def test_what_the_text_cannot_tell_is_left_to_the_run(outside, name):
    """Prevents that a valid class is refused because its source is hard to read."""
    assert class_words(f"my_package.losses.{name}", "trainers") is None


def test_resolve_imports(outside):
    """Prevents that a name that passed the check cannot be imported, or is imported twice as two classes."""
    hidden = resolve("one.py:Hidden", "trainers")
    assert hidden.roles == ("a",) and resolve("one.py:Hidden", "trainers") is hidden
    assert resolve("one.VALUE", "trainers") == 3
    assert resolve("get_hh", "dataloaders.datasets").__name__ == "get_hh"
