"""eval.py under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.test_end_to_end import evaluated, trained


def test_processes_sample_and_evaluate_together(tmp_path):
    """Prevents samples or metrics that depend on how many processes made them, and a file that each of them writes."""
    run = trained(tmp_path, "loss=dpo")
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2"]
    script = [str(tiny.ROOT / "eval.py"), f"--config-path={run}"]
    sample = ["++mode=sample", "++sample_reference=true", "++n_samples=7", "++model.eval_batch_size=2"]
    sample += ["++max_new_tokens=6", f"++samples_dir={tmp_path}"]
    evaluated(run, *sample)
    alone = json.loads((tmp_path / "tiny_dpo.json").read_text())
    (tmp_path / "tiny_dpo.json").unlink()
    for command in ([*torchrun, *script, *sample], [*torchrun, *script, "++mode=eval"]):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "tiny_dpo.json").read_text())["samples"] == alone["samples"]
    report = json.loads((run / "eval-test.json").read_text())
    assert report["loss/eval"] == pytest.approx(evaluated(run, "++mode=eval")["loss/eval"], abs=1e-6)
