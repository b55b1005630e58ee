"""Reference values on disk: shared by whatever asks for the same, never another's, never a torn record."""

import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataloaders.unpaired import UnpairedPreferenceDataLoader
from models.reference import Reference, key_of
from models.reference_cache import ReferenceCache, folder_for, weights_digest
from models.tree_rows import Branch, TreeRow
from tests import tiny
from trainers.unpaired import KTOTrainer

BUDGET = 200


def rows(count: int = 6, seed: int = 0) -> list[TreeRow]:
    generator = np.random.default_rng(seed)

    def words(n: int) -> np.ndarray:
        return generator.integers(3, tiny.VOCABULARY, size=n).astype(np.int32)

    return [TreeRow(words(5 + n), [Branch(words(3 + n), np.ones(3 + n, bool)) for _ in range(2)]) for n in range(count)]


def never():
    raise AssertionError("the reference was loaded although every value is known")


def flat(values) -> list[torch.Tensor]:
    return [value for some in values for value in some]


def test_the_next_run_loads_no_reference(tmp_path):
    """Prevents a reference that is computed anew by every run: from disk the values come bit by bit."""
    first = Reference(lambda: tiny.tiny_model(seed=1), cache=ReferenceCache(tmp_path)).logps(rows(), BUDGET)
    second = Reference(never, cache=ReferenceCache(tmp_path))
    for one, other in zip(flat(first), flat(second.logps(rows(), BUDGET)), strict=True):
        assert torch.equal(one, other)
    assert (second.cache.hits, second.cache.misses) == (12, 0)
    assert second.cache.counts()[:3] == (0, 12, 12)
    # Another order, and other rows beside them, find the same values.
    values = Reference(never, cache=ReferenceCache(tmp_path)).logps(rows()[::-1][:2], BUDGET)
    assert torch.equal(values[0][0], first[-1][0])


def test_one_miss_computes_the_whole_step_and_keeps_it(tmp_path):
    """Prevents packs that depend on what was known: the last bits of a value would differ after a restart."""
    cache = ReferenceCache(tmp_path)
    reference = Reference(lambda: tiny.tiny_model(seed=1), cache=cache)
    reference.logps(rows()[:3], BUDGET)
    mixed = flat(reference.logps(rows(), BUDGET))
    assert (cache.hits, cache.misses) == (0, 6 + 12)
    fresh = flat(Reference(lambda: tiny.tiny_model(seed=1)).logps(rows(), BUDGET))
    assert all(torch.equal(one, other) for one, other in zip(mixed, fresh, strict=True))
    again = flat(Reference(never, cache=ReferenceCache(tmp_path)).logps(rows(), BUDGET))
    assert len(ReferenceCache(tmp_path)) == 12 and len(again) == 12


def test_a_value_that_is_known_stays_as_it_was(tmp_path):
    """Prevents other last bits after a restart: what other packs compute later replaces nothing, on disk neither."""
    some = rows(2)
    keys = [key_of(row, branch) for row in some for branch in row.branches]

    def values(shift: float) -> dict[bytes, torch.Tensor]:
        return {key: torch.full((3,), shift + number) for number, key in enumerate(keys)}

    cache = ReferenceCache(tmp_path)
    cache.add({keys[0]: values(0.0)[keys[0]]}, 1.0)
    cache.add(values(10.0), 1.0)
    other = ReferenceCache(tmp_path)
    other._values.clear()  # a process that began before the other one had written
    other.add(values(20.0), 1.0)
    for one in (cache, ReferenceCache(tmp_path)):
        assert [one[key][0].item() for key in keys] == [0.0, 11.0, 12.0, 13.0]


def test_what_a_value_depends_on_names_it(tmp_path):
    """Prevents values of other weights, another config, dtype or kind of device, tokens or scored tokens."""
    model = tiny.tiny_model(seed=1)
    digest = weights_digest(model)
    assert digest == weights_digest(tiny.tiny_model(seed=1)) != weights_digest(tiny.tiny_model(seed=2))
    model.config.rms_norm_eps = 1e-3
    assert weights_digest(model) != digest
    folders = {
        folder_for(tmp_path, one, dtype, torch.device(device))
        for one in (digest, weights_digest(model))
        for dtype in (torch.float32, torch.bfloat16)
        for device in ("cpu", "cuda:0", "cuda:1")
    }
    assert len(folders) == 8, "two weights, two dtypes, two kinds of device"
    row = rows(1)[0]
    branch = row.branches[0]
    cut = Branch(branch.ids[:-1], branch.scored[:-1])
    less = Branch(branch.ids, np.arange(len(branch.ids)) > 0)
    moved = TreeRow(np.append(row.prompt, branch.ids[0]), [Branch(branch.ids[1:], branch.scored[1:])])
    keys = [key_of(row, branch), key_of(row, row.branches[1]), key_of(row, cut), key_of(row, less)]
    keys.append(key_of(moved, moved.branches[0]))
    assert len(set(keys)) == 5
    wider = TreeRow(row.prompt.astype(np.int64), [Branch(branch.ids.astype(np.int64), branch.scored)])
    assert key_of(wider, wider.branches[0]) == keys[0], "the tokens count, not how they are stored"


def test_the_digest_is_of_all_weights():
    """Prevents a hash of names or of a sample of the weights: one changed bit of one weight is another reference."""
    model = tiny.tiny_model(seed=1)
    before = weights_digest(model)
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[-1].mul_(1 + 2**-23)
    assert weights_digest(model) != before
    assert weights_digest(tiny.tiny_model(seed=1).to(torch.bfloat16)) != before


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "foreign"])
def test_a_torn_record_is_not_used(tmp_path, damage: str, caplog):
    """Prevents values from half a record, at whatever byte a writer died or a disk failed; what is before it stays."""
    cache = ReferenceCache(tmp_path)
    reference = Reference(lambda: tiny.tiny_model(seed=1), cache=cache)
    reference.logps(rows(3), BUDGET)
    (file,) = tmp_path.glob("*.bin")
    whole = file.stat().st_size
    reference.logps(rows(3, seed=9), BUDGET)
    contents = bytearray(file.read_bytes())
    if damage == "cut":
        contents = contents[:-3]
    elif damage == "flipped":
        contents[-1] ^= 1
    elif damage == "header":
        contents = contents[: whole + 10]
    else:
        contents = contents[:whole] + b"\x80\x04cos\nsystem\n" * 10
    file.write_bytes(contents)
    with caplog.at_level(logging.WARNING):
        again = ReferenceCache(tmp_path)
    assert len(again) == 6 and "not a whole record" in caplog.text
    assert again.has([key_of(row, branch) for row in rows(3) for branch in row.branches])
    assert not again.has([key_of(row, branch) for row in rows(3, seed=9) for branch in row.branches])


def test_two_processes_write_at_once(tmp_path):
    """Prevents writers that overwrite each other's values: each has a file of its own."""
    script = (
        "import sys; from pathlib import Path; from tests.models.test_reference_cache import *\n"
        "seeds = map(int, sys.argv[2:])\n"
        "reference = Reference(lambda: tiny.tiny_model(seed=1), cache=ReferenceCache(Path(sys.argv[1])))\n"
        "[reference.logps(rows(seed=seed), BUDGET) for seed in seeds]"
    )
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), *seeds], cwd=tiny.ROOT, env=environment)
        for seeds in (("1", "2", "3"), ("3", "4", "5"))
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    reference = Reference(never, cache=ReferenceCache(tmp_path))
    for seed in (1, 2, 3, 4, 5):
        reference.logps(rows(seed=seed), BUDGET)
    assert reference.cache.misses == 0 and len(list(tmp_path.glob("*.bin"))) == 2


def test_a_cache_that_cannot_be_written_is_worked_around(tmp_path, caplog):
    """Prevents a run that dies because of its cache: values are then kept in memory, and one line says so."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        cache = ReferenceCache(in_the_way / "cache")
        reference = Reference(lambda: tiny.tiny_model(seed=1), cache=cache)
        for _ in range(2):
            reference.logps(rows(), BUDGET)
    assert (cache.misses, cache.hits, cache.hits_on_disk) == (12, 12, 0)
    assert len(caplog.records) == 1 and "not kept on disk" in caplog.text


def test_a_disk_that_fills_up_costs_no_value(tmp_path, caplog, monkeypatch):
    """Prevents a step that fails, or values that are lost, because a record could not be appended."""
    cache = ReferenceCache(tmp_path)
    monkeypatch.setattr(cache, "_file", tmp_path / "missing" / "a.bin")
    reference = Reference(lambda: tiny.tiny_model(seed=1), cache=cache)
    with caplog.at_level(logging.WARNING):
        first = flat(reference.logps(rows(), BUDGET))
        second = flat(reference.logps(rows(), BUDGET))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert len(caplog.records) == 1


def test_settings_of_the_loss_share_the_values(tmp_path):
    """Prevents a sweep that computes its reference again: beta, weights of rows and micro-batches are not in the key.

    (TRL 1.16 recomputes when beta changes, and keeps old values when the truncation does.)
    """
    made = tiny.loader(UnpairedPreferenceDataLoader, 5, batch_size=100)
    step = next(made.epoch(0))
    gradients = []
    for number, options in enumerate(({}, {"loss__beta": 0.5}, {"model__tokens_per_microbatch": 60})):
        trainer = tiny.trainer(KTOTrainer, "kto", dtype=torch.float64, **options)
        load = never if number else trainer.computer.reference._load
        trainer.computer.reference = Reference(load, cache=ReferenceCache(tmp_path))
        trainer.computer.gradients([replace(row, weight=1.0 + number) for row in step])
        gradients.append(tiny.gradients(trainer.policy))
    assert gradients[0].norm() > 0 and tiny.relative(gradients[0], gradients[1]) > 1e-3
    # Another truncation is another sequence.
    shorter = [replace(row, responses={k: one.shortened(3) for k, one in row.responses.items()}) for row in step]
    trainer = tiny.trainer(KTOTrainer, "kto")
    trainer.computer.reference = Reference(never, cache=ReferenceCache(tmp_path))
    with pytest.raises(AssertionError, match="was loaded"):
        trainer.computer.gradients(shorter)
