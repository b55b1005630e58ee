"""mode=memory: the parts of a training's memory, by hand, and what people read."""

import pytest

from launch.compose import compose
from launch.memory import WIDTH, estimate, report
from launch.train import run

LLAMA = ["model=llama7b", "loss=dpo", "datasets=[hh]", "mode=memory"]
WEIGHTS = 6738415616


def test_the_parts_by_hand():
    """Prevents a table that counts a part twice or not at all: 4 bytes for a weight, its gradient and each moment."""
    found = estimate(compose(LLAMA))
    assert (found.weights, found.gradients, found.optimizer) == (4 * WEIGHTS, 4 * WEIGHTS, 8 * WEIGHTS)
    assert (found.reference, found.working_copy, found.exchanged) == (4 * WEIGHTS, 0, 0)
    assert found.copy == 12 * WEIGHTS
    low = estimate(compose([*LLAMA, "model.policy_dtype=bfloat16", "model.reference_dtype=bfloat16"]))
    assert (low.working_copy, low.reference) == (2 * WEIGHTS, 2 * WEIGHTS)
    assert low.passes == pytest.approx(found.passes / 2, rel=0.25)
    adapter = estimate(compose([*LLAMA, "model.lora.rank=16"]))
    assert adapter.reference == 0 and adapter.gradients < 0.01 * found.gradients


def test_shards_divide_what_is_kept():
    """Prevents a table in which sharding costs nothing, or divides a block that is gathered whole."""
    sharded = estimate(compose([*LLAMA, "distributed=fsdp", "distributed.processes=8"]))
    alone = estimate(compose(LLAMA))
    assert (sharded.weights, sharded.optimizer) == (alone.weights / 8, alone.optimizer / 8)
    assert sharded.passes == alone.passes and sharded.exchanged > 2 * 200e6 * 4
    more = estimate(
        compose([*LLAMA, "distributed=fsdp", "distributed.processes=8", "distributed.reshard_after_forward=false"])
    )
    # all weights, and gradients: one block's made, another's summed, and those outside of blocks (2 x 32000 x 4096)
    assert more.exchanged == 4 * WEIGHTS + 4 * (2 * 202383488 + 262144000)
    low = ["distributed=fsdp", "distributed.processes=8", "model.lora.rank=16"]
    assert estimate(compose([*LLAMA, *low])).total < sharded.total, "an adapter never takes more than all weights"


def test_hybrid_shards_divide_by_the_processes_of_a_host():
    """Prevents a run that is said to fit, although each host holds all of it: 16 processes, 8 on a host."""
    hybrid = [*LLAMA, "distributed=fsdp", "distributed.processes=16", "distributed.hybrid=true"]
    found = estimate(compose([*hybrid, "distributed.processes_per_host=8"]))
    assert (found.weights, found.optimizer) == (4 * WEIGHTS / 8, 8 * WEIGHTS / 8)
    assert "sharded over the 8 of a host" in report(compose([*hybrid, "distributed.processes_per_host=8"]))
    for more in ([], ["distributed.processes_per_host=3"]):
        with pytest.raises(ValueError, match=r"hybrid=true: set distributed\.processes_per_host, .*processes=16"):
            report(compose([*hybrid, *more]))


def test_what_is_offloaded_is_not_on_the_device():
    """Prevents a run that is said not to fit, although its blocks are in the CPU's memory, and one that fills that."""
    offload = [*LLAMA, "distributed=fsdp", "distributed.processes=8", "distributed.cpu_offload=true"]
    found = estimate(compose(offload))
    ends = 2 * 32000 * 4096
    blocks = WEIGHTS - ends
    assert (found.weights, found.gradients) == pytest.approx((4 * ends / 8, 4 * ends / 8), rel=1e-4)
    assert (found.optimizer, found.reference) == pytest.approx((8 * ends / 8, 4 * ends / 8), rel=1e-4)
    assert found.offloaded == pytest.approx((4 + 4 + 8 + 4) * blocks / 8, rel=1e-4)
    whole = estimate(compose([*offload, "distributed.cpu_offload=false"]))
    assert whole.offloaded == 0 and found.total + found.offloaded == pytest.approx(whole.total)
    adapter = estimate(compose([*offload, "model.lora.rank=16", "model.policy_dtype=bfloat16"]))
    assert adapter.weights == pytest.approx(2 * ends / 8, rel=1e-4) and adapter.gradients == adapter.optimizer == 0
    assert "in its CPU memory, of blocks" in report(compose(offload))
    assert estimate(compose([*offload, "distributed.processes=1"])).offloaded == 0, "one process does not shard"


def cells(*settings: str) -> dict[str, list[str]]:
    """What the table of alternatives says for replicas and for shards, by row."""
    table = report(compose([*LLAMA, "distributed.processes=8", *settings])).split("sharded\n")[1]
    return {line[:WIDTH].strip(): line[WIDTH:].split() for line in table.split("\n\n")[0].splitlines()}


def test_what_is_refused_is_not_offered():
    """Prevents a table whose best cell is a command that does not run, and a row that is another one's.

    Neither 4 bits nor 8-bit optimizers are sharded; 4 bits are not compiled; a reference that follows needs all
    weights.
    """
    whole, low, lower = "as it is", "model.lora.rank=16", "model.lora.rank=16 model.lora.quantize=nf4"
    plain, recomputed = cells(), "model.activation_checkpointing=true"
    half, offload = "model.tokens_per_microbatch=2048", "distributed.cpu_offload=true"
    rounded = "model.policy_dtype=bfloat16 model.reference_dtype=bfloat16"
    assert list(plain) == [whole, rounded, half, recomputed, offload, low, lower]
    assert [one for row in plain.values() for one in row].count("-") == 2 and plain[lower][1] == plain[offload][
        0
    ] == "-"
    quantized = cells("model.lora.rank=16", "model.lora.quantize=nf4")
    assert quantized[whole] == quantized[lower] == plain[lower] and quantized[recomputed][1] == "-"
    assert quantized[low] == plain[low], "the adapter alone"
    assert {row[1] for row in cells("optimizer=AdamW8bit").values()} == {"-"}
    changed = {rounded: rounded.split(), half: [half], recomputed: [recomputed], offload: ["distributed=fsdp", offload]}
    assert all(plain[row][1] == cells(*settings)[whole][1] for row, settings in changed.items()), "what the row says"
    assert not changed.keys() & cells(*(one for some in changed.values() for one in some if one != half)).keys() - {
        half
    }
    assert cells("model.compile=true") == plain | {lower: ["-", "-"]}
    follows = cells("loss.sync_reference=true")
    assert follows[low] == follows[lower] == ["-", "-"] and follows[whole] == plain[whole]


def test_a_small_model_is_in_a_small_unit():
    """Prevents a table of zeros."""
    text = report(compose(["model=tiny", "loss=dpo", "mode=memory"]))
    assert text.startswith("tiny, loss=dpo, 1 x distributed=ddp: MiB a process") and "\nMiB a process" in text
    assert (
        " 0.00 " not in text
        and " 0.0 " not in text
        and "24 GiB is the smallest of 24, 40 and 80 GiB with room for it, 8 % left free." in text
    )


def test_it_is_printed_and_nothing_is_made(tmp_path, capsys):
    """Prevents a calculator that loads the model, or leaves a run's folder."""
    run(compose([*LLAMA, "distributed=fsdp", "distributed.processes=8", f"cache_dir={tmp_path}/cache"]))
    printed = capsys.readouterr().out
    assert printed.startswith("llama7b, loss=dpo, 8 x distributed=fsdp: GiB a process")
    assert "state of AdamW" in printed and "80 GiB is the smallest of" in printed and not (tmp_path / "cache").exists()
    assert "model.lora.rank=16" in report(compose(LLAMA))
    assert "None of 24, 40 and 80 GiB has room for it" in report(compose(LLAMA))
