"""Tree rows are exact: log-probabilities and gradients of plain sequences, in every family, over random trees."""

import itertools
import logging
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from models import tree_attention
from models.head import Head
from models.logprobs import (
    ScoredSequence,
    branch_logps,
    cut,
    packed_logps,
    plain_attention,
    token_logps,
    uses_tree_rows,
)
from models.probe import small_config, use_tree_rows, verdict_on
from models.tree_rows import Branch, Pack, TreeRow, pack_rows
from tests import tiny


@st.composite
def forests(draw, most_rows: int = 4) -> list[TreeRow]:
    """Rows of one to eight branches, one-token prompts and responses among them, some tokens not scored."""
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows = []
    for _ in range(draw(st.integers(1, most_rows))):
        lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=8))
        branches = [Branch(words(generator, n), generator.random(n) < 0.8) for n in lengths]
        rows.append(TreeRow(words(generator, draw(st.integers(0, 14))), branches))
    return rows


def words(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(3, tiny.VOCABULARY, size=count).astype(np.int32)


def sequences_of(rows: list[TreeRow]) -> list[ScoredSequence]:
    return [ScoredSequence(row.prompt, *branch) for row in rows for branch in row.branches]


@contextmanager
def path(name: str):
    """Inside, attention over packs takes one path."""
    chosen = tree_attention.path_for
    tree_attention.path_for = lambda *_: name
    try:
        yield
    finally:
        tree_attention.path_for = chosen


MODELS = {family: tiny.tiny_model(family) for family in tiny.FAMILIES}
for model in MODELS.values():
    use_tree_rows(model)


def both(model, rows):
    """(log-probabilities, gradient) by padded sequences and by tree rows, of a weighted sum of all of them."""
    results = []
    for compute in (lambda: token_logps(model, sequences_of(rows)), lambda: branch_logps(model, rows)):
        values = torch.cat(compute())
        model.zero_grad()
        if len(values):
            (values * torch.linspace(-1, 2, len(values))).sum().backward()
        results.append((values.detach(), tiny.gradients(model)))
    return results


@pytest.mark.parametrize("way", ["blocks", "dense"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@settings(max_examples=15, deadline=None)
@given(rows=forests())
def test_trees_are_exact(family: str, way: str, rows: list[TreeRow]):
    """Prevents a branch that sees another one or too little of its prompt, a window that counts places in the pack
    instead of positions, and a first token that is predicted from the wrong place: 1e-4 nat, 1e-4 of the gradient."""
    with path(way):
        (plain, plain_gradient), (ours, gradient) = both(MODELS[family], rows)
    assert len(plain) == len(ours)
    assert torch.allclose(plain, ours, atol=1e-4, rtol=0)
    if len(plain):
        assert tiny.relative(plain_gradient, gradient) < 1e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_uses_trees(family: str):
    """Prevents tests of trees that compare padded rows with themselves."""
    assert uses_tree_rows(MODELS[family])
    rows = [TreeRow(np.arange(5, 15), [Branch(np.arange(20, 25), np.ones(5, bool))] * 3)]
    seen = []
    hook = MODELS[family].base_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    branch_logps(MODELS[family], rows)
    hook.remove()
    assert seen == [(1, 10 + 3 * 5)], "the prompt once"


def test_a_row_is_what_it_is_in_a_crowd():
    """Prevents rows of a pack that see each other: alone, and among others in any order, the values are the same."""
    generator = np.random.default_rng(0)
    rows = [
        TreeRow(words(generator, n), [Branch(words(generator, 5), np.ones(5, bool)) for _ in range(2)])
        for n in (1, 30, 7)
    ]
    model = MODELS["mistral"]
    alone = [branch_logps(model, [row]) for row in rows]
    crowd = branch_logps(model, rows[::-1])
    for values, expected in zip((crowd[4:], crowd[2:4], crowd[:2]), alone, strict=True):
        for value, one in zip(values, expected, strict=True):
            assert torch.allclose(value, one, atol=1e-5)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=40),
    budget=st.integers(1, 150),
)
def test_packs_are_within_the_budget_and_full(lengths: list[tuple[int, int]], budget: int):
    """Prevents lost rows, packs beyond the budget, and two packs that would fit into one."""
    rows = [TreeRow(np.zeros(p, np.int64), [Branch(np.zeros(n, np.int64), np.ones(n, bool))]) for p, n in lengths]
    groups = pack_rows(rows, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    sizes = [sum(len(rows[index]) for index in group) for group in groups]
    assert all(size <= budget or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    smallest = sorted(sizes)[:2]
    assert len(groups) == 1 or sum(smallest) > budget


# The head ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (2.0, 1.5)])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_head_in_chunks_is_log_softmax(bias: bool, scale: float, softcap: float | None, chunk: int, monkeypatch):
    """Prevents a chunk that is left out or counted twice, and a derivative that forgets scale or soft-capping."""
    torch.manual_seed(0)
    hidden, weight, offset = (torch.randn(size, dtype=torch.float64) for size in ((7, 5), (11, 5), (11,)))
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, offset)]
    targets, slopes = torch.randint(11, (7,)), torch.randn(7, dtype=torch.float64)
    monkeypatch.setattr("models.head.LEAST_ROWS", 1)
    monkeypatch.setattr("models.head.CHUNK_BYTES", 8 * 11 * chunk)
    monkeypatch.setattr("models.head.CACHE_BYTES", 4 * 11 * 2)  # two rows
    logits = hidden @ weight.T * scale + (offset * scale if bias else 0)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]
    values = Head(weight, offset if bias else None, scale, softcap).logps(hidden, targets)
    assert torch.allclose(values, expected)
    used = leaves if bias else leaves[:2]
    wanted = torch.autograd.grad(expected, used, slopes)
    weight.grad = torch.ones_like(weight)
    values.backward(slopes)
    assert torch.allclose(weight.grad, wanted[1] + 1), "added to what was there"
    for leaf, slope in zip(used[::2], wanted[::2], strict=True):
        assert torch.allclose(leaf.grad, slope)


def test_the_head_in_bfloat16_sums_in_float32(monkeypatch):
    """Prevents normalizers or a gradient's sum over chunks in bfloat16: each is off by no more than one rounding."""
    torch.manual_seed(0)
    master = torch.nn.Parameter(torch.randn(40, 16).bfloat16().float())
    hidden, weight = torch.randn(300, 16).bfloat16(), torch.nn.Parameter(master.detach().bfloat16())
    weight.copy_of = master
    targets = torch.randint(40, (300,))
    monkeypatch.setattr("models.head.LEAST_ROWS", 1)
    monkeypatch.setattr("models.head.CHUNK_BYTES", 2 * 40 * 2)  # two rows, so 150 summands
    monkeypatch.setattr("models.head._PRODUCT_ROWS", 7)
    values = Head(weight).logps(hidden, targets)
    assert values.dtype == torch.float32
    products = (hidden @ weight.T).float()
    assert torch.allclose(values, torch.log_softmax(products, -1).gather(1, targets[:, None])[:, 0], atol=1e-5)
    values.sum().backward()
    one_hot = torch.nn.functional.one_hot(targets, 40)
    slopes = (one_hot - products.softmax(-1)).bfloat16().double()
    wanted = slopes.T @ hidden.double()
    assert weight.grad is None
    assert tiny.relative(wanted, master.grad.double()) < 4e-3


def test_no_logits_outlive_their_chunk(monkeypatch):
    """Prevents (tokens x vocabulary) in the graph: what is saved for backward is small."""
    monkeypatch.setattr("models.head.CHUNK_BYTES", 0)
    hidden = torch.randn(400, 8, requires_grad=True)
    weight = torch.randn(5000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        Head(weight).logps(hidden, torch.zeros(400, dtype=torch.long)).sum().backward()
    assert kept and max(kept) <= weight.numel()


# Models for which trees are wrong ------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": tiny.VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("bloom", SMALL | {"n_head": 4, "n_layer": 2}),  # a bias by position; ignores a registered attention
        (
            "gpt_neo",
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "vocab_size": tiny.VOCABULARY,
                "attention_types": [[["global", "local"], 1]],
            },
        ),
        ("mamba", SMALL | {"state_size": 4}),  # a state goes from token to token
        ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}),  # convolutions
    ],
)
def test_what_trees_cannot_do_takes_padded_rows_with_one_warning(kind: str, options: dict, caplog):
    """Prevents silently wrong values where a model mixes positions in another way, or ignores the tree."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()
    with caplog.at_level(logging.WARNING, logger="models.probe"):
        assert not use_tree_rows(model)
    (warning,) = [record for record in caplog.records if record.name == "models.probe"]
    assert "padded rows" in warning.getMessage()
    generator = np.random.default_rng(0)
    rows = [
        TreeRow(words(generator, 4), [Branch(words(generator, n), np.ones(n, bool)) for n in (3, 6)]) for _ in range(2)
    ]
    for values, one in zip(branch_logps(model, rows), sequences_of(rows), strict=True):
        assert torch.allclose(values, token_logps(model, [one])[0], atol=1e-4)
    assert sorted(index for group in cut(model, rows, 20) for index in group) == [0, 1]


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox"]
)
def test_the_probe_takes_the_families_at_their_own_size(kind: str):
    """Prevents a family that silently falls back to padding; windows are crossed, every kind of layer is there."""
    config = AutoConfig.for_model(kind, **({"sliding_window": 4096} if kind == "mistral" else {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert verdict_on(model).reason is None
    small = small_config(config)
    window = getattr(small, "sliding_window", None)
    assert window is None or window <= 5
    kinds = set(getattr(config, "layer_types", None) or [])
    assert kinds == set(getattr(small, "layer_types", None) or [])


def test_the_probe_sees_a_wrong_attention(monkeypatch):
    """Prevents a probe that cannot fail: an attention that takes a row for a chain, or forgets the window."""
    from models import probe

    right = tree_attention.by_blocks

    def chained(query, key, value, pack, scores):
        return right(query, key, value, probe._as_chains(pack), scores)

    def without_window(query, key, value, pack, scores):
        return right(query, key, value, pack, scores._replace(window=None))

    model = tiny.tiny_model("mistral")
    for wrong in (chained, without_window):
        monkeypatch.setattr(probe, "_verdicts", {})
        monkeypatch.setitem(tree_attention.PATHS, "blocks", wrong)
        assert "differ by" in verdict_on(model).reason


def test_a_model_that_uses_trees_cannot_be_run_otherwise_by_mistake():
    """Prevents plain rows whose attention quietly has no mask; generation runs inside `plain_attention`."""
    model = tiny.tiny_model()
    ids = torch.arange(3, 9)[None]
    before = model(ids).logits
    use_tree_rows(model)
    with pytest.raises(NotImplementedError, match="tree rows"):
        model(ids)
    with plain_attention(model):
        assert torch.equal(model(ids).logits, before)
    assert uses_tree_rows(model)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
def test_activation_checkpointing_changes_nothing(family: str):
    """Prevents a second forward pass, inside backward, that no longer knows of the tree."""
    generator = np.random.default_rng(0)
    rows = [TreeRow(words(generator, 9), [Branch(words(generator, n), np.ones(n, bool)) for n in (3, 6)])] * 2
    gradients = []
    for checkpoints in (False, True):
        model = tiny.tiny_model(family)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        use_tree_rows(model)
        if checkpoints:
            model.activation_checkpointing_enable({"use_reentrant": False})
        passes: list[int] = []
        model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.cat(branch_logps(model.train(), rows)).sum().backward()
        assert len(passes) == 1 + checkpoints
        gradients.append(tiny.gradients(model))
    assert tiny.relative(*gradients) < 1e-6


def test_dropout_in_the_attention_is_refused():
    """Prevents a dropout that is asked for and quietly not done; models are loaded with it off."""
    model = tiny.tiny_model("mistral").train()
    use_tree_rows(model)
    with pytest.raises(NotImplementedError):
        branch_logps(model, [TreeRow(np.arange(5, 9), [Branch(np.arange(9, 12), np.ones(3, bool))])])


# Kernels for a GPU, as far as they can be tried without one ----------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
@settings(max_examples=15, deadline=None)
@given(rows=forests())
def test_the_plan_of_the_variable_length_kernel(family: str, rows: list[TreeRow]):
    """Prevents wrong keys or lengths for the kernel: it is replaced by its definition, sequence by sequence."""

    def by_definition(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        outputs = []
        for (q0, q1), (k0, k1) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
            assert q1 - q0 <= max_q and k1 - k0 <= max_k
            q, k, v = (part.transpose(0, 1)[None] for part in (query[q0:q1], key[k0:k1], value[k0:k1]))
            distance = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
            mask = (distance >= 0) & ((distance <= window_size[0]) if window_size[0] >= 0 else True)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("torch.nn.attention.varlen.varlen_attn", by_definition)
        with path("varlen"):
            ours = packed_logps(MODELS[family], Pack.of(rows))
        with path("dense"):
            expected = packed_logps(MODELS[family], Pack.of(rows))
    assert torch.allclose(torch.cat(ours), torch.cat(expected), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the kernel is tried by its definition alone")
def test_the_variable_length_kernel_on_a_gpu():
    """The kernel itself beside the dense mask, in bfloat16."""
    generator = np.random.default_rng(0)
    rows = [
        TreeRow(words(generator, n), [Branch(words(generator, m), np.ones(m, bool)) for m in (3, 20)]) for n in (1, 40)
    ]
    model = tiny.tiny_model("mistral").to("cuda", torch.bfloat16)
    use_tree_rows(model)
    results = []
    for way in ("varlen", "dense"):
        with path(way), torch.no_grad():
            results.append(torch.cat(branch_logps(model, rows, torch.bfloat16)))
    assert (results[0] - results[1]).abs().mean() < 0.05
