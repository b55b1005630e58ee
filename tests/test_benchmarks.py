"""What the benchmarks count and say, on a tiny model: figures are only worth what these are."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import gpu, saving
from benchmarks.coverage import lowest, mean_of_cut_normal, settings, simulate
from benchmarks.speed import largest_difference, record, table
from benchmarks.work import flops, made_up_steps, measure, parser
from tests import tiny
from tests.readme import ROOT
from trainers.paired import DPOTrainer
from trainers.unpaired import KTOTrainer

SMALL = ["--model", "tiny", "--pairs", "4", "--step", "2", "--prompt-length", "7", "--response-length", "5"]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_flops_by_hand(method: str):
    """Prevents a rate that flatters: each weight and token once, a prompt once, the head on scored tokens alone."""
    prompt, one, other = range(10, 17), range(20, 24), range(30, 36)
    roles = {"chosen": one, "rejected": other} if method == "dpo" else {"target": one, "KL": other}
    row = tiny.row(prompt, desirable=True, **roles)
    trainer = tiny.trainer({"dpo": DPOTrainer, "kto": KTOTrainer}[method], method)
    hidden, inner, layers, heads, size, vocabulary = 16, 24, 2, 2, 8, tiny.VOCABULARY
    trunk = layers * (2 * hidden * heads * size + 2 * hidden * size + 3 * hidden * inner)

    def forward(*responses: int) -> float:
        tokens = 7 + sum(responses)
        first, *rest = responses
        seen = (7 + first) * (8 + first) / 2 + sum(n * (n + 1) / 2 + n * 7 for n in rest)
        return trunk * tokens + hidden * vocabulary * sum(responses) + 2 * layers * heads * size * seen

    both = forward(4, 6)
    wanted = 6 * both + 2 * both if method == "dpo" else 6 * forward(4) + 2 * forward(6) + 2 * both
    assert flops(trainer, [row], cached=False) == wanted
    assert flops(trainer, [row], cached=True) == wanted - 2 * both


def test_flops_of_an_adapter_by_hand():
    """Prevents a rate of LoRA that counts slopes of frozen weights, or adapters in the reference pass."""
    row = tiny.row(range(10, 17), chosen=range(20, 24), rejected=range(30, 36))
    trainer = tiny.trainer(DPOTrainer, "dpo")
    plain = flops(trainer, [row], cached=True)
    trainer.policy.requires_grad_(False)
    tokens, size = 7 + 4 + 6, 16 * 16
    frozen = flops(trainer, [row], cached=True)
    weights = sum(module.weight.numel() for module in trainer.policy.modules() if isinstance(module, torch.nn.Linear))
    head = trainer.policy.get_output_embeddings().weight.numel()
    assert plain - frozen == 2 * ((weights - head) * tokens + head * 10)
    layer = trainer.policy.base_model.layers[0].self_attn.o_proj
    layer.add_module("lora_A", torch.nn.Linear(16, 16, bias=False))
    assert flops(trainer, [row], cached=True) - frozen == 6 * size * tokens
    assert flops(trainer, [row], cached=False) - flops(trainer, [row], cached=True) == 2 * (
        (weights - head) * tokens + head * 10 + (plain - 6 * ((weights - head) * tokens + head * 10)) / 6
    )


def test_a_measurement_counts_what_was_done(tmp_path):
    """Prevents tokens that were not trained on, and a cached run that computes the reference after all."""
    options = parser().parse_args([*SMALL, "--cache", str(tmp_path), "--responses", "4"])
    first, second = measure(options), measure(options)
    assert first["tokens"] == second["tokens"] == 4 * 4 * (7 + 5)
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["losses"] == second["losses"] and first["losses"][0] == pytest.approx(math.log(2))
    assert len(first["steps"]) == 2 and sum(first["steps"]) == first["seconds"]
    assert first["gigaflops"] > second["gigaflops"]
    assert first["tokens/unique_share"] == pytest.approx((7 + 4 * 5) / (4 * 12))


def test_a_profile_says_where_the_time_goes():
    """Prevents a profile of the wrong step, or of nothing: shares of the time, matrix products among the first."""
    shares = measure(parser().parse_args([*SMALL, "--profile"]))["profile"]
    assert 0.5 < sum(shares.values()) <= 1.001 and list(shares.values()) == sorted(shares.values(), reverse=True)
    assert {"mm", "_fused_adamw_"} & set(shares)


def test_a_measurement_is_a_process_that_prints_json():
    """Prevents an output that `make bench` cannot read."""
    command = [sys.executable, "-m", "benchmarks.work", *SMALL, "--dtype", "bf16", "--method", "dpo"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    result = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(result["losses"]).all() and min(result["matmul_gflops_per_second"]) > 0


def test_the_gpu_benchmark_runs_without_a_gpu(monkeypatch):
    """Prevents a script that fails on the day that there is a GPU; without one it takes no figure."""
    sizes = ["--pairs", "6", "--step", "3", "--tokens-per-microbatch", "1024"]
    row = gpu.measure("tiny", "kto", [*sizes, "--lora", "2", "--checkpointing"], "cpu")
    assert 0 < row["unique_tokens_per_second"] < row["real_tokens_per_second"] and row["real_share"] == 1
    assert row["losses"][0] == pytest.approx(0.5, abs=0.01)
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        with pytest.raises(SystemExit, match="there is no GPU"):
            gpu.main()


def test_lengths_are_those_of_the_data():
    """Prevents a length mix that is none of HH's: three lengths a pair, none beyond what the model is given."""
    lengths = json.loads((ROOT / "benchmarks" / "hh_lengths.json").read_text())
    assert len(lengths) >= 150 and all(min(three) > 0 and sum(three[:2]) <= 1024 for three in lengths)
    options = parser().parse_args(
        ["--lengths", str(ROOT / "benchmarks" / "hh_lengths.json"), "--pairs", "3", "--step", "2"]
    )
    steps = made_up_steps(options, 100)
    sizes = [[len(row.prompt), *(len(one.ids) for one in row.responses.values())] for step in steps for row in step]
    assert [len(step) for step in steps] == [2, 1] and sizes == lengths[:3]


def test_the_table_is_to_the_peers_best():
    """Prevents a ratio to the peer's worse setting."""
    common = {"method": "kto", "dtype": "fp32", "cached": False, "spread": [1, 1], "peak_mb": 4096}
    records = [
        common | {"implementation": "trl", "setting": "batch 4", "tokens_per_second": 10.0, "added_mb": 3072,
                  "losses": [0.5, 0.4]},
        common | {"implementation": "trl", "setting": "batch 1 x accumulation 4", "tokens_per_second": 20.0,
                  "added_mb": 2048, "losses": [0.5, 0.9]},
        common | {"implementation": "aureole", "setting": "packs", "tokens_per_second": 50.0, "added_mb": 1024,
                  "losses": [0.5, 0.41], "share_of_matmul_rate": 0.7, "share_of_the_median_step": 0.8},
    ]  # fmt: skip
    last = table(records).splitlines()[-1]
    assert "| 50 (1-1) | 2.50 | 4.0 | 1.0 | 0.50 | 0.70, median step 0.80 |" in last
    assert largest_difference(records) == pytest.approx(0.01)


def test_the_share_of_the_matmul_rate_follows_the_machine():
    """Prevents a share of a rate that the machine had at another time: each step has the products around it."""
    run = {
        "seconds": 4.0, "steps": [1.0, 1.0, 2.0], "gigaflops": [60.0, 80.0, 80.0], "losses": [0.5],
        "matmul_gflops_per_second": [100.0, 140.0, 60.0, 40.0], "rss_before_mb": 1, "rss_peak_mb": 2,
        "tokens/unique_share": 0.5,
    }  # fmt: skip
    made = record(("aureole", "dpo", "fp32", "packs", False), [run], 100)
    assert made["tokens_per_second"] == 25.0
    # Around the steps: 120, 100, 50; of 320 that were possible 220 were done, in shares of 0.5, 0.8, 0.8.
    assert made["share_of_matmul_rate"] == 0.688 and made["share_of_the_median_step"] == 0.8


def test_the_mean_of_a_cut_normal_number():
    """Prevents a simulation that asks for another truth than it draws from: by drawing."""
    draws = np.clip(np.random.default_rng(0).normal(0.9, 0.3, 10**6), 0, 1)
    assert mean_of_cut_normal(0.9, 0.3) == pytest.approx(draws.mean(), abs=1e-3)
    assert mean_of_cut_normal(0.5, 0.3) == pytest.approx(0.5)
    assert mean_of_cut_normal(0.7, 0.0) == 0.7


def test_recorded_coverage_is_what_the_intervals_have():
    """Prevents a record of other intervals than reports.crossed has now, or of other settings than it says."""
    kept = json.loads((ROOT / "benchmarks" / "coverage.json").read_text())
    rows = [dict(zip(kept["columns"], row, strict=True)) for row in kept["rows"]]
    assert [{key: row[key] for key in made} for row, made in zip(rows, settings(), strict=True)] == settings()
    assert lowest(rows) == kept["lowest"]
    for number in (100, 700):
        held = simulate(settings()[number], kept["repetitions"], np.random.default_rng([0, number]))
        assert held == (rows[number]["rate_held"], rows[number]["difference_held"])


@pytest.mark.slow
def test_scaling_is_measured_by_one_command(tmp_path):
    """Prevents a table of other trainings beside each other, a share of communication that cannot be."""
    output = tmp_path / "scaling.json"
    small = ["model=tiny", "n_examples=12", "model.batch_size=4"]
    command = [sys.executable, "-m", "benchmarks.scaling", "--rounds", "1", "--output", str(output), *small]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = {row["setting"]: row for row in json.loads(output.read_text())["rows"]}
    assert len(rows) == 4
    for name, row in rows.items():
        processes = int(name[0])
        assert len(row["communication_share"]) == len(row["peak_gb"]) == processes
        assert all(0 < share < 1 if processes > 1 else share == 0 for share in row["communication_share"])
        assert row["losses"] == pytest.approx(rows["1 process, 1 thread"]["losses"], rel=1e-2)
        assert len(row["losses"]) == len(row["seconds_of_steps"]) == 2 and row["reckoned_gb"] > 0


@pytest.mark.slow
def test_saving_is_measured_by_one_command(tmp_path):
    """Prevents checkpoints that are not counted, and a peak that is not the whole process's."""
    small = ["model=tiny", "n_examples=12", "model.batch_size=4", "save_every=4"]
    found = saving.measure(str(tmp_path), small)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found["checkpoints"] == 3 and len(found["seconds_of_steps"]) == 3
    assert found["peak_gb"] >= round(max(record["peak_memory_gb"] for record in records), 2)
