"""Launch configurations of the Triton kernels, in a table keyed by architecture and logits dtype.

A table rather than autotuning: a sweep with another number of lanes adds in another order, so results are
bitwise repeatable only while the configuration is a fixed function of device, dtype and vocabulary. The
number of rows never enters, so a row's result does not depend on the batch it sits in. It also makes the
list of binaries known ahead of time, which is what `sod_kernels.triton.aot` compiles and checks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

INTERPRETER = "interpreter"
STEP_SUMS_BLOCK = 1024
STEP_SUMS_WARPS = 8
# Ids of a row that one pass of the small log-prob kernels takes; pairs of them are compared 32 x 32.
LOG_PROB_BLOCK = 32
LOG_PROB_WARPS = 4
# Several turns: so few programs that those which have nothing to do cost next to nothing.
SCALE_BLOCK = 4096
SCALE_TURNS = 8
SCALE_WARPS = 8
# Gathered columns come one by one, whatever the dtype of the logits; their numbers come as int32.
UNIT_VECTOR = 4
# With 256 threads, two programs fit in the 65,536 registers of an NVIDIA multiprocessor.
TWO_PROGRAMS = 128
_VECTOR_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How one kernel walks over the vocabulary.

    Attributes:
        block_size: Columns per iteration, a power of two and a multiple of `lanes` 16-byte vectors.
        lanes: Online-softmax states kept side by side in a program; one per thread on a GPU.
        splits: Programs that share a row, a power of two.
        num_warps: Warps per program.
        max_registers: Per thread, for the assembler; None leaves it the choice.
    """

    block_size: int
    lanes: int
    splits: int
    num_warps: int
    max_registers: int | None = None

    @property
    def resources(self) -> dict[str, Any]:
        """What `launch` and a `Variant` take beside the compile-time arguments."""
        return {"num_warps": self.num_warps, "max_registers": self.max_registers}


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """The configurations that one architecture and dtype use.

    Attributes:
        forward: First and second forward sweep.
        backward: Gradient sweep, which keeps no state, so that `lanes` is not read.
    """

    forward: SweepConfig
    backward: SweepConfig


def _config(
    lanes: int, splits: int, num_warps: int, *, forward_block: int, backward_block: int
) -> LaunchConfig:
    forward = SweepConfig(block_size=forward_block, lanes=lanes, splits=splits, num_warps=num_warps)
    return LaunchConfig(forward=forward, backward=replace(forward, block_size=backward_block))


# The forward keeps two 16-byte chunks per thread and tensor in flight, whatever the dtype: 4096 columns of
# 16-bit logits or 2048 of float32 on 256 threads; the backward, which also holds the gradient, one or two.
# Four programs per row fill the device from about 100 rows on and still give each program nine or more
# blocks of a 151,936-column vocabulary to spread its start-up over.
_HALF = _config(256, 4, 8, forward_block=4096, backward_block=2048)
_SINGLE = _config(256, 4, 8, forward_block=2048, backward_block=2048)
_DOUBLE = _config(256, 4, 8, forward_block=1024, backward_block=1024)
# Left to itself the assembler squeezes some sweeps into the 64 registers of four programs per multiprocessor,
# and spills on the way; given those of two, which is what the sweeps are built for, it spills nothing.
_HALF_SM_80 = replace(_HALF, forward=replace(_HALF.forward, max_registers=TWO_PROGRAMS))
_DOUBLE_SM_80 = replace(_DOUBLE, forward=replace(_DOUBLE.forward, max_registers=TWO_PROGRAMS))
_SINGLE_SM_100 = replace(_SINGLE, backward=replace(_SINGLE.backward, max_registers=TWO_PROGRAMS))
# A wavefront of gfx942 has 64 threads.
_HALF_WAVE64 = _config(512, 4, 8, forward_block=4096, backward_block=4096)
_SINGLE_WAVE64 = _config(512, 4, 8, forward_block=2048, backward_block=2048)
_DOUBLE_WAVE64 = _config(512, 4, 8, forward_block=1024, backward_block=1024)
# The interpreter's time goes with the number of operations, hardly with their width.
_INTERPRETED = _config(256, 2, 1, forward_block=4096, backward_block=4096)

CONFIGS: dict[tuple[str, torch.dtype], LaunchConfig] = {
    **{
        (architecture, dtype): config
        for architecture in ("sm_80", "sm_90", "sm_100", "sm_120")
        for dtype, config in (
            (torch.bfloat16, _HALF),
            (torch.float16, _HALF),
            (torch.float32, _SINGLE),
            (torch.float64, _DOUBLE),
        )
    },
    ("sm_80", torch.bfloat16): _HALF_SM_80,
    ("sm_80", torch.float64): _DOUBLE_SM_80,
    ("sm_100", torch.float32): _SINGLE_SM_100,
    ("gfx942", torch.bfloat16): _HALF_WAVE64,
    ("gfx942", torch.float16): _HALF_WAVE64,
    ("gfx942", torch.float32): _SINGLE_WAVE64,
    ("gfx942", torch.float64): _DOUBLE_WAVE64,
    **{
        (INTERPRETER, dtype): _INTERPRETED
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    },
}


def launch_config(architecture: str, dtype: torch.dtype) -> LaunchConfig:
    """Look up the configuration for an architecture.

    An NVIDIA architecture that is not listed uses the newest listed one that is not newer than itself; an
    AMD one uses the entry of gfx942.

    Args:
        architecture: "interpreter", or the name of a GPU such as "sm_90" or "gfx942".
        dtype: Floating dtype of the logits.

    Returns:
        The configuration of that architecture and dtype.

    Raises:
        ValueError: If nothing in the table can serve this architecture and dtype.
    """
    listed = (architecture, dtype)
    if listed not in CONFIGS and architecture.startswith("gfx"):
        listed = ("gfx942", dtype)
    elif listed not in CONFIGS and architecture.startswith("sm_"):
        names = {name for name, _ in CONFIGS if name.startswith("sm_")}
        older = [name for name in names if int(name[3:]) <= int(architecture[3:])]
        listed = (max(older, key=lambda name: int(name[3:]), default=""), dtype)
    if listed not in CONFIGS:
        wanted = sorted({f"{name} {kind}" for name, kind in CONFIGS})
        raise ValueError(
            f"launch_config: no configuration for {architecture} with {dtype}; listed are "
            f'{", ".join(wanted)}; add an entry to CONFIGS or use backend="native" or "reference".'
        )
    return CONFIGS[listed]


@functools.cache
def gpu_architecture(device_index: int) -> str:
    """Name the architecture of a GPU, asking the driver once per device.

    Args:
        device_index: Index of the CUDA (or ROCm) device.

    Returns:
        A name such as "sm_90" or "gfx942".
    """
    properties = torch.cuda.get_device_properties(device_index)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def vector_width(dtype: torch.dtype) -> int:
    """Count the logits that one 128-bit load brings.

    Args:
        dtype: Floating dtype of the logits.

    Returns:
        Elements per 16 bytes.
    """
    return _VECTOR_BYTES // dtype.itemsize


def num_splits(config: SweepConfig, num_columns: int) -> int:
    """Count the programs that share a row, so that none of them starts without a block of its own.

    Args:
        config: Configuration of the kernel.
        num_columns: Columns that the kernel walks over.

    Returns:
        A power of two, at most `config.splits`.
    """
    splits = config.splits
    while splits > 1 and (splits // 2) * config.block_size >= num_columns:
        splits //= 2
    return splits
