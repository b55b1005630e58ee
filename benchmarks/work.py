"""The work that is measured: HH pairs or made-up rows, trained on by DPO or KTO, and what it costs on paper.

`python -m benchmarks.work --help`: one measurement in a process of its own; its last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dataloaders.base import DataLoader, Source
from dataloaders.batches import Row, trees
from dataloaders.chat_format import MARKERS, chat_format
from dataloaders.datasets import load_dataset
from dataloaders.examples import Example
from dataloaders.paired import PairedPreferenceDataLoader
from dataloaders.tokenization import ExampleTokenizer, Response
from dataloaders.unpaired import UnpairedPreferenceDataLoader
from launch.build import build_policy
from launch.compose import compose
from models.compilation import compile_blocks
from models.loading import load_model, load_tokenizer
from models.memory import keep_freed_memory
from models.quantization import quantize
from models.reference import Reference
from models.reference_cache import ReferenceCache, folder_for, weights_digest
from models.tree_rows import Pack
from trainers.basic import BasicTrainer
from trainers.metrics import Averages, peak_memory_gb
from trainers.optimization import optimization
from trainers.paired import DPOTrainer
from trainers.unpaired import KTOTrainer

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
TRAINERS: dict[str, type[BasicTrainer]] = {"dpo": DPOTrainer, "kto": KTOTrainer}
# The raw text of the file: our data set strips the space after a colon, so it is part of these strings.
STRINGS = ("\n\nHuman: ", "", "\n\nAssistant: ", "")


class InFileOrder(UnpairedPreferenceDataLoader):
    """TRL's order and pairing: chosen and rejected in turn, mismatched with the row before in the batch."""

    def arrange(self, indices: np.ndarray) -> list[np.ndarray]:
        """Steps in file order, whatever their classes."""
        return DataLoader.arrange(self, indices)

    def finish(self, order: np.ndarray, start: int, stop: int) -> list[Row]:
        """Rotates the responses of a step by one."""
        rows = [self.data[index] for index in order[start:stop]]
        return [
            replace(row, responses={**row.responses, "KL": rows[place - 1].responses["target"]})
            for place, row in enumerate(rows)
        ]


def hh_steps(options: argparse.Namespace, tokenizer: Any) -> list[list[Row]]:
    """The first pairs of a file of HH rows in file order, as optimizer steps of `options.step` pairs."""
    tokenize = ExampleTokenizer(tokenizer, chat_format(tokenizer, *STRINGS), 1024, 512)
    dataset = load_dataset("hh", "train", "get_hh", MARKERS, {"path": options.data, "test_path": options.data})
    per_pair = {"dpo": 1, "kto": 2}[options.method]
    kind = {"dpo": PairedPreferenceDataLoader, "kto": InFileOrder}[options.method]
    loader = kind(
        [Source(dataset)], tokenize, batch_size=options.step * per_pair, n_examples=options.pairs * per_pair,
        shuffle=False,
    )  # fmt: skip
    return list(loader)


def made_up_steps(options: argparse.Namespace, vocabulary: int) -> list[list[Row]]:
    """Steps of random tokens: `options.pairs` prompts in all, each with `options.responses` responses, in pairs.

    Their lengths are all the same, or those of a file of [prompt, chosen, rejected]. KTO has a row for each response,
    in its turn desirable and not, and as mismatched response that of the row before.
    """
    generator = np.random.default_rng(0)
    same = (options.prompt_length, options.response_length, options.response_length)
    lengths = itertools.cycle(json.loads(Path(options.lengths).read_text()) if options.lengths else [same])

    def ids(count: int) -> np.ndarray:
        return generator.integers(5, vocabulary, size=count).astype(np.int32)

    def response(count: int) -> Response:
        return Response(ids(count), np.ones(count, dtype=bool))

    rows: list[Row] = []
    for number, (before, chosen, rejected) in zip(range(options.pairs), lengths, strict=False):
        prompt, example = ids(before), Example(str(number), dataset_name="made-up")
        for _ in range(options.responses // 2):
            both = response(chosen), response(rejected)
            if options.method == "dpo":
                rows.append(Row(prompt, dict(zip(("chosen", "rejected"), both, strict=True)), example, 1.0))
                continue
            for one, desirable in zip(both, (True, False), strict=True):
                other = rows[-1].responses["target"] if rows else both[1]
                rows.append(Row(prompt, {"target": one, "KL": other}, example, 1.0, desirable))
    size = options.step * options.responses // (2 if options.method == "dpo" else 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def make_trainer(options: argparse.Namespace, model: str, tokenizer: Any, device: torch.device) -> BasicTrainer:
    """A trainer with TRL's settings: AdamW, no warm-up, no weight decay, clipped at 1."""
    config: DictConfig = compose([f"loss={options.method}", f"model={options.model}"])
    dtype = DTYPES[options.dtype]
    settings = {
        "lr": options.lr, "warmup": 0.0, "weight_decay": 0.0, "model.policy_dtype": dtype,
        "model.reference_dtype": dtype, "model.tokens_per_microbatch": options.tokens_per_microbatch,
        "model.activation_checkpointing": options.checkpointing, "model.lora.rank": options.lora,
        "model.lora.quantize": options.quantize, "model.compile": options.compile, "optimizer": options.optimizer,
    }  # fmt: skip
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    shape = OmegaConf.to_container(config.model.shape, resolve=True)

    def load() -> Any:
        loaded = load_model(model, shape=shape)
        if options.quantize:
            quantize(loaded, options.quantize)
        return loaded.to(device)

    start = load()
    cache, digest = None, weights_digest(start)  # which also reads the weights, so that they are in memory
    if options.cache:
        cache = ReferenceCache(folder_for(options.cache, digest, getattr(torch, dtype), device))

    def load_reference() -> Any:
        model = load()
        if options.compile:
            compile_blocks(model)
        return model

    reference = Reference(load_reference, getattr(torch, dtype), cache)
    policy = build_policy(config, start, reference)
    if cache is None or not len(cache):
        weights_digest(reference.model)
    return TRAINERS[options.method](config, tokenizer, policy, reference, None, (), None, None)


# What a step costs on paper ------------------------------------------------------------------------------------------


def flops(trainer: BasicTrainer, rows: Sequence[Row], cached: bool) -> float:
    """Floating-point operations that a step needs: for each weight and token 2 forward, 2 for the slope of its input,
    and 2 more for its own where it is trained; and attention.

    A prompt is counted once for all responses of a pass in the step, the head at scored positions, embeddings not at
    all; nothing that is computed a second time is counted.
    """
    computer = trainer.computer
    policy_still, reference_still = (
        [role for which, role in computer._still if which == model] for model in ("policy", "reference")
    )
    total = _pass(trainer, rows, computer.trained_roles, training=True) + _pass(trainer, rows, policy_still)
    return total if cached else total + _pass(trainer, rows, reference_still, adapter=False)


def _pass(
    trainer: BasicTrainer, rows: Sequence[Row], roles: Sequence[str], training: bool = False, adapter: bool = True
) -> float:
    """Operations of a pass over some roles of a step; of a reference pass without what LoRA adds."""
    if not roles:
        return 0.0
    policy = trainer.policy
    config = policy.config.get_text_config()
    made, _ = trees(rows, roles, budget=sys.maxsize)
    pack = Pack.of(made)
    head = policy.get_output_embeddings()
    total = 0.0
    for name, module in policy.named_modules():
        linear = isinstance(module, torch.nn.Linear)
        if not (linear or type(module).__name__ == "Conv1D") or (".lora_" in name and not adapter):
            continue
        size = module.in_features * module.out_features if linear else module.weight.numel()
        each = 2 + ((4 if module.weight.requires_grad else 2) if training else 0)
        total += each * size * (len(pack.targets) if module is head else len(pack))
    queries = [stretch.stop - stretch.start for stretch in pack.stretches]
    seen = sum(
        n * (n + 1) / 2 + n * (stretch.prompt[1] - stretch.prompt[0])
        for n, stretch in zip(queries, pack.stretches, strict=True)
    )
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return total + (6 if training else 2) * 2 * width * config.num_hidden_layers * seen


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of square matrix products, the median of seven; larger ones on a GPU, smaller
    ones where a product would take seconds: processors without bfloat16 imitate it."""
    size = 8192 if device.type == "cuda" else 2048
    if device.type == "cpu":
        little = torch.randn(256, 256).to(dtype)
        for _ in range(2):
            start = time.perf_counter()
            little @ little
            took = time.perf_counter() - start
        while size > 256 and took * (size / 256) ** 3 > 1:
            size //= 2
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


# One measurement -----------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trains over all steps; returns seconds, losses, tokens, memory and rates."""
    keep_freed_memory()
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = compose([f"model={options.model}"]).model
    name = "random" if options.random else config.name_or_path
    tokenizer = load_tokenizer(name)
    vocabulary = config.shape.vocabulary if options.random else len(tokenizer)
    steps = hh_steps(options, tokenizer) if options.data else made_up_steps(options, vocabulary)
    trainer = make_trainer(options, name, tokenizer, device)
    optimizer, rate = optimization(trainer.config, trainer.parameters, len(steps))
    cached = options.cache is not None and len(trainer.computer.reference.cache) > 0
    dtype = getattr(torch, DTYPES[options.dtype])
    rates = [matmul_rate(dtype, device)]
    before = peak_memory_gb(device)
    seconds, losses, norms = [], [], []
    shares: dict[str, float] = {}
    for number, rows in enumerate(steps, start=1):
        averages = Averages()
        profiled = options.profile and number == len(steps)
        start = time.perf_counter()
        with profiler(shares) if profiled else contextlib.nullcontext():
            for group in optimizer.param_groups:
                group["lr"] = rate(number - 1)
            norms.append(trainer.step(optimizer, rows, averages))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        losses.append(averages.means()["loss"])
        rates.append(matmul_rate(dtype, device))  # between steps: a shared machine's speed changes within minutes
    peak = peak_memory_gb(device)
    tokens = [trainer.tokens(rows) for rows in steps]
    work = [flops(trainer, rows, cached) for rows in steps]
    return {
        "tokens": sum(tokens), "seconds": sum(seconds), "steps": seconds, "tokens_of_steps": tokens, "losses": losses,
        "rss_before_mb": before * 1024, "rss_peak_mb": peak * 1024, "cached": cached,
        "gigaflops": [one / 1e9 for one in work],
        "matmul_gflops_per_second": [round(rate / 1e9, 1) for rate in rates],
        **trainer.computer.token_shares(),
        **({"profile": shares} if options.profile else {}),
    }  # fmt: skip


@contextlib.contextmanager
def profiler(shares: dict[str, float]) -> Iterator[None]:
    """Inside, operations are timed; afterwards `shares` has what each took of the time of all, the most first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    for event in sorted(events, key=lambda one: -one.self_cpu_time_total)[:20]:
        shares[event.key.removeprefix("aten::")] = round(event.self_cpu_time_total / total, 4)


def parser() -> argparse.ArgumentParser:
    """The arguments of one measurement."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--method", choices=["dpo", "kto"], default="dpo")
    made.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    made.add_argument("--model", default="smollm2-135m", help="a file in config/model")
    made.add_argument("--device", default="cpu")
    made.add_argument("--data", help="a file of HH rows; without it the rows are made up")
    made.add_argument("--pairs", type=int, default=32, help="pairs in all (made-up rows: prompts)")
    made.add_argument("--step", type=int, default=4, help="of them in an optimizer step")
    made.add_argument("--prompt-length", type=int, default=128)
    made.add_argument("--response-length", type=int, default=128)
    made.add_argument("--responses", type=int, default=2, help="to each made-up prompt")
    made.add_argument("--lengths", help="JSON of [prompt, chosen, rejected] lengths, in the place of these")
    made.add_argument("--random", action="store_true", help="random weights of the model's shape")
    made.add_argument("--lora", type=int, help="rank of an adapter that is trained in the place of the weights")
    made.add_argument("--lr", type=float, default=1e-6)
    made.add_argument("--tokens-per-microbatch", type=int, default=1024)
    made.add_argument("--checkpointing", action="store_true")
    made.add_argument("--quantize", help="nf4: the frozen weights of LoRA in 4 bits")
    made.add_argument("--compile", action="store_true")
    made.add_argument("--optimizer", default="AdamW")
    made.add_argument("--profile", action="store_true", help="what each operation takes of the last step")
    made.add_argument("--cache", help="folder of reference values, for runs to share")
    return made


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args())))
