"""New tokens of a model that is there: what their embeddings begin with."""

from __future__ import annotations

import pytest
import torch

from models.vocabulary import embed_tokens


class Model(torch.nn.Module):
    """Embeddings and a head, far from zero."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Embedding(rows, width)
        self.head = torch.nn.Linear(width, rows)
        with torch.no_grad():
            for weight, middle in ((self.embedding.weight, 1.0), (self.head.weight, -2.0), (self.head.bias, 3.0)):
                weight.copy_(middle + 0.1 * torch.randn(weight.shape, generator=generator))

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_new_tokens_begin_at_the_mean_of_all_others_and_a_little_noise(noise: float):
    """Prevents control tokens that begin at zero, or so far from all others that the first steps are spent on them."""
    model = Model(12, 4096)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    embed_tokens(model, [10, 11], noise, seed=1)
    for weight, old in ((model.embedding.weight, "embedding.weight"), (model.head.weight, "head.weight")):
        assert torch.equal(weight[:10], before[old][:10])
        added = weight[10:].detach() - before[old][:10].mean(dim=0)
        assert added.std(dim=1).tolist() == pytest.approx([noise, noise], rel=0.05)
        assert added.mean(dim=1).abs().max() < 0.1 * noise, "6 standard errors"
        assert abs(torch.corrcoef(added)[0, 1]) < 0.1, "each has its own"
    assert model.head.bias[10:].tolist() == pytest.approx([before["head.bias"][:10].mean().item()] * 2)
    again = Model(12, 4096)
    embed_tokens(again, [10, 11], noise, seed=1)
    assert torch.equal(again.embedding.weight, model.embedding.weight), "a function of the seed"


def test_a_model_grows_for_new_tokens():
    """Prevents a head that shares its weights and gets another noise, and rows beside those that were asked for."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=10, n_positions=8))
    before = model.get_input_embeddings().weight.detach().clone()
    embed_tokens(model, [10, 11], 0.01, seed=1)
    weight = model.get_input_embeddings().weight.detach()
    assert weight.shape == (12, 8) and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(weight[:10], before)
    assert (weight[10:] - before.mean(dim=0)).abs().max() < 0.05
    assert not torch.equal(weight[10], weight[11])
