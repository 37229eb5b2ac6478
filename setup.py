"""Builds the native libraries with CMake and puts them into sod_kernels/native.

SOD_BUILD_NATIVE=auto (default) goes on without them and records why, 1 makes a failure an error, 0 leaves them out.
SOD_BUILD_CUDA=AUTO|ON|OFF is passed on to CMake.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MODULES = {"cpu": "sod_kernels.native._cpu", "cuda": "sod_kernels.native._cuda"}
RECORD = "build_record.json"


class CMakeBuild(build_ext):
    """Runs CMake once for both modules, then forgets those that were not built."""

    def run(self) -> None:
        target = Path(self.get_ext_fullpath(MODULES["cpu"])).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        for stale in [*target.glob("_cpu*.so"), *target.glob("_cuda*.so"), target / RECORD]:
            stale.unlink(missing_ok=True)
        mode = os.environ.get("SOD_BUILD_NATIVE", "auto")
        if mode not in {"0", "1", "auto"}:
            raise SystemExit(f"SOD_BUILD_NATIVE is {mode!r}; it must be 0, 1 or auto.")
        failure = "it was left out with SOD_BUILD_NATIVE=0." if mode == "0" else self._build(target)
        if failure is not None and mode == "1":
            raise SystemExit(f"The native libraries were not built: {failure}")
        if failure is not None:
            print(f"\n*** sod-kernels: NO native libraries: {failure}\n", file=sys.stderr, flush=True)
        reasons = {kind: failure for kind in MODULES} if failure else {}
        if failure is None and not list(target.glob("_cuda*")):
            reasons["cuda"] = "nvcc was not found, or SOD_BUILD_CUDA was OFF, when it was installed."
        (target / RECORD).write_text(json.dumps(reasons, indent=1) + "\n")
        # setuptools fails on a listed extension that has no file.
        self.extensions = [e for e in self.extensions if Path(self.get_ext_fullpath(e.name)).exists()]

    def _build(self, target: Path) -> str | None:
        cmake = shutil.which("cmake")
        if cmake is None:
            return (
                "cmake was not found; install cmake 3.25 or newer and a C++17 compiler, then install again."
            )
        build = ROOT / self.build_temp / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        options = [
            f"-DSOD_MODULE_DIR={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSOD_BUILD_CUDA={os.environ.get('SOD_BUILD_CUDA', 'AUTO')}",
            "-DSOD_BUILD_TESTS=OFF",
        ]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        try:
            subprocess.run(
                [cmake, "-S", str(ROOT), "-B", str(build), "--fresh", *generator, *options], check=True
            )
            subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)
        except subprocess.CalledProcessError as error:
            return (
                f"'{' '.join(error.cmd[:2])} ...' failed with status {error.returncode}; see the build log."
            )
        return None if list(target.glob("_cpu*")) else "CMake built no Python module; is pybind11 installed?"


setup(
    ext_modules=[Extension(name, sources=[]) for name in MODULES.values()],
    cmdclass={"build_ext": CMakeBuild},
)
