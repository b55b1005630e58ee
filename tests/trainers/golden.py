"""Twenty steps of every loss on a tiny model through the command line: what they are, and their record.

python -m tests.trainers.golden      records them anew, where a change of the numbers is meant
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from dataloaders.pretraining import PretrainingDataLoader
from dataloaders.resolve import resolve
from tests import documents

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("golden.json")


def dataloader_of(name: str) -> str:
    """The DataLoader that a loss's YAML names."""
    return OmegaConf.load(ROOT / "config" / "loss" / f"{name}.yaml").dataloader


LOSSES = sorted(file.stem for file in (ROOT / "config" / "loss").glob("*.yaml"))
STEPS = 20
ON_DOCUMENTS = [
    name for name in LOSSES if issubclass(resolve(dataloader_of(name), "dataloaders"), PretrainingDataLoader)
]
SETTINGS = [
    "model=tiny", "model.batch_size=4", f"n_examples={4 * STEPS}", "n_eval_examples=8",
    "do_first_eval=false", "lr=1e-5", "device=cpu",
]  # fmt: skip


def trajectories(folder: Path) -> dict[str, list[float]]:
    """The losses of all steps of each loss, from a multirun on the embedded data and one on documents."""
    others = [name for name in LOSSES if name not in ON_DOCUMENTS]
    for names, data in ((others, ["datasets=[everyday]"]), (ON_DOCUMENTS, documents.command())):
        command = [sys.executable, "train.py", "-m", f"loss={','.join(names)}", *SETTINGS, *data, f"cache_dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
    made = {}
    for file in folder.glob("*/metrics.jsonl"):
        name = OmegaConf.load(file.with_name("config.yaml")).loss.name
        records = map(json.loads, file.read_text().splitlines())
        made[name] = [round(record["loss/train"], 6) for record in records if record["split"] == "train"]
    return made


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = trajectories(Path(temporary))
    RECORD.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(found[name])}' for name in sorted(found)) + "\n}\n")
