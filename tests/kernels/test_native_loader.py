"""What an installation without compiled libraries says of itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import sod_kernels
from sod_kernels.native import backend, loader

_PROGRAM = """
from sod_kernels.native import backend, loader
print(backend.availability("cpu"))
try:
    loader.load("cpu")
except loader.NativeUnavailableError as error:
    print("raised:", error)
"""


def _ask(package_root: Path) -> list[str]:
    """Run a fresh interpreter on a copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(package_root)}
    command = [sys.executable, "-c", _PROGRAM]
    result = subprocess.run(
        command, env=environment, cwd=package_root, capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


@pytest.fixture
def bare_package(tmp_path: Path) -> Path:
    source = Path(sod_kernels.__file__).parent
    ignored = shutil.ignore_patterns("*.so", "build_record.json", "__pycache__")
    shutil.copytree(source, tmp_path / "sod_kernels", ignore=ignored)
    return tmp_path


def test_a_missing_library_is_a_reason_and_not_a_crash(bare_package: Path) -> None:
    reason, raised = _ask(bare_package)
    assert reason == (
        "The native cpu library was not built: it is not part of this installation; "
        "build it with: pip install ."
    )
    assert raised == f"raised: {reason}"


def test_the_reason_that_the_build_recorded_is_told(bare_package: Path) -> None:
    record = bare_package / "sod_kernels" / "native" / "build_record.json"
    record.write_text(json.dumps({"cpu": "it was left out with SOD_BUILD_NATIVE=0."}))
    reason, _ = _ask(bare_package)
    assert reason == "The native cpu library was not built: it was left out with SOD_BUILD_NATIVE=0."


def test_a_library_that_does_not_load_is_a_reason(bare_package: Path) -> None:
    suffix = EXTENSION_SUFFIXES[0]
    (bare_package / "sod_kernels" / "native" / f"_cpu{suffix}").write_bytes(b"not a library")
    reason, _ = _ask(bare_package)
    assert reason.startswith("The native cpu library is installed but does not load: ")


def test_other_devices_have_no_native_kernels() -> None:
    assert backend.availability("xpu") == (
        'The native backend has no kernels for device type "xpu", only for CPU and CUDA.'
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_cuda_says_why() -> None:
    reason = backend.availability("cuda")
    assert reason is not None
    assert reason.startswith(("No CUDA device can be used: ", "The native cuda library was not built: "))
    with pytest.raises(loader.NativeUnavailableError) as raised:
        loader.load("cuda")
    assert str(raised.value) == reason
