"""The table of launch configurations."""

import pytest
import torch

from sod_kernels.triton.config import (
    CONFIGS,
    INTERPRETER,
    TWO_PROGRAMS,
    SweepConfig,
    gpu_architecture,
    launch_config,
    num_splits,
    vector_width,
)
from sod_kernels.triton.launch import compile_options
from sod_kernels.triton.variants import variants


@pytest.mark.parametrize(
    ("architecture", "served_by"),
    [
        ("sm_80", "sm_80"),
        ("sm_86", "sm_80"),
        ("sm_89", "sm_80"),
        ("sm_103", "sm_100"),
        ("sm_121", "sm_120"),
        ("gfx942", "gfx942"),
        ("gfx950", "gfx942"),
        (INTERPRETER, INTERPRETER),
    ],
)
def test_nearest_older_architecture_serves(architecture, served_by):
    assert launch_config(architecture, torch.bfloat16) is CONFIGS[(served_by, torch.bfloat16)]


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("sm_75", torch.bfloat16), ("metal", torch.float32), ("sm_90", torch.int8)]
)
def test_unlisted_is_an_error_that_says_what_is_listed(architecture, dtype):
    with pytest.raises(ValueError, match=rf"no configuration for {architecture} with {dtype}.*sm_90 torch"):
        launch_config(architecture, dtype)


@pytest.mark.parametrize(("key", "config"), CONFIGS.items(), ids=str)
def test_every_entry_fills_its_lanes_with_whole_vectors(key, config):
    for sweep in (config.forward, config.backward):
        for number in (sweep.block_size, sweep.lanes, sweep.splits, sweep.num_warps):
            assert number & (number - 1) == 0
    assert config.forward.block_size % (config.forward.lanes * vector_width(key[1])) == 0


def test_the_assembler_is_told_a_number_of_registers_only_where_the_table_has_one():
    assert compile_options(8, None) == {"num_warps": 8, "enable_fp_fusion": True}
    assert compile_options(8, 96) == {"num_warps": 8, "enable_fp_fusion": True, "maxnreg": 96}
    limits = {
        key: {each.max_registers for each in variants(config, key[1], 4096)}
        for key, config in CONFIGS.items()
    }
    assert limits["sm_80", torch.bfloat16] == limits["sm_100", torch.float32] == {None, TWO_PROGRAMS}
    # Other targets' compilers do not know the option.
    assert all(found == {None} for (name, _), found in limits.items() if not name.startswith("sm_"))


@pytest.mark.parametrize(
    ("num_columns", "wanted"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 4), (10_000, 4)]
)
def test_no_program_starts_without_a_block(num_columns, wanted):
    config = SweepConfig(block_size=64, lanes=8, splits=4, num_warps=1)
    assert num_splits(config, num_columns) == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a driver")
def test_names_the_architecture_of_the_device():
    assert gpu_architecture(0).startswith(("sm_", "gfx"))
