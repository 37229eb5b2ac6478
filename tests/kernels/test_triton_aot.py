"""The kernels compiled for GPUs that are not here, in processes of their own that do not interpret."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

from sod_kernels.triton import aot
from sod_kernels.triton.config import CONFIGS
from sod_kernels.triton.variants import Variant, variants

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
narrow = "%0 = arith.muli %row, %c151936_i32 : i32"
print(json.dumps([aot.narrow_offsets(narrow), aot.narrow_offsets(narrow.replace("i32", "i64"))]))
# Rows that start at any element leave nothing to load in 128 bits.
small = SweepConfig(block_size=1024, lanes=256, splits=1, num_warps=8)
odd = variants(LaunchConfig(forward=small, backward=small), torch.float32, 1031)
chosen = [v for v in odd if v.name == "backward-reverse_kl"]
binary = aot.compile_variant(chosen[0], "sm_90", "float32")
print(json.dumps(aot.violations(chosen[0], "sm_90", binary)))
"""


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def parse(output):
    """One dict per binary, and one per kernel, keyed by the tables' heads."""
    tables = [table.splitlines() for table in output.split("\n\n")[:2]]
    heads, kernel_heads = (table[0].split() for table in tables)
    rows = [dict(zip(heads, line.split(maxsplit=8), strict=True)) for line in tables[0][1:]]
    return rows, [dict(zip(kernel_heads, line.split(), strict=True)) for line in tables[1][1:]]


def test_one_kernel_for_one_target(clean_environment):
    result = run([*MODULE, "--kernel", "step_sums", "--target", "sm_90"], clean_environment)
    assert result.returncode == 0, result.stdout + result.stderr
    rows, kernels = parse(result.stdout)
    assert {(row["kernel"], row["target"], row["verdict"]) for row in rows} == {("step_sums", "sm_90", "ok")}
    assert {row["dtype"] for row in rows} == set(aot.DTYPES)
    assert [each["kernel"] for each in kernels] == ["step_sums"]


def test_the_table_has_every_variant_for_every_target_and_dtype():
    listed = variants(CONFIGS[("sm_90", torch.float32)], torch.float32, aot.VOCAB_SIZE)
    whole = aot._tasks(list(aot.TARGETS), list(aot.DTYPES), [""])
    assert set(whole) == set(itertools.product(aot.TARGETS, aot.DTYPES, (each.name for each in listed)))


def test_a_kernel_fits_the_budgets_on_every_target(clean_environment):
    # `make aot` compiles the whole table in `make test`; this holds verdicts to the numbers beside them.
    result = run([*MODULE, "--kernel", "second_sweep", "--dtype", "float32"], clean_environment)
    assert result.returncode == 0, result.stdout + result.stderr
    rows, (kernel,) = parse(result.stdout)
    assert {row["target"] for row in rows} == set(aot.TARGETS)
    for row in rows:
        assert row["verdict"] == "ok"
        assert int(row["spills"]) == 0
        assert 0 < int(row["registers"]) <= (256 if row["target"] == "gfx942" else 128)
        assert int(row["shared"]) <= 16_384
        assert int(row["loads128"]) >= (1 if "alone" in row["kernel"] else 2)
    assert kernel["registers"] == str(max(int(row["registers"]) for row in rows))


def test_bad_configuration_is_caught(clean_environment):
    result = run([sys.executable, "-c", BAD_CONFIGURATION], clean_environment)
    assert result.returncode == 0, result.stderr
    spilling, narrow, unaligned = (json.loads(line) for line in result.stdout.splitlines())
    assert len(spilling) == 1
    assert int(spilling[0].removeprefix("spills ")) > 1000
    assert narrow == [1, 0]
    assert unaligned == ["128-bit stores 0 < 1"]


def test_every_budget_has_its_phrase():
    variant = Variant(name="sweep", kernel=None, meta={}, num_warps=8, wide_loads=2, wide_stores=1)
    numbers = {"spills": 3, "shared_bytes": 20_000, "wide_loads": 1, "wide_stores": 0, "loop_conversions": 5}
    numbers["narrow_offsets"] = 2
    found = aot.violations(variant, "sm_90", aot.Binary(registers=129, **numbers))
    assert found == [
        "spills 3",
        "registers 129 > 128",
        "shared 20000 > 16384 bytes",
        "128-bit loads 1 < 2",
        "128-bit stores 0 < 1",
        "layout changes in loops 5",
        "32-bit row offsets 2",
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
