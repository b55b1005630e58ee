"""hh: dialogues as text, with odd marks, and the counts of a real file."""

from pathlib import Path

import pytest

from dataloaders.datasets.hh import parse_dialogue

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "hh_harmless_base.jsonl.gz"


def dialogue(*contents):
    return "".join(f"\n\n{'Assistant' if place % 2 else 'Human'}: {text}" for place, text in enumerate(contents))


def reasons(sources, chosen, rejected):
    good = {"chosen": dialogue("ok?", "yes"), "rejected": dialogue("ok?", "no")}
    row = {"chosen": chosen, "rejected": rejected}
    return dict(sources.load("hh", path=sources.file([good, row]), test_fraction=0.0).dropped)


def test_marks_inside_a_text_are_text():
    """Prevents a reply that begins with "Human:" from being cut away: hh has dozens of them."""
    turns = parse_dialogue("\n\nHuman: Hi\nAssistant: no mark\n\nAssistant: Human: odd, but said")
    assert [turn["content"] for turn in turns] == ["Hi\nAssistant: no mark", "Human: odd, but said"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (dialogue("a", "b", "c", "d"), dialogue("a", "x", "c", "e"), "prompts of chosen and rejected differ"),
        (dialogue("a", "b", "c", "d"), dialogue("a", "b"), "prompts of chosen and rejected differ"),
        (dialogue("a", ""), dialogue("a", "b"), "empty response"),
        (dialogue("a", "b"), dialogue("a", "b "), "chosen equals rejected"),
        (dialogue("ok?", "yes"), dialogue("ok?", "no"), "same pair again"),
        (dialogue("", "b"), dialogue("", "c"), "empty prompt"),
        (dialogue("a"), dialogue("a"), "dialogue does not end with Assistant"),
        ("\n\nAssistant: b", "\n\nAssistant: c", "empty prompt"),
        (
            "\n\nAssistant: a" + dialogue("b", "c"),
            "\n\nAssistant: a" + dialogue("b", "d"),
            "conversation does not begin with the user",
        ),
        ("\n\nHuman: a" + dialogue("b", "c"), "\n\nHuman: a" + dialogue("b", "d"), "turns do not alternate"),
        ("Preface." + dialogue("a", "b"), dialogue("a", "c"), "dialogue does not begin with Human or Assistant"),
        ("", dialogue("a", "c"), "dialogue does not begin with Human or Assistant"),
    ],
)
def test_unusable_dialogue_is_counted_under_its_reason(sources, chosen, rejected, reason):
    """Prevents a rejected reply cut out by the length of the chosen prompt, and rows that vanish uncounted."""
    assert reasons(sources, chosen, rejected) == {reason: 1}


def test_rows_of_one_prompt_share_an_example(sources):
    """Prevents a prompt from being computed, and sampled, once for every pair of it."""
    rows = [
        {"chosen": dialogue("a", "b"), "rejected": dialogue("a", "c")},
        {"chosen": dialogue("a", "c"), "rejected": dialogue("a", "d")},
    ]
    dataset = sources.load("hh", path=sources.file(rows), test_fraction=0.0)
    (example,) = dataset
    assert example.generations == ["b", "c", "d"] and example.pairs == [(0, 1), (1, 2)] and example.sft_index == 0
    assert (dataset.rows, dataset.used) == (2, 2)


@pytest.mark.skipif(not REAL.exists(), reason=f"the real file {REAL.name} is not beside this checkout")
@pytest.mark.parametrize("name", ["hh", "hh_harmless"])
def test_every_row_of_the_real_file_is_accounted_for(sources, name):
    """Prevents real dialogues from being lost or mangled without a count."""
    whole = sources.load(name, path=str(REAL), test_path=str(REAL))
    assert whole.dropped == {
        "prompts of chosen and rejected differ": 4,
        "empty response": 3,
        "turns do not alternate": 3,
    }
    assert (whole.rows, whole.used, len(whole)) == (1800, 1790, 1789)
    assert sum(len(example.pairs) for example in whole) == sum(example.rows for example in whole) == 1790
    shares = [sources.load(name, split, path=str(REAL)) for split in ("train", "test")]
    assert [(share.rows, share.used, len(share)) for share in shares] == [(1704, 1695, 1694), (96, 95, 95)]
    assert shares[0].dropped + shares[1].dropped == whole.dropped
    assert not {example.prompt for example in shares[0]} & {example.prompt for example in shares[1]}
