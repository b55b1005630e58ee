"""The rows of each optimizer step: all of them, as often as they should be, in an order that (seed, epoch) decides."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.base import EQUAL_WHEN_CUT, Source
from dataloaders.examples import Dataset
from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.sft import SFTDataLoader
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from launch.build import build_loader
from launch.compose import compose
from tests import tiny

LOADERS = (SFTDataLoader, PairedPreferenceDataLoader, UnpairedPreferenceDataLoader)


def identity(row) -> tuple:
    """What makes a row the one that it is, but for its mismatched response."""
    roles = sorted(role for role in row.responses if role != "KL")
    return (row.prompt.tobytes(), row.desirable, *(row.responses[role].ids.tobytes() for role in roles))


def epoch_of(loader, epoch: int = 0) -> list:
    return [row for step in loader.epoch(epoch) for row in step]


def feedback(good: int, bad: int) -> Dataset:
    """Single responses with a thumb, each to a prompt of its own."""
    made = Dataset("feedback")
    for number in range(good + bad):
        made.read()
        example = made.example(tiny.prompt(f"{number}?"))
        example.desirable[example.add(f"answer {number}")] = number < good
    return made


def unpaired(good: int, bad: int, batch_size: int, **options) -> UnpairedPreferenceDataLoader:
    return UnpairedPreferenceDataLoader(
        [Source(feedback(good, bad))], tiny.tokenize(), batch_size=batch_size, **options
    )


@pytest.mark.parametrize("kind", LOADERS)
@given(count=st.integers(2, 13), batch_size=st.integers(2, 9), epochs=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_row_once_an_epoch(kind, count: int, batch_size: int, epochs: int, seed: int):
    """Prevents rows that are dropped with a partial batch, doubled, or leaked from one epoch into the next."""
    loader = tiny.loader(kind, count, batch_size=batch_size, n_epochs=epochs, seed=seed)
    steps = list(loader)
    assert [len(step) for step in steps] == loader.sizes()
    expected = Counter({identity(row): epochs for row in loader.data})
    assert Counter(identity(row) for step in steps for row in step) == expected
    assert len(loader.data) == count * (2 if kind is UnpairedPreferenceDataLoader else 1)
    longest = batch_size if kind is not UnpairedPreferenceDataLoader else 2 * batch_size - 1
    assert all(0 < len(step) <= longest for step in steps)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_order_is_a_function_of_seed_and_epoch(kind):
    """Prevents an order that depends on global random state or on what was asked before; epochs and seeds differ."""

    def order(seed: int, epoch: int) -> list:
        return [identity(row) for row in epoch_of(tiny.loader(kind, 9, batch_size=4, seed=seed), epoch)]

    np.random.seed(0)
    first = order(1, 0)
    np.random.seed(1)
    loader = tiny.loader(kind, 9, batch_size=4, seed=1)
    list(loader.epoch(5))
    assert first == order(1, 0) == [identity(row) for row in epoch_of(loader)]
    assert first != order(1, 1) and sorted(first) == sorted(order(1, 1))
    assert first != order(2, 0)


def test_unshuffled_is_the_order_of_the_data_set():
    """Prevents a shuffle that cannot be turned off: a curriculum, or a comparison step by step."""
    loader = tiny.loader(PairedPreferenceDataLoader, 7, batch_size=3, shuffle=False)
    assert [identity(row) for row in epoch_of(loader)] == [identity(row) for row in loader.data]


@given(st.integers(1, 40))
def test_n_examples_ends_the_loader(limit: int):
    """Prevents a step beyond n_examples, or one that is missing: 12 pairs, 5 a step, 3 epochs."""
    loader = tiny.loader(PairedPreferenceDataLoader, 12, batch_size=5, n_epochs=3, n_examples=limit)
    sizes = [len(step) for step in loader]
    assert sizes == loader.sizes() and sum(sizes) == min(limit, 36)
    whole = tiny.loader(PairedPreferenceDataLoader, 12, batch_size=5, n_epochs=3)
    assert [identity(r) for s in loader for r in s] == [identity(r) for s in whole for r in s][: sum(sizes)]


@given(st.floats(0.1, 3.2), st.floats(0.1, 3.2))
def test_mixture_weights(first: float, second: float):
    """Prevents weights that are normalized away: 10 rows of weight 2.5 are seen 25 times, none of them more than 3."""
    sources = [
        Source(tiny.dataset(tiny.pairs(10, seed), f"set {seed}"), weight)
        for seed, weight in enumerate((first, second))
    ]  # fmt: skip
    loader = PairedPreferenceDataLoader(sources, tiny.tokenize(), batch_size=4)
    counts = Counter(identity(row) for row in epoch_of(loader))
    for name, weight in (("set 0", first), ("set 1", second)):
        seen = [counts[identity(row)] for row in loader.data if row.example.dataset_name == name]
        assert sum(seen) == int(weight) * 10 + round((weight - int(weight)) * 10)
        assert max(seen) - min(seen) <= 1


def test_a_fraction_is_chosen_anew_each_epoch():
    """Prevents half a data set from never being seen."""
    source = Source(tiny.dataset(tiny.pairs(20)), 0.5)
    loader = PairedPreferenceDataLoader([source], tiny.tokenize(), batch_size=4)
    chosen = [frozenset(identity(row) for row in epoch_of(loader, epoch)) for epoch in range(8)]
    assert {len(one) for one in chosen} == {10} and len(set(chosen)) > 1
    assert len(frozenset.union(*chosen)) > 18


def test_a_limit_of_a_data_set_is_of_its_rows_by_the_seed():
    """Prevents the first rows of a sorted file, and a limit that counts something else than the loss does."""
    for kind, limit in ((PairedPreferenceDataLoader, 5), (UnpairedPreferenceDataLoader, 5)):
        sets = []
        for seed in (0, 0, 1):
            loader = kind([Source(tiny.dataset(tiny.pairs(20)), n_examples=limit)], tiny.tokenize(), seed=seed)
            assert len(loader.data) == limit == loader.account["words"]["examples"]
            sets.append([identity(row) for row in loader.data])
        assert sets[0] == sets[1] != sets[2]


def test_the_same_prompt_in_two_data_sets_stays_two_rows():
    """Prevents one data set from overwriting another's feedback, as in HALOs."""
    sources = [Source(tiny.dataset([("q?", f"good {name}", "bad")], name)) for name in ("one", "two")]
    loader = PairedPreferenceDataLoader(sources, tiny.tokenize())
    assert [row.example.dataset_name for row in loader.data] == ["one", "two"]


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
def test_fixed_rows_are_fixed(kind):
    """Prevents evaluation curves over changing sets: the same at every call, whatever the loader did in between."""
    loader = tiny.loader(kind, 12, batch_size=5)
    first = [identity(row) for row in loader.fixed_rows(7)]
    list(loader)
    assert first == [identity(row) for row in loader.fixed_rows(7)] and len(first) == 7
    everything = loader.fixed_rows(None)
    assert first == [identity(row) for row in everything[:7]]
    assert Counter(map(identity, everything)) == Counter(map(identity, loader.data))


def test_fixed_rows_are_whole_examples():
    """Prevents a held-out set of halves of pairs, on which no pair accuracy could be computed: 8 rows are 4 pairs."""
    rows = tiny.loader(UnpairedPreferenceDataLoader, 12, batch_size=5).fixed_rows(8)
    counts = Counter(row.pair for row in rows)
    assert len(counts) == 4 and set(counts.values()) == {2}


# KTO -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    good=st.integers(1, 120), bad=st.integers(1, 120), batch_size=st.integers(2, 17), seed=st.integers(0, 9),
    limit=st.none() | st.integers(2, 150),
)  # fmt: skip
def test_both_classes_are_in_every_step(good: int, bad: int, batch_size: int, seed: int, limit: int | None):
    """Prevents steps that push in one direction only, also at 1 : 100 and in a step that n_examples cuts short.

    A loss with the mean of a class, such as SimpleKTO, would be nan in such a step. One that n_examples cuts to a
    single row is left out.
    """
    loader = unpaired(good, bad, batch_size, seed=seed, n_examples=limit)
    labels = [[row.desirable for row in step] for step in loader]
    assert all(set(step) == {True, False} for step in labels), labels
    assert [len(step) for step in labels] == loader.sizes()
    if limit is not None and limit <= len(loader.data):
        assert sum(loader.sizes()) in (limit, limit - 1)
    if limit is None:
        seen = Counter(identity(row) for row in epoch_of(loader))
        assert set(seen) == {identity(row) for row in loader.data}, "every row is there"
        assert set(seen[identity(row)] for row in loader.data if row.desirable == (good >= bad)) == {1}


def test_one_to_a_hundred():
    """Prevents an epoch whose rare class is in one step alone.

    Of 8 rows 7 may be common, so the rare one is seen 15 times: 115 rows are 14 steps, the rest joins the last of them.
    """
    labels = [[row.desirable for row in step] for step in unpaired(1, 100, 8)]
    assert [len(step) for step in labels] == [8] * 13 + [11]
    assert all(set(step) == {True, False} for step in labels)


@pytest.mark.parametrize(("good", "bad", "missing"), [(0, 4, "desirable"), (4, 0, "undesirable")])
def test_one_class_alone_is_refused(good: int, bad: int, missing: str):
    """Prevents KTO on thumbs of one kind."""
    with pytest.raises(ValueError, match=f"no {missing} response"):
        unpaired(good, bad, 2)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=4, max_size=24), st.integers(2, 8),
    st.integers(0, 5),
)  # fmt: skip
def test_mismatched_responses_do_not_match(rows: list[tuple[int, int]], batch_size: int, seed: int):
    """Prevents a KL of responses that answer their prompt: the prompt is another one, and so is the response."""
    made = Dataset("feedback")
    for number, (question, answer) in enumerate(rows):
        made.read()
        example = made.example(tiny.prompt(f"{question}?"), part=str(number))
        example.desirable[example.add(f"answer {answer}")] = number % 2 == 0
    sources = [Source(made)]
    answers_to = {}
    for question, answer in rows:
        answers_to.setdefault(question, set()).add(answer)
    try:
        steps = list(UnpairedPreferenceDataLoader(sources, tiny.tokenize(), batch_size=batch_size, seed=seed))
    except ValueError as error:
        assert "add prompts" in str(error)
        return
    decode = tiny.tokenize().tokenizer.decode
    for row in (row for step in steps for row in step):
        question = int(decode(row.prompt).split("user\n")[1].split("?")[0])
        own, other = (int(decode(row.responses[role].ids).split()[1][0]) for role in ("target", "KL"))
        assert other != own
        assert any(other in answers for one, answers in answers_to.items() if one != question)


def test_mismatched_responses_are_made_only_where_a_loss_names_them():
    """Prevents a loss without a KL from failing on data with a single prompt; one with a KL fails at once."""
    one_prompt = [Source(tiny.dataset([("the same", f"good {number}", f"bad {number}") for number in range(3)]))]
    with pytest.raises(ValueError, match=r"single prompt.*add prompts"):
        UnpairedPreferenceDataLoader(one_prompt, tiny.tokenize(), batch_size=4)
    loader = UnpairedPreferenceDataLoader(one_prompt, tiny.tokenize(), batch_size=4, mismatched=False)
    assert all(set(row.responses) == {"target"} for step in loader for row in step)
    config = compose(["loss=kto", "model=tiny", "datasets=[everyday]"])
    for trainer, expected in (
        ("KTOTrainer", {"target", "KL"}),
        ("tests.trainers.couplings.SimpleKTOTrainer", {"target"}),
    ):
        config.loss.trainer = trainer
        made = build_loader(config, tiny.tokenize(max_length=400, max_prompt_length=200), "test")
        assert set(made.fixed_rows(2)[0].responses) == expected, trainer


def test_a_mismatched_response_fits_behind_its_new_prompt():
    """Prevents sequences beyond max_length: a long response behind a long prompt is cut, and ends without an end."""
    pairs = [("p" * 80, "short", "brief"), ("q", "l" * 150, "m" * 150)]
    tokenize = tiny.tokenize(max_length=200, max_prompt_length=150)
    loader = UnpairedPreferenceDataLoader([Source(tiny.dataset(pairs))], tokenize, batch_size=4)
    rows = epoch_of(loader)
    assert all(len(row.prompt) + len(row.responses["KL"].ids) <= 200 for row in rows)
    cut = [row.responses["KL"] for row in rows if row.responses["KL"].cut]
    assert len(cut) == 2 and not any(tokenize.tokenizer.eos_token_id in response.ids for response in cut)


def test_pairs_keep_their_identity_and_labels():
    """Prevents a true pair accuracy over two halves of different pairs; it is the same in every process and run."""
    first, second = (tiny.loader(UnpairedPreferenceDataLoader, 6, batch_size=4) for _ in range(2))
    assert [row.pair for row in first.data] == [row.pair for row in second.data]
    for pair, rows in (
        (pair, [row for row in first.data if row.pair == pair]) for pair in {r.pair for r in first.data}
    ):
        assert [row.desirable for row in rows] == [True, False] and len({id(row.example) for row in rows}) == 1, pair


# The account -------------------------------------------------------------------------------------------------------


def test_every_row_is_used_or_counted():
    """Prevents silent drops: equal once cut, too long a question, no preference, another row of the same prompt."""
    same = "s" * 200
    rows = [
        ("q1", "good", "bad"),
        ("q2", same + "a", same + "b"),
        ("q3" + "x" * 300, "good", "bad"),
        ("q1", "fine", "bad"),
    ]
    rows += [(f"more {number}", "good", "bad") for number in range(6)]
    tokenize = tiny.tokenize(max_length=150, max_prompt_length=100)
    paired = PairedPreferenceDataLoader([Source(tiny.dataset(rows))], tokenize).account["words"]
    assert (paired["rows"], paired["used"], paired["examples"]) == (10, 8, 8)
    assert paired["dropped"] == {EQUAL_WHEN_CUT: 1, "last user turn longer than max_prompt_length": 1}
    sft = SFTDataLoader([Source(tiny.dataset(rows))], tokenize).account["words"]
    assert sft["dropped"] == {"another row of the same prompt": 1, "last user turn longer than max_prompt_length": 1}
    assert (sft["used"], sft["examples"], sft["cut"]["responses"]) == (8, 8, 2)
    kto = UnpairedPreferenceDataLoader([Source(tiny.dataset(rows))], tokenize).account["words"]
    assert (kto["used"], kto["examples"], kto["dropped"]) == (8, 16, paired["dropped"])


@pytest.mark.parametrize("bad", [5, 6])
def test_more_than_half_cut_is_an_error_with_the_reasons(bad: int):
    """Prevents training on scraps: of 10 rows 5 may be cut, 6 may not."""
    rows = [(f"q{n}", "a" + "x" * (300 if n < bad else 3), "b") for n in range(10)]
    tokenize = tiny.tokenize(max_length=100, max_prompt_length=60)
    if bad == 5:
        assert len(SFTDataLoader([Source(tiny.dataset(rows))], tokenize).data) == 10
        return
    with pytest.raises(ValueError, match=r"6 of the 10 train rows of words .*6 responses cut.*model\.max_length"):
        SFTDataLoader([Source(tiny.dataset(rows))], tokenize)


def test_nothing_left_is_an_error():
    """Prevents an empty training that looks like a finished one."""
    with pytest.raises(ValueError, match=r"no train example is left.*neither a label nor a preference"):
        made = Dataset("words")
        for number in range(3):
            made.read()
            made.example(tiny.prompt(f"{number}")).add("unlabelled")
        UnpairedPreferenceDataLoader([Source(made)], tiny.tokenize())


def test_weights_reach_the_rows():
    """Prevents sample weights that stop at the loader: a pair has the mean or the product of its two."""
    made = Dataset("words")
    made.read()
    example = made.example(tiny.prompt("q"))
    example.pairs.append((example.add("good", weight=3.0), example.add("bad", weight=0.5)))
    example.sft_index = 0
    for options, expected in (({}, 1.75), ({"pair_weight": "product"}, 1.5)):
        (row,) = PairedPreferenceDataLoader([Source(made)], tiny.tokenize(), **options).data
        assert row.weight == expected
    assert SFTDataLoader([Source(made)], tiny.tokenize()).data[0].weight == 3.0
    unpaired = UnpairedPreferenceDataLoader([Source(made)], tiny.tokenize(), mismatched=False)
    assert [row.weight for row in unpaired.data] == [3.0, 0.5]
    with pytest.raises(ValueError, match="pair_weight"):
        PairedPreferenceDataLoader([Source(made)], tiny.tokenize(), pair_weight="sum")


def test_labels_come_before_pairs():
    """Prevents a thumb from being overruled by a pair: two good answers, of which one is better, are both desirable."""
    made = Dataset("words")
    for number in range(2):
        made.read()
        example = made.example(tiny.prompt(f"{number}"))
        example.pairs.append(
            (example.add(f"best {number}", desirable=True), example.add("good", desirable=number == 0))
        )
    rows = UnpairedPreferenceDataLoader([Source(made)], tiny.tokenize()).data
    assert [row.desirable for row in rows] == [True, True, True, False]


class GivesNothing(PairedPreferenceDataLoader):
    """Somebody's loader that forgets an example without a word."""

    def rows(self, example, tokens):
        """The rows of every second example."""
        return [] if len(tokens.prompt) % 2 else super().rows(example, tokens)


class GivesText(PairedPreferenceDataLoader):
    """Somebody's loader that yields no Rows."""

    def rows(self, example, tokens):
        """See the class."""
        return ["a row"]


def test_rows_of_somebodys_loader_are_counted_and_checked():
    """Prevents examples that vanish uncounted, and a KeyError deep in a step."""
    loader = tiny.loader(GivesNothing, 12, batch_size=4)
    account = loader.account["words"]
    assert account["dropped"]["gave no row"] == 12 - len(loader.data) > 0
    assert account["used"] == len(loader.data)
    with pytest.raises(TypeError, match=r"GivesText.rows must yield Rows"):
        tiny.loader(GivesText, 3, batch_size=4)


@pytest.mark.parametrize("ids", [[5, 259], [5, 2**31], [-1, 5]])
def test_tokens_of_another_tokenizer_are_refused(ids: list[int]):
    """Prevents an index error deep in the model, or an overflow, for ids that data bring themselves."""
    made = Dataset("ids")
    made.read()
    example = made.example([3, 4])
    example.pairs.append((example.add(ids), example.add([6])))
    with pytest.raises(ValueError, match="another tokenizer"):
        PairedPreferenceDataLoader([Source(made)], tiny.tokenize())
