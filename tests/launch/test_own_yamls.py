"""A loss of one's own: its YAML, its classes and its imports, refused in one line before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataloaders.resolve import resolve
from launch import train
from launch.compose import compose

YAML = {
    "name": "mine", "trainer": "mine.py:Mine", "dataloader": "PairedPreferenceDataLoader",
    "use_reference_model": "false", "beta": "0.1",
}  # fmt: skip
MINE = """
from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.scored import ScoredDataLoader
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from trainers.basic import BasicTrainer
from trainers.paired import PairedPreferenceTrainer
from trainers.scored import GRPOTrainer
from trainers.unpaired import UnpairedPreferenceTrainer


class Mine(PairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        return self.config.loss.beta * (policy_rejected_logps - policy_chosen_logps)


class Misread(Mine):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        section = self.config.loss
        return section.betta * (policy_rejected_logps - policy_chosen_logps)


class Careful(Mine):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        scale = self.config.loss.betta if "betta" in self.config.loss else self.config.loss.get("gamma", 1.0)
        if "delta" in self.config.loss:
            scale *= self.config.loss.delta
        return scale * (policy_rejected_logps - policy_chosen_logps)


class Rewarded(Mine):
    def loss(self, policy_chosen_logps, policy_rejected_logps, chosen_rewards):
        return chosen_rewards * (policy_rejected_logps - policy_chosen_logps)


class Labelled(UnpairedPreferenceTrainer):
    def loss(self, policy_chosen_logps, policy_rejected_logps):
        pass


class Rootless(BasicTrainer):
    def loss(self, policy_chosen_logps):
        return -policy_chosen_logps


class WeightOfATerm(Mine):
    may_be_zero = ("beta",)


class MyGRPO(GRPOTrainer):
    pass


class LastOfAllGRPOTrainer(Mine):
    pass


class OneWord(Mine):
    roles = "chosen"


class WithScores(PairedPreferenceDataLoader):
    gives = ("reward",)


class Scores(ScoredDataLoader):
    pass


class Thumbs(UnpairedPreferenceDataLoader):
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes the YAML, with changes (None takes a key out), and composes it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("yamls", "loss").mkdir(parents=True)

    def composed(*overrides: str, text: str | None = None, **changes: str | None):
        keys = {key: value for key, value in {**YAML, **changes}.items() if value is not None}
        lines = "".join(f"{key}: {value}\n" for key, value in keys.items())
        Path("yamls", "loss", "mine.yaml").write_text(lines if text is None else text)
        return compose(["loss=mine", "model=tiny", *overrides], config_dirs=["yamls"])

    return composed


SLIPS = [
    ({"name": None}, r"^loss: its YAML has no name: add `name: mine`\.$"),
    ({"trainer": None}, r"^loss=mine: its YAML has no trainer: add `trainer: path/to/file\.py:MyTrainer`\.$"),
    ({"trainer": None, "trainr": "mine.py:Mine"}, r"has no trainer \(did you mean 'trainr'\?\)"),
    ({"dataloader": None}, r"^loss=mine: its YAML has no dataloader"),
    ({"use_reference_model": None}, r"^loss=mine: its YAML has no use_reference_model"),
    ({"trainer": "null"}, r"has no trainer"),
    ({"trainer": "3"}, r"^loss\.trainer=3: expected a text"),
    ({"name": "3"}, r"^loss\.name=3: expected a text"),
    ({"use_reference_model": "null"}, r"has no use_reference_model"),
    ({"use_reference_model": '"false"'}, r"^loss\.use_reference_model='false': expected true or false \(in quotes"),
    ({"use_reference_model": "0"}, r"^loss\.use_reference_model=0: expected true or false\.$"),
    ({"sync_reference": '"no"'}, r"^loss\.sync_reference='no': expected true or false \(in quotes"),
    ({"own": '"False"'}, r"^loss\.own='False': in quotes it is a text, .*: write false\.$"),
    ({"beta": "0,1"}, r"^loss\.beta=0,1: .*a number has a point, 0\.1\.$"),
    ({"own": "0,1"}, r"^loss\.own=0,1: .*a number has a point, 0\.1\.$"),
    ({"beta": "abc"}, r"^loss\.beta=abc: expected a number, and it must be "),
    ({"beta": "null"}, r"^loss\.beta=null: expected a number"),
    ({"beta": "true"}, r"^loss\.beta=true: expected a number"),
    ({"beta": "[0.1, 0.2]"}, r"^loss\.beta=\[0\.1, 0\.2\]: expected a number"),
    (
        {"control_tokens": "{chosen: a}"},
        r"^loss\.control_tokens=.*expected a section with the keys chosen and rejected",
    ),
    ({"control_tokens": "a"}, r"^loss\.control_tokens=a: expected a section"),
    ({"text": ""}, r"^the YAML of the loss has no keys; it needs at least name: mine, trainer: "),
    ({"text": "- a\n- b\n"}, r"^the YAML of the loss has no keys"),
    ({"text": "beta: 0.1\n  x: 1\n"}, r"mine\.yaml:2: not valid YAML: mapping values are not allowed here\.$"),
    ({"text": "name: mine\nname: mine\n"}, r"mine\.yaml:2: not valid YAML: found duplicate key name\.$"),
    ({"text": "name: [mine\n"}, r"mine\.yaml:\d+: not valid YAML"),
    ({"trainer": "mine.py:Misread"}, r"reads config\.loss\.betta, and the YAML of loss=mine .*did you mean 'beta'"),
    ({"trainer": "mine.py:Rewarded"}, r"mine\.py:Rewarded needs rows that say 'reward', and those of PairedPref"),
    (
        {"trainer": "mine.py:Labelled", "dataloader": "mine.py:Scores"},
        r"mine\.py:Labelled needs rows that say 'desirable', and those of mine\.py:Scores do not: "
        r"set loss\.dataloader=UnpairedPreferenceDataLoader, ",
    ),
]


@pytest.mark.parametrize(("changes", "message"), SLIPS)
def test_a_slip_in_a_yaml_is_one_line(mine, changes, message):
    """Prevents a traceback, or a run with a reference that `"false"` was to leave out."""
    with pytest.raises(ValueError, match=message) as error:
        mine(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "loader", "message"),
    [
        ("grpo", "UnpairedPreferenceDataLoader", r"say 'advantage', .*: set loss\.dataloader=ScoredDataLoader"),
        ("rrhf", "SFTDataLoader", r"say 'reward', .*: set loss\.dataloader=ScoredDataLoader"),
        ("kto-zero", "SFTDataLoader", r"say 'desirable', .*: set loss\.dataloader=UnpairedPreferenceDataLoader"),
        ("kto-zero", "ScoredDataLoader", r"say 'desirable'"),
        ("kto-simple", "ScoredDataLoader", r"KTOSimpleTrainer needs rows that say 'desirable', .* ScoredDataLoader do"),
        ("bco", "ScoredDataLoader", r"say 'desirable'"),
        ("sft", "ConditionalSFTDataLoader", r"takes loss\.control_tokens, and the YAML of this loss does not have it"),
        ("grpo", "mine.py:Thumbs", r"say 'advantage', and those of mine\.py:Thumbs do not"),
    ],
)
def test_rows_that_do_not_say_what_the_loss_needs_are_refused(mine, loss, loader, message):
    """Prevents a TypeError in the first step, and a run that trains on nothing and ends with `done`."""
    mine()
    with pytest.raises(ValueError, match=message):
        compose([f"loss={loss}", "model=tiny", f"loss.dataloader={loader}"])
    config = compose([f"loss={loss}", "model=tiny"])
    config.loss.dataloader = loader  # what the text alone could not tell
    with pytest.raises(ValueError, match=message.partition(",")[0]):
        train.trainer_class(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer": "mine.py:Careful"},
        {"trainer": "mine.py:Rewarded", "dataloader": "mine.py:WithScores"},
        {"sync_reference": "no"},
        {"own": "none", "other": "null", "third": '"off"'},
    ],
)
def test_what_is_right_is_let_pass(mine, changes):
    """Prevents that a valid loss is refused because it reads keys with care, or its rows say more than ours."""
    config = mine(**changes)
    assert train.trainer_class(config).__name__ == changes.get("trainer", "mine.py:Mine").partition(":")[2]


@pytest.mark.parametrize(("name", "fits"), [("WeightOfATerm", True), ("MyGRPO", True), ("LastOfAllGRPOTrainer", False)])
def test_a_beta_of_0_is_for_those_who_say_so(mine, name: str, fits: bool):
    """Prevents that a subclass of GRPO is refused for its name, and another class let pass for it."""
    keys = {"trainer": f"mine.py:{name}", "beta": "0"}
    if name == "MyGRPO":
        keys |= {"dataloader": "ScoredDataLoader", "use_reference_model": "true", "epsilon": "0.2"}
    if fits:
        assert mine(**keys).loss.beta == 0
        return
    with pytest.raises(ValueError, match=r"loss\.beta=0 must be above 0 for loss=mine .*`may_be_zero = \(\"beta\",\)`"):
        mine(**keys)


def test_a_whole_number_in_a_yaml_says_nothing_against_a_fraction(mine):
    """Prevents that `beta: 1` makes loss.beta=0.5 an error; elsewhere whole numbers stay whole."""
    assert mine("loss.beta=0.5", beta="1").loss.beta == 0.5
    assert mine(beta="1").loss.beta == 1
    with pytest.raises(ValueError, match=r"loss\.beta=fast: expected a whole number or a number"):
        mine("loss.beta=fast", beta="1")
    with pytest.raises(ValueError, match=r"n_epochs=1\.5: expected a whole number"):
        mine("n_epochs=1.5")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("Rootless", r"^Rootless has roles=None: .*derive it from a family \(PairedPreferenceTrainer, "),
        ("OneWord", r"^OneWord has roles='chosen': name the responses of its rows, as in `roles = \(\"target\",\)`"),
    ],
)
def test_a_class_without_roles_says_what_to_write(mine, trainer, message):
    """Prevents an AttributeError, and roles that are the letters of a word."""
    with pytest.raises(ValueError, match=message):
        train.trainer_class(mine(trainer=f"mine.py:{trainer}"))


def test_a_slip_is_found_before_a_model_is_loaded_and_an_old_run_removed(mine, monkeypatch):
    """Prevents that overwrite=true takes a run away for one that cannot begin."""
    config = mine("overwrite=true", "cache_dir=runs", "device=cpu")
    Path("mine.py").write_text(
        MINE.replace("policy_rejected_logps - policy_chosen_logps)", "policy_rejected_logps.mean())")
    )
    old = Path("runs", "tiny_mine", "config.yaml")
    old.parent.mkdir(parents=True)
    old.write_text("old")
    monkeypatch.setattr("launch.build.build_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="Losses never reduce"):
        train.run(config)
    assert old.read_text() == "old"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two folders of files that import their neighbours, and a current directory with a `models.py` of the user's."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"neighbour_{folder}.py").write_text(f"VALUE = {folder!r}\n")
        (tmp_path / folder / "shared_neighbour.py").write_text(f"VALUE = {folder!r}\n")
        (tmp_path / folder / "mod.py").write_text(f"from neighbour_{folder} import VALUE\n")
        (tmp_path / folder / "shares.py").write_text("from shared_neighbour import VALUE\n")
    (tmp_path / "one" / "trainers.py").write_text("raise RuntimeError('ours is another one')\n")
    (tmp_path / "one" / "uses_ours.py").write_text("from trainers.paired import DPOTrainer as VALUE\n")
    (tmp_path / "one" / "fails.py").write_text("import torch\nimport no_such_module\n\nVALUE = 1\n")
    (tmp_path / "one" / "misses.py").write_text("from neighbour_one import OTHER as VALUE\n")
    (tmp_path / "one" / "passes_on.py").write_text("from breaks import VALUE\n")
    (tmp_path / "one" / "breaks.py").write_text("VALUE = (\n")
    (tmp_path / "models.py").write_text("class T:\n    pass\n")
    (tmp_path / "imports_nothing_there.py").write_text("import no_such_module\nVALUE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if any(word in name for word in ("neighbour", "breaks", "imports_nothing")):
            del sys.modules[name]


def test_a_files_neighbours_can_be_imported(project):
    """Prevents that a loss has to be one file; a name of ours stays ours, whatever lies beside the file."""
    assert resolve("one/mod.py:VALUE", "trainers") == "one"
    assert resolve(f"{project}/two/mod.py:VALUE", "trainers") == "two"
    assert resolve("one/uses_ours.py:VALUE", "trainers").__module__ == "trainers.paired"


def test_two_neighbours_of_one_name_are_refused(project):
    """Prevents that the second file silently gets the first one's neighbour."""
    assert resolve("one/shares.py:VALUE", "trainers") == "one"
    with pytest.raises(
        ValueError, match=r"two/shares\.py imports shared_neighbour, and .*one/shared_neighbour\.py has"
    ):
        resolve("two/shares.py:VALUE", "trainers")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one/fails.py:VALUE", r"one/fails\.py:2: No module named 'no_such_module' \(imports are looked for beside"),
        ("one/misses.py:VALUE", r"one/misses\.py:1: cannot import name 'OTHER' from 'neighbour_one'"),
        ("one/passes_on.py:VALUE", r"one/breaks\.py:1: not valid Python"),
        ("imports_nothing_there.VALUE", r"imports_nothing_there\.py:1: No module named 'no_such_module'"),
        ("models.T", r"the name models is taken by Aureole's own package models, .*name the file, models\.py:T\.$"),
    ],
)
def test_an_import_that_fails_names_the_file_and_the_module(project, name, message):
    """Prevents a traceback of imports, and the answer that a file has no class which it has."""
    with pytest.raises(ValueError, match=message) as error:
        resolve(name, "trainers")
    assert "\n" not in str(error.value)
    assert resolve("models.py:T", "trainers").__name__ == "T"
