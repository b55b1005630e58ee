"""Sampling: reproducible, the same for a prompt alone and in a batch, and it says why it ended."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from models.generation.hf import HFGenerator, Nucleus, Replaced
from tests import tiny

PROMPTS = [np.arange(5, 5 + length, dtype=np.int32) for length in (7, 1, 12, 3, 9)]


def generator(model, **options) -> HFGenerator:
    defaults = {"stop_ids": {2}, "pad_id": 0, "max_length": 40, "max_new_tokens": 8, "batch_size": 3}
    return HFGenerator(model, **defaults | options)


def plain_greedy(model, prompt: np.ndarray, count: int) -> list[int]:
    """Token by token from full forward passes, without a cache or padding."""
    ids = [int(token) for token in prompt]
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_in_a_left_padded_batch_is_greedy_alone(family: str):
    """Prevents padding that is attended to or counted as positions, and a cache that goes wrong past a window."""
    model = tiny.tiny_model(family)
    completions = generator(model, temperature=0, stop_ids={-1}).generate(PROMPTS)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.ids.tolist() == plain_greedy(model, prompt, 8)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_completions_that_have_ended_leave_the_batch(family: str):
    """Prevents work on what has ended, and a cache, a mask or an order that is wrong for those that go on."""
    model = tiny.tiny_model(family).eval()
    alone = [plain_greedy(model, prompt, 24) for prompt in PROMPTS]
    stops = {alone[0][3], alone[2][10]}
    expected = [next((ids[:n] for n, token in enumerate(ids) if token in stops), ids) for ids in alone]
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(len(given["input_ids"])), with_kwargs=True)
    options = {"temperature": 0, "stop_ids": stops, "max_new_tokens": 24, "batch_size": 5}
    found = generator(model, **options).generate(PROMPTS)
    assert [one.ids.tolist() for one in found] == expected
    assert [one.finish_reason for one in found] == ["length" if len(ids) == 24 else "stop" for ids in expected]
    assert read[0] == 5 and read == sorted(read, reverse=True) and read[-1] < 4


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 5.0])
def test_the_nucleus_is_that_of_transformers(top_p: float, sharpness: float):
    """Prevents tokens that are lost where the likeliest few do not hold the nucleus, and a temperature after top-p."""
    torch.manual_seed(0)
    scores = sharpness * torch.randn(6, 9000, dtype=torch.float64)
    expected = TemperatureLogitsWarper(0.7)(None, scores)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = Nucleus(0.7, top_p)(None, scores)
    assert torch.equal(found, expected)
    assert torch.isfinite(found).any(dim=-1).all()


def test_the_seed_decides_and_nothing_else_does():
    """Prevents samples that depend on, or change, the global random state."""
    model = tiny.tiny_model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generator(model, seed=5).generate(PROMPTS)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = generator(model, seed=5).generate(PROMPTS)
    other = generator(model, seed=6).generate(PROMPTS)
    assert [c.ids.tolist() for c in first] == [c.ids.tolist() for c in second]
    assert [c.ids.tolist() for c in first] != [c.ids.tolist() for c in other]


def test_why_a_completion_ended():
    """Prevents a stop token in the text, text after it, and cut completions that pass for complete ones."""
    model = tiny.tiny_model()
    free = plain_greedy(model, PROMPTS[0], 8)
    stop = next(token for token in free[1:] if token != free[0])
    cut, ended = (generator(model, temperature=0, stop_ids=ids).generate(PROMPTS[:1])[0] for ids in ({-1}, {-1, stop}))
    assert (cut.finish_reason, len(cut.ids)) == ("length", 8)
    assert (ended.finish_reason, ended.ids.tolist()) == ("stop", free[: free.index(stop)])
    assert stop not in ended.ids
    assert (cut.end, ended.end) == (None, stop), "what a KL counts as part of the response"


def test_a_prompt_gets_the_room_that_it_has():
    """Prevents a completion beyond max_length in a batch whose shorter prompts have more room."""
    model = tiny.tiny_model()
    prompts = [np.arange(3, 3 + length, dtype=np.int32) for length in (4, 10)]
    completions = generator(model, stop_ids={-1}, max_length=12, max_new_tokens=None, batch_size=2).generate(prompts)
    assert [len(completion.ids) for completion in completions] == [8, 2]


def test_tokens_that_are_no_text_take_no_room():
    """Prevents samples of a model with control tokens that hold less text than others do, and a stop that moves.

    What comes is what would come anyway: a longer completion's beginning that has so many tokens of text.
    """
    model, uncounted = tiny.tiny_model(), range(1, tiny.VOCABULARY, 2)
    options = {"temperature": 1.0, "stop_ids": {-1}, "batch_size": 1}
    longer = generator(model, max_new_tokens=16, **options).generate(PROMPTS)
    found = generator(model, uncounted_ids=uncounted, **options).generate(PROMPTS)
    for one, other in zip(found, longer, strict=True):
        assert one.ids.tolist() == other.ids[: len(one.ids)].tolist() and one.end is None
        assert sum(token % 2 == 0 for token in one.ids) == 8 or len(one.ids) == 16, "at most as many as of text"
    assert any(8 < len(one.ids) < 16 for one in found)
    stop = int(found[0].ids[-1])
    ended = generator(model, uncounted_ids=uncounted, **options | {"stop_ids": {stop}}).generate(PROMPTS)[0]
    assert ended.end == stop and ended.ids.tolist() == found[0].ids[: found[0].ids.tolist().index(stop)].tolist()
    short = generator(model, uncounted_ids=uncounted, max_length=15, **options).generate(PROMPTS)
    assert [len(one.ids) for one in short][2] == 3, "no longer than max_length leaves"


def test_the_models_own_sampling_settings_do_not_interfere():
    """Prevents a greedy run that samples, and a top-k that nobody asked for, because the model's folder says so."""
    model = tiny.tiny_model()
    expected = [plain_greedy(model, prompt, 8) for prompt in PROMPTS]
    wide = generator(model, seed=1, temperature=3.0, top_p=1.0).generate(PROMPTS)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=1, top_p=0.1)
    completions = generator(model, temperature=0, stop_ids={-1}).generate(PROMPTS)
    assert [completion.ids.tolist() for completion in completions] == expected
    again = generator(model, seed=1, temperature=3.0, top_p=1.0).generate(PROMPTS)
    assert [c.ids.tolist() for c in wide] == [c.ids.tolist() for c in again]


def test_dropout_is_off_while_sampling():
    """Prevents a model in training mode from answering with dropout."""
    model = tiny.tiny_model("gpt2").train()
    completions = generator(model, temperature=0, stop_ids={-1}).generate(PROMPTS[:1])
    assert not model.training
    assert completions[0].ids.tolist() == plain_greedy(model, PROMPTS[0], 8)


@pytest.mark.parametrize("parts", [2, 3])
def test_processes_share_the_batches(parts: int):
    """Prevents samples that depend on the number of processes: each takes some batches, with their random numbers."""
    made = generator(tiny.tiny_model(), temperature=1.0, seed=3, batch_size=2)
    whole = made.generate(PROMPTS)
    shares = [made.generate(PROMPTS, part=part, parts=parts) for part in range(parts)]
    for index, completion in enumerate(whole):
        (found,) = [share[index] for share in shares if share[index] is not None]
        assert found.ids.tolist() == completion.ids.tolist()


def test_banned_tokens_top_k_and_a_least_length():
    """Prevents a control token in a sample, a top-k without effect, and samples that end before they may."""
    model = tiny.tiny_model()
    free = [c.ids for c in generator(model, temperature=1.0, stop_ids={-1}).generate(PROMPTS)]
    banned = sorted({int(token) for ids in free for token in ids[:4]})
    shut = generator(model, temperature=1.0, stop_ids={-1}, banned_ids=banned).generate(PROMPTS)
    assert not {int(token) for c in shut for token in c.ids} & set(banned)
    first = [int(ids[0]) for ids in free]
    greedy = generator(model, temperature=0, stop_ids={-1}, banned_ids=first).generate(PROMPTS[:1])
    assert not set(greedy[0].ids.tolist()) & set(first), "also where the likeliest token is taken"
    only = generator(model, temperature=5.0, top_k=1, stop_ids={-1}).generate(PROMPTS)
    assert [c.ids.tolist() for c in only] == [plain_greedy(model, prompt, 8) for prompt in PROMPTS]
    stop = int(only[0].ids[1])
    early = generator(model, temperature=0, stop_ids={stop}).generate(PROMPTS[:1])[0]
    late = generator(model, temperature=0, stop_ids={stop}, min_new_tokens=4).generate(PROMPTS[:1])[0]
    assert len(early.ids) < 2 and len(late.ids) >= 4


def test_a_replaced_token_gives_its_probability_to_one_other():
    """Prevents that what is banned makes all other tokens likelier, and one that is banned before it is replaced."""
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    found = Replaced({0: 2, 1: 2})(None, probabilities.log() + 5).softmax(dim=-1)
    expected = torch.tensor([[0, 0, 0.6, 0.4], [0, 0, 0.9, 0.1]], dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-12)
    model = tiny.tiny_model()
    (first,) = generator(model, temperature=0, stop_ids={-1}).generate(PROMPTS[:1])
    likeliest, other = int(first.ids[0]), (int(first.ids[0]) + 1) % 50
    for banned in ((), (likeliest,)):
        options = {"temperature": 0, "stop_ids": {-1}, "banned_ids": banned, "replaced_ids": {likeliest: other}}
        (greedy,) = generator(model, **options).generate(PROMPTS[:1])
        assert greedy.ids[0] == other and likeliest not in greedy.ids
