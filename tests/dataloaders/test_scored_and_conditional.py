"""Rows with rewards, and rows behind a control string."""

import numpy as np
import pytest

from dataloaders.base import Source
from dataloaders.conditional import ConditionalSFTDataLoader
from dataloaders.examples import Dataset, Example
from dataloaders.scored import ScoredDataLoader, rewards_of
from launch.evaluate import choose_prompts
from tests import tiny
from tests.trainers.steps import CONTROL


def scored(*groups: list[float | None]) -> Dataset:
    """A data set with a prompt for each list of scores."""
    made = Dataset("scored")
    for number, scores in enumerate(groups):
        made.read()
        example = made.example(tiny.prompt(f"question {number}"))
        for place, score in enumerate(scores):
            example.add(f"answer {place}", score=score)
    return made


def loader(dataset: Dataset, **options) -> ScoredDataLoader:
    return ScoredDataLoader([Source(dataset)], tiny.tokenize(), shuffle=False, **options)


def test_advantages_are_over_the_prompt():
    """Prevents a mean over the step, a sample deviation, and a score that is taken for an advantage."""
    rows = next(loader(scored([1.0, 2.0, 6.0], [0.0, 10.0])).epoch(0))
    assert [row.reward for row in rows] == [1, 2, 6, 0, 10]
    deviation = np.std([1, 2, 6]) + 0.01
    assert [row.advantage for row in rows[:3]] == pytest.approx([-2 / deviation, -1 / deviation, 3 / deviation])
    assert [row.advantage for row in rows[3:]] == pytest.approx([-5 / 5.01, 5 / 5.01])
    assert [row.group for row in rows] == [0, 0, 0, 1, 1]


def test_prompts_that_rank_nothing_are_counted():
    """Prevents a silent drop: equal scores, a single response and none are left out under a reason."""
    made = loader(scored([1.0, 2.0], [3.0, 3.0], [4.0], [None, None]))
    account = made.account["scored"]
    assert len(made.data) == 2
    assert account["dropped"] == {
        "no two responses that are worth different": 2, "neither a score, a label nor a preference": 1,
    }  # fmt: skip


def test_steps_hold_whole_prompts():
    """Prevents a ranking whose other half is in another step; larger prompts have a step of their own."""
    made = loader(scored([1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0]), batch_size=4)
    for epoch, shuffle in ((0, False), (1, True), (2, True)):
        made.shuffle = shuffle
        steps = [[row.group for row in step] for step in made.epoch(epoch)]
        assert sorted(group for step in steps for group in step) == [0] * 2 + [1] * 3 + [2] * 5 + [3] * 2
        assert all(len({group for group in step}) == 1 or len(step) <= 4 for step in steps)
        assert all(sum(group in step for step in steps) == 1 for group in range(4))


def test_a_loss_that_does_not_compare_keeps_what_ranks_nothing():
    """Prevents that offline PPO, which compares no responses of a prompt, is left without thumbs."""
    made = loader(scored([1.0, 2.0], [3.0, 3.0], [4.0]), compares=False)
    assert [row.reward for row in made.data] == [1, 2, 3, 3, 4]


def test_weights_draw_whole_prompts():
    """Prevents a ranking of half a prompt, and of a response against its own copy."""
    data = scored(*([1.0, 2.0, 3.0] for _ in range(8)))
    for weight, prompts in ((0.5, 4), (1.0, 8), (2.0, 16), (1.5, 12)):
        made = ScoredDataLoader([Source(data, weight)], tiny.tokenize(), batch_size=6)
        for epoch in (0, 1):
            for step in (steps := list(made.epoch(epoch))):
                groups = [row.group for row in step]
                assert all(groups.count(group) == 3 for group in groups), "a prompt and its copy are two groups"
            assert sum(map(len, steps)) == 3 * prompts
    assert len({tuple(map(tuple, made.steps(epoch))) for epoch in range(3)}) == 3


def test_n_examples_cuts_no_prompt():
    """Prevents a last step whose ranking lacks its best response."""
    data = scored(*([1.0, 2.0, 3.0] for _ in range(4)))
    for n_examples, sizes in ((12, [6, 6]), (11, [6, 3]), (7, [6]), (6, [6]), (4, [3])):
        made = ScoredDataLoader([Source(data)], tiny.tokenize(), batch_size=6, n_examples=n_examples)
        assert made.sizes() == sizes
        assert [len(step) for step in made] == sizes


def test_no_cap_cuts_a_prompt():
    """Prevents that the worst response is imitated because the better ones were left out by n_examples of a data set or
    by n_eval_examples."""
    data = scored(*([1.0, 2.0, 3.0] for _ in range(4)), [1.0, 2.0, 3.0, 4.0, 5.0])
    for limit, rows in ((12, {11, 12}), (4, {3}), (100, {17})):
        made = ScoredDataLoader([Source(data, n_examples=limit)], tiny.tokenize())
        assert len(made.data) in rows and made.account["scored"]["examples"] == len(made.data)
        assert all(sum(row.reward == 3 for row in made.data if row.group == one.group) == 1 for one in made.data)
    with pytest.raises(ValueError, match="n_examples=2 of a data set is less than the responses"):
        ScoredDataLoader([Source(data, n_examples=2)], tiny.tokenize())
    made = loader(data)
    assert [len(made.fixed_rows(limit)) for limit in (3, 4, 6, 11, 16, None)] == [3, 3, 6, 9, 12, 17]
    with pytest.raises(ValueError, match="n_eval_examples=2 is less"):
        made.fixed_rows(2)


def test_a_second_pass_over_a_prompt_is_no_other_prompt():
    """Prevents responses to two prompts that are ranked against each other, where prompts before them were left out."""
    data = scored([1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [1.0, 2.0], [1.0, 2.0])
    made = ScoredDataLoader([Source(data, 3.0)], tiny.tokenize(), shuffle=False, batch_size=100)
    (rows,) = made.epoch(0)
    prompts = {row.group: row.prompt.tobytes() for row in rows}
    assert len(prompts) == 6 and all(prompts[row.group] == row.prompt.tobytes() for row in rows)


def test_scores_that_float32_cannot_tell_apart_are_equal():
    """Prevents a best response that is none, in the precision that losses compute in."""
    made = loader(scored([16777216.0, 16777217.0], [1.0, 2.0]))
    assert [row.reward for row in made.data] == [1, 2]


def test_rewards_without_scores():
    """Prevents a reward for what nobody judged, and a middle response that is worth as much as the best."""
    chain = Example("p", ["best", "middle", "worst", "unknown"], pairs=[(0, 1), (1, 2)])
    for values in (chain.scores, chain.desirable):
        values += [None] * 4
    assert rewards_of(chain) == [1.0, 0.0, -1.0, None]
    chain.desirable[:2] = [True, False]
    assert rewards_of(chain) == [1.0, -1.0, None, None]
    chain.scores[3] = 0.5
    assert rewards_of(chain) == [None, None, None, 0.5]


def conditional(control=CONTROL, **options) -> ConditionalSFTDataLoader:
    source = Source(tiny.dataset(tiny.pairs(4)))
    return ConditionalSFTDataLoader([source], tiny.tokenize(**options), control_tokens=control, shuffle=False)


def test_the_control_string_ends_the_prompt_and_is_not_learned():
    """Prevents a string on the wrong class, inside the response, or one that is scored."""
    tokenize = tiny.tokenize()
    plain = tiny.loader(tiny_unpaired(), 4, shuffle=False, mismatched=False)
    for row, before in zip(conditional().data, plain.data, strict=True):
        control = tokenize.tokenizer(CONTROL["chosen" if row.desirable else "rejected"]).input_ids
        assert row.prompt.tolist() == before.prompt.tolist() + control
        assert row.responses["target"].ids.tolist() == before.responses["target"].ids.tolist()
        assert row.responses["target"].scored.all()
    assert {row.desirable for row in conditional().data} == {True, False}


def tiny_unpaired():
    from dataloaders.unpaired import UnpairedPreferenceDataLoader

    return UnpairedPreferenceDataLoader


def test_a_control_string_takes_its_room_from_the_response():
    """Prevents a sequence that is longer than max_length by the control string."""
    longest = max(len(row.prompt) + len(row.responses["target"].ids) for row in conditional().data)
    rows = conditional(max_length=longest - 3, max_prompt_length=40).data
    assert max(len(row.prompt) + len(row.responses["target"].ids) for row in rows) <= longest - 3


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"chosen": "", "rejected": "b"}, "control_tokens.chosen is empty"),
        ({"chosen": "a", "rejected": "a"}, "the same"),
    ],
)
def test_control_strings_that_say_nothing_are_refused(control, message):
    """Prevents conditional SFT that conditions on nothing."""
    with pytest.raises(ValueError, match=message):
        conditional(control)


def test_seeds_are_sampled_for_the_same_prompts():
    """Prevents a ranking over seeds that have a handful of prompts in common: each chose its own."""
    tokenize = tiny.tokenize()
    few, others, more = (
        {example.prompt for example in choose_prompts(tiny.config("dpo", seed=seed, n_samples=count), tokenize)[0]}
        for seed, count in ((1, 5), (2, 5), (3, 9))
    )
    assert few == others and few < more and len(more) == 9


def test_sampling_puts_the_good_string_there():
    """Prevents samples of a model that was never told to be good."""
    tokenize = tiny.tokenize()
    plain, conditioned = (choose_prompts(tiny.config(loss, n_samples=3), tokenize)[1] for loss in ("sft", "csft"))
    suffix = tokenize.tokenizer("<|good|>").input_ids
    assert [ids.tolist() + suffix for ids in plain] == [ids.tolist() for ids in conditioned]
