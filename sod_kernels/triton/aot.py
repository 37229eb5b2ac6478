"""Compiles every kernel of the configuration table ahead of time and checks what came out; needs no GPU.

Run as `python -m sod_kernels.triton.aot` (with TRITON_INTERPRET unset). For each target, logits dtype and
variant it compiles with the compiler and assembler that Triton ships, disassembles, prints one line, and
fails on the following.

- a spilled register or a stack frame;
- more registers than let two programs share a multiprocessor, or more shared memory than the kernels' budget;
- a sweep without 128-bit loads of the logits (and 128-bit stores of the gradient);
- a change of layout inside a loop, which would send every block through shared memory and a barrier;
- a row's offset in 32 bits, which rows times columns outgrow.

These are properties of the binary, so they hold on the GPU as well; its speed has to be measured there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sod_kernels.triton.config import CONFIGS, TWO_PROGRAMS, LaunchConfig
from sod_kernels.triton.launch import compile_options
from sod_kernels.triton.variants import Variant, variants

VOCAB_SIZE = 151_936
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "float64": "*fp64"}
# A gfx942 wavefront of 64 threads may use up to 256 vector registers at two waves per unit.
MAX_REGISTERS = {"sm": TWO_PROGRAMS, "gfx": 256}
# The kernels need it only for the final merge across warps.
MAX_SHARED_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Binary:
    """What a compiled variant needs.

    Attributes:
        registers: Per thread.
        spills: Spilled registers or bytes of stack, whichever the target reports.
        shared_bytes: Shared memory per program.
        wide_loads: Instructions that load 128 bits or more from global memory.
        wide_stores: Instructions that store 128 bits or more to global memory.
        loop_conversions: Changes of layout inside loops.
        narrow_offsets: Products of 32 bits with the width of a row.
    """

    registers: int
    spills: int
    shared_bytes: int
    wide_loads: int
    wide_stores: int
    loop_conversions: int
    narrow_offsets: int


def _signature(variant: Variant, dtype: str) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and alignment as a launch on aligned tensors would find them."""
    token = "*fp64" if dtype == "float64" else "*fp32"
    fixed = dict.fromkeys(("step_ids_ptr", "sampled_ids_ptr", "ids_ptr", "order_ptr", "edges_ptr"), "*i64")
    logits = ("student_ptr", "teacher_ptr", "reference_ptr", "grad_logits_ptr")
    fixed.update(dict.fromkeys(logits, _POINTERS[dtype]))
    fixed.update(dict.fromkeys(("row_state_ptr", "step_sums_ptr", "span_scores_ptr", "dense_ptr"), "*fp64"))
    rows = ("student_rows_ptr", "teacher_rows_ptr", "excluded_ptr")
    fixed.update(dict.fromkeys(rows, "*i64"))
    fixed.update(dict.fromkeys(("student_columns_ptr", "teacher_columns_ptr"), "*i32"))
    fixed.update(rows_per_batch="i32", num_ids="i32")
    signature: dict[str, str] = {}
    constants = dict(variant.meta)
    attributes: dict[Any, Any] = {}
    for position, name in enumerate(variant.kernel.arg_names):
        if name in variant.meta or name in variant.absent:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
        elif name in fixed or name.endswith("_ptr"):
            signature[name] = fixed.get(name, token)
        else:
            signature[name] = "fp32" if name.endswith(("_high", "_low")) else "i64"
        if name.endswith("_ptr") or name.startswith("stride_"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_variant(variant: Variant, target: str, dtype: str) -> Binary:
    """Compile one variant and read its needs from the binary.

    Args:
        variant: From `variants`.
        target: One of `TARGETS`.
        dtype: Key of `DTYPES`.

    Returns:
        Registers, spills, shared memory and wide memory instructions.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _signature(variant, dtype)
    source = ASTSource(variant.kernel, signature, constants, attributes)
    is_amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if is_amd else GPUTarget("cuda", int(target[3:]), 32)
    options = compile_options(variant.num_warps, variant.max_registers)
    compiled = triton.compile(source, target=gpu, options=options)
    numbers = _read_amd(compiled.asm["amdgcn"]) if is_amd else _read_nvidia(compiled.asm["cubin"])
    loops = re.findall(r"scf\.for.*?scf\.yield", compiled.asm["ttgir"], re.DOTALL)
    return Binary(
        **numbers,
        shared_bytes=compiled.metadata.shared,
        loop_conversions=sum(loop.count("ttg.convert_layout") for loop in loops),
        narrow_offsets=narrow_offsets(compiled.asm["ttir"]),
    )


def narrow_offsets(ttir: str) -> int:
    """Count where a row's offset is worked out in 32 bits; strides and row numbers are 64 bits wide.

    Args:
        ttir: A kernel in Triton's intermediate representation, compiled for rows of `VOCAB_SIZE`.

    Returns:
        Products of 32 bits with the width of a row.
    """
    return len(re.findall(rf"arith\.muli [^\n]*%c{VOCAB_SIZE}_i32", ttir))


def _read_amd(assembly: str) -> dict[str, int]:
    def number(name: str) -> int:
        return max(int(value) for value in re.findall(rf"\.{name}:\s+(\d+)", assembly))

    return {
        "registers": number("vgpr_count"),
        "spills": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "wide_loads": len(re.findall(r"(?:global|buffer)_load_dwordx4", assembly)),
        "wide_stores": len(re.findall(r"(?:global|buffer)_store_dwordx4", assembly)),
    }


def _read_nvidia(cubin: bytes) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output([str(tools / "cuobjdump"), "-res-usage", str(path)])
        code = _output([str(tools / "nvdisasm"), "-c", str(path)])
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    # Blackwell also has 256-bit accesses, which its disassembler calls ENL2.256.
    wide = r"\.E\S*\.(?:128|256)"
    return {
        "registers": registers,
        "spills": stack + len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "wide_loads": len(re.findall(rf"\bLDG{wide}", code)),
        "wide_stores": len(re.findall(rf"\bSTG{wide}", code)),
    }


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def violations(variant: Variant, target: str, binary: Binary) -> list[str]:
    """Hold a binary against the budgets.

    Args:
        variant: What was compiled.
        target: For which architecture.
        binary: What came out.

    Returns:
        One phrase per broken budget; empty if all hold.
    """
    budget = MAX_REGISTERS["gfx" if target.startswith("gfx") else "sm"]
    found = []
    if binary.spills:
        found.append(f"spills {binary.spills}")
    if binary.registers > budget:
        found.append(f"registers {binary.registers} > {budget}")
    if binary.shared_bytes > MAX_SHARED_BYTES:
        found.append(f"shared {binary.shared_bytes} > {MAX_SHARED_BYTES} bytes")
    if binary.wide_loads < variant.wide_loads:
        found.append(f"128-bit loads {binary.wide_loads} < {variant.wide_loads}")
    if binary.wide_stores < variant.wide_stores:
        found.append(f"128-bit stores {binary.wide_stores} < {variant.wide_stores}")
    if binary.loop_conversions:
        found.append(f"layout changes in loops {binary.loop_conversions}")
    if binary.narrow_offsets:
        found.append(f"32-bit row offsets {binary.narrow_offsets}")
    return found


def _compile_named(task: tuple[str, str, str], override: LaunchConfig | None) -> tuple[Binary, list[str]]:
    """Compile one line of the table, in whichever process; kernels do not travel between processes."""
    target, dtype, name = task
    config = override or CONFIGS[(target, DTYPES[dtype])]
    variant = next(each for each in variants(config, DTYPES[dtype], VOCAB_SIZE) if each.name == name)
    binary = compile_variant(variant, target, dtype)
    return binary, violations(variant, target, binary)


def _tasks(targets: list[str], dtypes: list[str], kernels: list[str]) -> list[tuple[str, str, str]]:
    names = [
        variant.name
        for variant in variants(CONFIGS[(TARGETS[0], torch.float32)], torch.float32, VOCAB_SIZE)
        if variant.name.startswith(tuple(kernels))
    ]
    return list(itertools.product(targets, dtypes, names))


def _kernel_of(name: str) -> str:
    """Kernel that a variant's name begins with."""
    return name.partition("-")[0]


def _show_progress(done: int, total: int, started: float) -> None:
    """Draw a bar under the table where somebody looks at it."""
    if not sys.stderr.isatty():
        return
    left_s = (time.monotonic() - started) / done * (total - done)
    bar = "#" * (30 * done // total)
    end = "" if done < total else "\n"
    print(f"\r[{bar:30}] {done}/{total}, about {left_s:.0f} s left ", end=end, file=sys.stderr, flush=True)


def _summarise(binaries: dict[tuple[str, str, str], Binary]) -> None:
    """Print the most that any variant of a kernel needs, and the fewest wide accesses that it has."""
    layout = "{:18} {:>8} {:>9} {:>6} {:>6} {:>8} {:>9}"
    print(
        "\n" + layout.format("kernel", "binaries", "registers", "spills", "shared", "loads128", "stores128")
    )
    for kernel in sorted({_kernel_of(name) for _, _, name in binaries}):
        found = [each for (_, _, name), each in binaries.items() if _kernel_of(name) == kernel]
        most = [max(getattr(each, key) for each in found) for key in ("registers", "spills", "shared_bytes")]
        fewest = [min(getattr(each, key) for each in found) for key in ("wide_loads", "wide_stores")]
        print(layout.format(kernel, len(found), *most, *fewest))


def report(
    targets: list[str],
    dtypes: list[str],
    *,
    kernels: list[str],
    jobs: int,
    override: LaunchConfig | None = None,
) -> int:
    """Compile and check, printing a line for each binary and one for each kernel.

    Args:
        targets: Some of `TARGETS`.
        dtypes: Some of the keys of `DTYPES`.
        kernels: Beginnings of the names to compile; [""] for all.
        jobs: Processes that compile side by side.
        override: Configuration to judge instead of the table's.

    Returns:
        Number of binaries that break a budget.
    """
    layout = "{:8} {:9} {:40} {:>9} {:>6} {:>6} {:>8} {:>9}  {}"
    heads = ("target", "dtype", "kernel", "registers", "spills", "shared", "loads128", "stores128", "verdict")
    print(layout.format(*heads))
    tasks = _tasks(targets, dtypes, kernels)
    started = time.monotonic()
    binaries: dict[tuple[str, str, str], Binary] = {}
    compile_one = functools.partial(_compile_named, override=override)
    failed = 0
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for task, (binary, found) in zip(tasks, pool.map(compile_one, tasks), strict=True):
            memory = (binary.shared_bytes, binary.wide_loads, binary.wide_stores)
            cells = (*task, binary.registers, binary.spills, *memory)
            print(layout.format(*cells, "; ".join(found) or "ok"), flush=True)
            failed += bool(found)
            binaries[task] = binary
            _show_progress(len(binaries), len(tasks), started)
    _summarise(binaries)
    print(f"\n{len(tasks)} binaries, {failed} over budget")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Instead of `sys.argv[1:]`.

    Returns:
        Exit code: 0, 1 if a budget is broken, 2 if nothing can be compiled.
    """
    parser = argparse.ArgumentParser(prog="python -m sod_kernels.triton.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; default: all")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="repeatable; default: all")
    parser.add_argument("--kernel", action="append", help="how names begin; repeatable; default: all")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core"
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print("aot: TRITON_INTERPRET is set, which replaces the compiler; unset it.", file=sys.stderr)
        return 2
    if options.jobs < 1:
        parser.error(f"--jobs: got {options.jobs}, wanted at least 1.")
    kernels = options.kernel or [""]
    if not _tasks(list(TARGETS), list(DTYPES), kernels):
        parser.error(
            f"--kernel: no kernel's name begins with {' or '.join(kernels)}; run without for the list."
        )
    failed = report(
        options.target or list(TARGETS),
        options.dtype or list(DTYPES),
        kernels=kernels,
        jobs=options.jobs,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
