"""The README taken apart: its commands, its files, its tree; and what stands in for a hub when they are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import warm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = README[README.index("## Tutorial") : README.index("## Where things are")]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text."""

    language: str
    text: str

    @property
    def path(self) -> str | None:
        """The file that a block is, when its first line says so (its second one after a `@package`)."""
        match = re.match(r"(?:# @package .*\n)?# ([\w./-]+\.(?:py|yaml))[ \n]", self.text)
        return match.group(1) if match else None


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def commands(text: str) -> list[list[str]]:
    """The commands of all bash blocks, as argument lists."""
    lines = [
        line
        for block in blocks(text)
        if block.language == "bash"
        for line in block.text.replace("\\\n", " ").splitlines()
        if line
    ]
    return [shlex.split(line) for line in lines]


def tutorial_files() -> dict[str, str]:
    """path -> contents, as they stand in the README."""
    return {b.path: b.text for b in blocks(TUTORIAL) if b.path}


def run(command: list[str], folder: Path, expect: int = 0, **environment: str) -> str:
    """Runs `python SCRIPT ...` in a folder, offline; returns what it printed."""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", **environment}
    if command[0] in ("python", sys.executable) and Path(command[1]).is_absolute():  # not a copy of the tree
        done = warm.run(command, folder, settings, timeout=280)
    else:
        command = [sys.executable if command[0] == "python" else command[0], *command[1:]]
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=280)
    printed = done.stdout + done.stderr
    assert done.returncode == expect, f"{shlex.join(command)} ended with {done.returncode}:\n{printed[-4000:]}"
    return printed


def stand_ins(folder: Path) -> dict[str, list[str]]:
    """Small files and a small model in place of the hub: for each name in a command the overrides that name them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from models.byte_tokenizer import byte_tokenizer

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=259, num_key_value_heads=1, **shape)).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rows: dict[str, list[dict]] = {name: [] for name in ("shp", "hh", "oasst")}
    for n in range(40):
        dialogue = f"\n\nHuman: Question {n}?\n\nAssistant: "
        rows["hh"].append({"chosen": f"{dialogue}Good {n}.", "rejected": f"{dialogue}Bad, and long {n}."})
        reply = {"human_ref_A": f"Reply {n}", "human_ref_B": f"Other {n}", "labels": n % 2, "post_id": f"p{n}"}
        rows["shp"].append(
            {"history": f"Post {n}", "score_A": 9 if n % 2 else 2, "score_B": 2 if n % 2 else 9, **reply}
        )
        tree = [
            (f"q{n}", None, "prompter", None),
            (f"a{n}", f"q{n}", "assistant", 0),
            (f"b{n}", f"q{n}", "assistant", 1),
        ]
        for identity, parent, role, rank in tree:
            message = {"message_id": identity, "parent_id": parent, "role": role, "rank": rank, "lang": "en"}
            rows["oasst"].append(
                {**message, "text": f"Text of {identity}", "message_tree_id": f"q{n}", "deleted": False}
            )
    overrides = {}
    for name, some in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        overrides[name] = [f"datasets.{name}.path={path}", f"datasets.{name}.test_fraction=0.3"]
    overrides["model"] = [f"++model.name_or_path={folder / 'model'}"]
    return overrides
