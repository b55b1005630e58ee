"""What loading and training take of a process: `python -m tests.trainers.memory_worker load|train FILE key=value ...`.

Alone, or under torchrun. Writes to FILE, with the rank behind its name, the peaks of anonymous memory (what is mapped
from files is not in it) since a run of a small model, which imported what there is to import: of loading the policy, of
loading the reference beside it, and of a training, in bytes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from launch import build
from launch.compose import compose
from launch.train import run
from trainers import distributed

SMALL = ["model=tiny", "n_examples=8", "n_eval_examples=4", "model.batch_size=4", "exp_name=small", "overwrite=true"]


def anonymous() -> int:
    """Bytes of this process's memory that no file stands for."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@contextmanager
def peak(found: dict[str, int], name: str, start: int) -> Iterator[None]:
    """Looks every few milliseconds, and notes the most that was there beyond `start`."""
    done, seen = threading.Event(), [0]

    def look() -> None:
        while not done.is_set():
            seen.append(max(seen.pop(), anonymous() - start))
            time.sleep(0.002)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield
    finally:
        done.set()
        looker.join()
        found[name] = seen[0]


def load(config: DictConfig, found: dict[str, int]) -> None:
    """The policy, and then the reference beside it."""
    device, start = torch.device("cpu"), anonymous()
    with peak(found, "policy", start):
        model = build.build_start(config, device)
        reference = build.build_reference(config, device, model)
        model = build.build_policy(config, model, reference, build.build_sharding(config, device))
    with peak(found, "reference", start):
        assert reference.model is not None and model is not None


def train(config: DictConfig, found: dict[str, int]) -> None:
    """The whole run."""
    with peak(found, "training", anonymous()):
        run(config)


def main(what: str, file: str, *arguments: str) -> None:
    """Measures, after a run of a small model."""
    torch.set_num_threads(1)
    config, found = compose(list(arguments)), {}
    run(compose([*SMALL, f"cache_dir={config.cache_dir}", f"distributed={config.distributed.name}", "device=cpu"]))
    {"load": load, "train": train}[what](config, found)
    Path(f"{file}{distributed.rank()}").write_text(json.dumps(found))
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
