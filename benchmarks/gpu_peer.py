"""TRL on the made-up rows of `benchmarks.work`, with a model of the same shape: same arguments, its last line is JSON.

Run by an interpreter that has trl (requirements-bench.txt). A word of the text is a token, so that TRL tokenizes to
the same lengths; the end token that it appends takes the place of each response's last one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.work import made_up_steps, parser
from dataloaders.batches import Row
from launch.compose import compose
from models.loading import load_model
from trainers.metrics import peak_memory_gb

END = "w2"


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose token 7 is the word w7."""
    words = {f"w{number}": number for number in range(vocabulary)}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token="w1", unk_token="w0")


def as_text(ids: Sequence[int], continued: bool = False) -> str:
    """The words of tokens; those of a response begin with a space."""
    return (" " if continued else "") + " ".join(f"w{number}" for number in ids)


def table_of(rows: Sequence[Row], method: str) -> Dataset:
    """What TRL trains on: pairs, or single responses with labels."""
    table = []
    for row in rows:
        texts = {role: as_text(one.ids[:-1], continued=True) for role, one in row.responses.items()}
        if method == "dpo":
            table.append({"prompt": as_text(row.prompt), "chosen": texts["chosen"], "rejected": texts["rejected"]})
        else:
            table.append({"prompt": as_text(row.prompt), "completion": texts["target"], "label": row.desirable})
    return Dataset.from_list(table)


class StepClock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts a step's clock."""
        _wait()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stops it when the device is done."""
        _wait()
        self.seconds.append(time.perf_counter() - self.start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains by TRL; returns seconds of the steps, tokens, peak memory and losses."""
    from peft import LoraConfig

    config = compose([f"model={options.model}"]).model
    shape = OmegaConf.to_container(config.shape, resolve=True)
    steps = made_up_steps(options, config.shape.vocabulary)
    half = torch.bfloat16 if options.lora and options.dtype == "bf16" else torch.float32
    load = lambda: load_model("random", shape=shape).to(half)  # noqa: E731
    tokenizer = word_tokenizer(config.shape.vocabulary)
    clock = StepClock()
    kind, arguments = _classes(options.method)
    in_a_step = len(steps[0])
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=load(), ref_model=None if options.lora else load(), processing_class=tokenizer, callbacks=[clock],
            train_dataset=table_of([row for rows in steps for row in rows], options.method),
            peft_config=LoraConfig(r=options.lora, target_modules="all-linear") if options.lora else None,
            args=arguments(
                output_dir=folder, per_device_train_batch_size=options.batch, learning_rate=options.lr,
                gradient_accumulation_steps=max(1, in_a_step // options.batch), num_train_epochs=1,
                lr_scheduler_type="constant", bf16=options.dtype == "bf16", use_cpu=options.device == "cpu",
                gradient_checkpointing=options.checkpointing, max_length=None, beta=0.1, logging_steps=1,
                report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=options.device != "cpu",
            ),
        )  # fmt: skip
        trainer._get_train_sampler = lambda *_, **__: SequentialSampler(trainer.train_dataset)
        trainer.train()
    tokens = [
        sum(len(row.prompt) + len(one.ids) for row in rows for role, one in row.responses.items() if role != "KL")
        for rows in steps
    ]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": clock.seconds, "tokens_of_steps": tokens, "losses": losses,
        "rss_peak_mb": peak_memory_gb(torch.device(options.device)) * 1024,
    }  # fmt: skip


def _classes(method: str) -> tuple[type, type]:
    import trl

    name = method.upper()
    return getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")


if __name__ == "__main__":
    made = parser()
    made.add_argument("--batch", type=int, default=8, help="rows of a forward pass of TRL's")
    print(json.dumps(measure(made.parse_args())))
