"""The sum of squared probabilities over the vocabulary, in chunks, by tree rows and by padded ones."""

import pytest
import torch

from models.head import Head
from models.logprobs import ScoredSequence, branch_logps, token_logps
from models.probe import use_tree_rows
from models.tree_rows import Branch, TreeRow
from tests import tiny
from tests.trainers.steps import rows_of, step


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_squares_by_hand(softcap: float | None):
    """Prevents a sum of logits for one of probabilities, and chunks that are mixed up."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (50_000, 30))
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits.softmax(-1).square().sum(-1).log()
    assert torch.allclose(Head(weight, softcap=softcap).squares(hidden), expected)
    assert len(Head(weight).squares(hidden[:0])) == 0


def test_tree_rows_and_padded_ones_give_the_same():
    """Prevents squares at the place of another token on one of the two ways."""
    rows = [
        TreeRow(row.prompt, [Branch(one.ids, one.scored) for one in row.responses.values()]) for row in rows_of("dpo")
    ]
    model = tiny.tiny_model(dtype=torch.float64)
    head = Head.of(model)
    sequences = [ScoredSequence(row.prompt, *branch) for row in rows for branch in row.branches]
    logps, padded = token_logps(model, sequences, head.squares)
    ids = torch.tensor([*sequences[0].prompt, *sequences[0].response])
    plain = model(ids[None]).logits[0].softmax(-1).square().sum(-1).log()
    assert torch.allclose(padded[0], plain[len(sequences[0].prompt) - 1 : -1])
    assert use_tree_rows(model)
    ours, trees = branch_logps(model, rows, head.squares)
    for first, second in ((logps, ours), (padded, trees)):
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(first, second, strict=True))


def test_what_a_model_does_behind_its_head_is_in_the_squares_of_padded_rows():
    """Prevents WPO's weights, on padded rows, of other probabilities than those that are trained."""
    model = tiny.tiny_model(dtype=torch.float64)
    inner = model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits.pow(3) * 50
        return output

    model.forward = forward
    row = rows_of("dpo")[0]
    sequence = ScoredSequence(row.prompt, row.responses["chosen"].ids, row.responses["chosen"].scored)
    _, (squares,) = token_logps(model, [sequence], Head.of(model).squares)
    ids = torch.tensor([*sequence.prompt, *sequence.response])
    expected = model(ids[None]).logits[0].softmax(-1).square().sum(-1).log()[len(sequence.prompt) - 1 : -1]
    assert torch.allclose(squares, expected)
    of_the_head = Head.of(model).squares(model.base_model(ids[None]).last_hidden_state[0])
    assert not torch.allclose(squares, of_the_head[len(sequence.prompt) - 1 : -1])


def test_a_weight_is_no_gradient():
    """Prevents a policy that lowers its loss by making its own samples unlikely."""
    gradient, _ = step("wpo", rows_of("wpo"))
    assert gradient.norm() > 0
