"""The CUDA kernels compile for every architecture that we ship, without spilling a register."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SCRIPT = Path(__file__).parents[2] / "csrc" / "cuda" / "compile_check.py"


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_check", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["compile_check"] = module
    spec.loader.exec_module(module)
    return module


compile_check = _load_script()

_REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90'
ptxas info    : Function properties for _Z5firstv
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_100'
ptxas info    : Function properties for _Z6secondv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""


def test_the_report_is_read_right() -> None:
    first, second = compile_check.parse_usage(_REPORT)
    assert (first.arch, first.registers, first.shared_bytes, first.spill_bytes) == ("90", 64, 128, 28)
    assert (second.arch, second.registers, second.shared_bytes, second.spill_bytes) == ("100", 40, 0, 0)
    assert first.kernel.startswith("first")


def test_a_warning_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="compiler warned"):
        compile_check.parse_usage("forward.cu(3): warning #177-D: variable was declared but never referenced")


def test_a_build_log_counts_only_while_no_source_is_newer(tmp_path: Path) -> None:
    log = tmp_path / "build_log.txt"
    assert compile_check.read_build_log(log) is None
    log.write_text(_REPORT)
    assert compile_check.read_build_log(log) == _REPORT
    os.utime(log, (0, 0))
    assert compile_check.read_build_log(log) is None
    log.write_text("[1/9] Building CXX object\n")
    assert compile_check.read_build_log(log) is None


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(compile_check.find_nvcc() is None, reason="nvcc is not installed")
def test_no_kernel_spills_on_any_architecture() -> None:
    usage = compile_check.parse_usage(compile_check.read_build_log() or compile_check.compile_kernels())
    for arch in ("80", "90", "100"):
        kernels = [entry for entry in usage if entry.arch == arch]
        clusters = [entry for entry in kernels if entry.kernel.startswith("void forward_backward_kernel")]
        # Three dtypes, aligned rows or not, forward and backward: of three divergences with a reference or
        # without, and of log-probs; the step sums; and both sweeps in one, of aligned rows alone.
        assert len(clusters) == 3 * 3 * 2
        assert len(kernels) == 3 * 2 * 2 * (3 * 2 + 1) + 1 + len(clusters)
        # Cards before 9.0 have no clusters, so there they are empty. Elsewhere the rows get all but a little
        # of a block's shared memory.
        assert all((0 < entry.shared_bytes <= 512) == (arch != "80") for entry in clusters)
    assert [entry for entry in usage if entry.spill_bytes > 0] == []
    # Three blocks of 256 threads share the 65536 registers of a processor.
    assert [entry for entry in usage if entry.registers > 80] == []
