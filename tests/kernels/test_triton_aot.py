"""The kernels compiled for GPUs that are not here, in processes of their own that do not interpret."""

import json
import subprocess
import sys

import pytest

from sod_kernels.triton import aot
from sod_kernels.triton.variants import Variant

pytest.importorskip("triton")
pytestmark = pytest.mark.aot

MODULE = [sys.executable, "-m", "sod_kernels.triton.aot"]
BAD_CONFIGURATION = """
import json, torch
from sod_kernels.triton import aot
from sod_kernels.triton.variants import Variant
from sod_kernels.triton.config import LaunchConfig, SweepConfig
from sod_kernels.triton.variants import variants

wide = SweepConfig(block_size=8192, lanes=32, splits=1, num_warps=1)
config = LaunchConfig(forward=wide, backward=wide)
table = variants(config, torch.float32, aot.VOCAB_SIZE)
chosen = [v for v in table if v.name == "first_sweep-reverse_kl"]
binary = aot.compile_variant(chosen[0], "sm_90", "float32")
print(json.dumps(aot.violations(chosen[0], "sm_90", binary)))
# Rows that start at any element leave nothing to load in 128 bits.
small = SweepConfig(block_size=1024, lanes=256, splits=1, num_warps=8)
odd = variants(LaunchConfig(forward=small, backward=small), torch.float32, 1031)
chosen = [v for v in odd if v.name == "backward-reverse_kl"]
binary = aot.compile_variant(chosen[0], "sm_90", "float32")
print(json.dumps(aot.violations(chosen[0], "sm_90", binary)))
"""
# `make aot` compiles the whole table. Here: everything for one target, and for the others what is closest to
# a budget: the widest dtype or the most sides, one kernel of each kind.
SELECTION = (
    ("sm_90", "bfloat16", ("",), 48),
    ("sm_80", "float32", ("first_sweep-reverse_kl", "second_sweep-jsd", "backward-jsd"), 6),
    ("sm_100", "float64", ("first_sweep-reverse_kl", "backward-forward_kl"), 6),
    ("gfx942", "float16", ("first_sweep-forward_kl", "second_sweep-forward_kl", "gradient_at_ids"), 5),
    ("gfx942", "float32", ("unit_sweep", "unit_mixture"), 3),
)


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def parse(output):
    """One dict per binary, keyed by the table's heads."""
    heads, *lines, _ = [line.split(maxsplit=8) for line in output.splitlines()]
    return [dict(zip(heads, line, strict=True)) for line in lines]


@pytest.mark.parametrize(("target", "dtype", "kernels", "count"), SELECTION, ids=str)
def test_table_fits_the_budgets(target, dtype, kernels, count, clean_environment):
    chosen = [argument for kernel in kernels for argument in ("--kernel", kernel)]
    result = run([*MODULE, "--target", target, "--dtype", dtype, *chosen], clean_environment)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = parse(result.stdout)
    names = {row["kernel"] for row in rows}
    assert {(row["target"], row["dtype"]) for row in rows} == {(target, dtype)}
    assert len(rows) == len(names) == count
    for row in rows:
        assert row["kernel"].startswith(kernels)
        assert row["verdict"] == "ok"
        assert int(row["spills"]) == 0
        # The table says so itself; the numbers are checked again in case its budgets are ever loosened.
        assert 0 < int(row["registers"]) <= (256 if target == "gfx942" else 128)
        assert int(row["shared"]) <= 16_384
        # Gathered columns come one by one.
        is_gathered = row["kernel"].startswith("unit_")
        if not is_gathered and ("sweep" in row["kernel"] or "backward" in row["kernel"]):
            assert int(row["loads128"]) >= (1 if "alone" in row["kernel"] else 2)


def test_bad_configuration_is_caught(clean_environment):
    result = run([sys.executable, "-c", BAD_CONFIGURATION], clean_environment)
    assert result.returncode == 0, result.stderr
    spilling, unaligned = (json.loads(line) for line in result.stdout.splitlines())
    assert len(spilling) == 1
    assert int(spilling[0].removeprefix("spills ")) > 1000
    assert unaligned == ["128-bit stores 0 < 1"]


def test_every_budget_has_its_phrase():
    variant = Variant(name="sweep", kernel=None, meta={}, num_warps=8, wide_loads=2, wide_stores=1)
    numbers = {"spills": 3, "shared_bytes": 20_000, "wide_loads": 1, "wide_stores": 0, "loop_conversions": 5}
    found = aot.violations(variant, "sm_90", aot.Binary(registers=129, **numbers))
    assert found == [
        "spills 3",
        "registers 129 > 128",
        "shared 20000 > 16384 bytes",
        "128-bit loads 1 < 2",
        "128-bit stores 0 < 1",
        "layout changes in loops 5",
    ]
    assert "registers" not in str(aot.violations(variant, "gfx942", aot.Binary(registers=129, **numbers)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "sideways"], "no kernel's name begins with sideways"),
        (["--jobs", "0"], "--jobs: got 0, wanted at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message, clean_environment):
    result = run([*MODULE, *arguments], clean_environment)
    assert result.returncode == 2
    assert message in result.stderr


def test_refuses_to_run_under_the_interpreter(clean_environment):
    result = run(MODULE, {**clean_environment, "TRITON_INTERPRET": "1"})
    assert result.returncode == 2
    assert "TRITON_INTERPRET is set" in result.stderr
