"""A checkpoint in Detoxify's format, a BERT of two layers with random weights, and the folder that its config names."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ".",
]
CLASSES = ["toxic", "severe_toxic", "insult"]
OUTPUTS = 5


def make(folder: Path, **changed: object) -> tuple[str, str]:
    """Writes both; returns the checkpoint's path and the folder's. `changed` are other arguments of `arch`.

    It has more outputs than labels, as Detoxify's `unbiased` has: 16, of which the first 7 have a label."""
    torch.manual_seed(0)
    base = folder / "base"
    base.mkdir(parents=True)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=OUTPUTS, initializer_range=0.5,
    )  # fmt: skip
    config.save_pretrained(base)
    (base / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(base / "vocab.txt")).save_pretrained(base)
    state = BertForSequenceClassification(config).state_dict()
    state["bert.embeddings.position_ids"] = torch.arange(32)  # as checkpoints of old transformers have it
    arch = {"model_name": "BertForSequenceClassification", "model_type": "bert-base-uncased", "num_classes": OUTPUTS}
    contents = {
        "state_dict": state,
        "config": {"arch": {"args": arch | changed}, "dataset": {"args": {"classes": CLASSES}}},
    }
    torch.save(contents, folder / "tiny.ckpt")
    return str(folder / "tiny.ckpt"), str(base)
