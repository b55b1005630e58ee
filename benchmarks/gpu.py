"""Speed on a GPU: Llama shapes with random weights on the length mix of HH. Writes gpu.json.

    python -m benchmarks.gpu                        1B in full and 8B by LoRA, DPO and KTO, on the first GPU
    python -m benchmarks.gpu --device cpu --toy     the same on a tiny shape, to see that it runs: no figure is kept
    python -m benchmarks.gpu --peer-python PYTHON   beside TRL, by an interpreter that has it (requirements-bench.txt)

Figures are tokens of whole sequences a second ("real"), tokens that were computed a second ("unique"), peak memory, and
the model FLOPs utilization: operations that the step needs over what the GPU can do in bfloat16 on paper.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OURS = [sys.executable, "-m", "benchmarks.work"]
HERE = Path(__file__).resolve().parent
PAPER_TFLOPS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200 NVL": 835.0, "H200": 989.0, "A100": 312.0,
}  # fmt: skip
"""Dense bfloat16, from the makers' data sheets; the first that a GPU's name contains."""
CASES = [
    (model, method, extra)
    for model, extra in (("llama3-2-1b", []), ("llama3-8b", ["--lora", "16", "--checkpointing"]))
    for method in ("dpo", "kto")
]
ALWAYS = ["--random", "--dtype", "bf16", "--lengths", str(HERE / "hh_lengths.json")]


def measure(model: str, method: str, extra: list[str], device: str, peer: list[str] | None = None) -> dict[str, Any]:
    """One case in a process of its own; the first step, which makes the optimizer's state, is left out of rates.

    Args:
        peer: the command that measures TRL in the place of ours.
    """
    command = [*(peer or OURS), "--model", model, "--method", method, "--device", device]
    done = subprocess.run([*command, *ALWAYS, *extra], capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    seconds, tokens = sum(result["steps"][1:]), sum(result["tokens_of_steps"][1:])
    row = {
        "implementation": "trl" if peer else "aureole", "model": model, "method": method,
        "settings": " ".join([*ALWAYS[:-1], *extra]), "real_tokens_per_second": tokens / seconds,
        "peak_gb": result["rss_peak_mb"] / 1024, "losses": result["losses"],
    }  # fmt: skip
    if peer:
        return row
    return row | {
        "unique_tokens_per_second": tokens * result["tokens/unique_share"] / seconds,
        "real_share": result["tokens/real_share"],
        "tflops_per_second": sum(result["gigaflops"][1:]) / seconds / 1000,
        "matmul_tflops_per_second": [rate / 1000 for rate in result["matmul_gflops_per_second"]],
    }


def main() -> None:
    """Measures all cases and writes them down; a toy run shows them and keeps nothing."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="a tiny shape and few rows")
    parser.add_argument("--peer-python", help="an interpreter that has trl: measures it as well")
    parser.add_argument("--output", default=str(HERE / "gpu.json"))
    options = parser.parse_args()
    if not options.toy and (options.device == "cpu" or not torch.cuda.is_available()):
        sys.exit("there is no GPU: try --device cpu --toy, which shows that it runs and keeps no figure")
    sizes = ["--pairs", "6", "--step", "3"] if options.toy else ["--pairs", "160", "--step", "32"]
    budget = ["--tokens-per-microbatch", "1024" if options.toy else "16384"]
    rows = []
    for model, method, extra in CASES:
        name = "tiny" if options.toy else model
        rows.append(measure(name, method, [*sizes, *budget, *extra], options.device))
        print(json.dumps(rows[-1], indent=1))
        for batch in ("4", "8", "16") if options.peer_python else ():
            peer = [options.peer_python, "-m", "benchmarks.gpu_peer", "--batch", batch]
            rows.append(measure(name, method, [*sizes, *extra], options.device, peer))
            print(json.dumps(rows[-1], indent=1))
    if options.toy:
        print("No figure is kept: this was a tiny shape.")
        return
    name = torch.cuda.get_device_name()
    paper = next((rate for key, rate in PAPER_TFLOPS.items() if key in name), None)
    for row in rows:
        if "tflops_per_second" in row:
            row["mfu"] = row["tflops_per_second"] / paper if paper else None
    Path(options.output).write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
