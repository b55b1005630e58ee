"""docs/losses.md: made of what the losses say of themselves, and of all of them."""

import re
from pathlib import Path

import pytest
import torch

from docs import landscapes, make_losses
from tests.trainers.steps import LOADERS, LOSSES

PAGE = Path(make_losses.__file__).with_name("losses.md")
ALL = {loss.name: loss for loss in make_losses.all_losses()}


def test_the_page_is_what_the_command_makes():
    """Prevents a page that says what a loss was: `make docs` writes it anew."""
    assert PAGE.read_text() == make_losses.page(list(ALL.values())), "run `make docs`"


def test_every_loss_has_its_yaml_section_and_row():
    """Prevents a loss without a word: YAMLs, sections, rows and the tests' table have the same names."""
    text = PAGE.read_text()
    sections = re.findall(r"^### (\S+)$", text, re.MULTILINE)
    rows = re.findall(r"^\| \[(\S+)\]\(#\S+\) \| \S.* \| \S.* \|$", text, re.MULTILINE)
    assert sorted(sections) == sorted(rows) == sorted(ALL) == LOSSES == sorted(LOADERS)
    assert len(LOSSES) >= 35


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_loss_says_what_it_is(name: str):
    """Prevents a docstring without a formula, a source, a word on when to use it, or a key that is not explained."""
    loss = ALL[name]
    text = " ".join(loss.paragraphs)
    assert any(paragraph.startswith("    ") for paragraph in loss.paragraphs) or name == "mpo", "no formula"
    assert re.search(r"\b(19|20)\d\d\b|HALOs|maximum likelihood", text), "no source"
    assert "Use it" in text or "Use this" in text, "not when to use it"
    for key, words in loss.settings.items():
        assert len(words) > 5 or key in ("losses", "control_tokens"), f"{key} is not explained"


def loader_of(name: str) -> str:
    return ALL[name].config.dataloader


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_landscape_says_what_it_is_over(name: str):
    """Prevents a loss without a reference that is drawn over log-ratios, and a family whose plot nobody explains."""
    label, *_ = landscapes.curves(ALL[name])
    if loader_of(name) == "PairedPreferenceDataLoader":
        assert label == (
            "m = r(y_w) - r(y_l), nats" if ALL[name].config.use_reference_model else "l(y_w) - l(y_l), nats"
        )
    assert ALL[name].family.split()[0] in landscapes.CAPTIONS


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_landscape_is_the_loss(name: str):
    """Prevents a plot of nothing: curves are finite, and fall where the loss wants to go (but for two of them)."""
    _, x, drawn = landscapes.curves(ALL[name])
    for curve, values in drawn.items():
        (slopes,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
        assert values.shape == x.shape and torch.isfinite(values).all() and torch.isfinite(slopes).all()
        middle = len(x) // 2
        rising = curve in ("undesirable", "worse") or (curve == "bad" and name == "unlikelihood")
        if name not in ("apo_down", "discopop"):
            assert (slopes[middle] > 0) == rising, f"{curve} goes the wrong way"
        if loader_of(name) == "UnpairedPreferenceDataLoader":
            assert (values.diff() * (1 if rising else -1) > 0).all(), "flat: both responses were moved at once"


def test_the_plots_are_there():
    """Prevents a page with pictures that nobody has drawn."""
    names = re.findall(r"\]\((\S+\.png)\)", PAGE.read_text())
    assert len(names) == 5
    for name in names:
        contents = PAGE.with_name(name).read_bytes()
        assert contents.startswith(b"\x89PNG") and len(contents) > 10_000
