"""Builds the native libraries with CMake and puts them into sod_kernels/native.

SOD_BUILD_NATIVE=auto (the default) goes on without them and records why, 1 makes a failure an error, 0 makes
a pure Python package. SOD_BUILD_CUDA=AUTO|ON|OFF is passed on to CMake.
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
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
MODULES = {"cpu": "sod_kernels.native._cpu", "cuda": "sod_kernels.native._cuda"}
MODE = os.environ.get("SOD_BUILD_NATIVE", "auto")
if MODE not in {"0", "1", "auto"}:
    raise SystemExit(f"SOD_BUILD_NATIVE is {MODE!r}; it must be 0, 1 or auto.")


def write_record(target: Path, reasons: dict[str, str]) -> None:
    """Write why a library is missing, by device type; sod_kernels.native.loader reads it."""
    (target / "build_record.json").write_text(json.dumps(reasons, indent=1) + "\n")


def run_and_keep(command: list[str], log: Path) -> None:
    """Run a build and keep what it says, which is shown as it comes; raise CalledProcessError if it fails."""
    with log.open("w") as kept, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


class PurePython(build_py):
    """Without native libraries: records that this was wanted."""

    def run(self) -> None:
        super().run()
        target = (ROOT if self.editable_mode else Path(self.build_lib)) / "sod_kernels" / "native"
        for stale in target.glob("_c*.so"):
            stale.unlink()
        write_record(target, dict.fromkeys(MODULES, "it was left out with SOD_BUILD_NATIVE=0."))


class CMakeBuild(build_ext):
    """Runs CMake once for both modules, then forgets those that were not built."""

    def run(self) -> None:
        target = Path(self.get_ext_fullpath(MODULES["cpu"])).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("_c*.so"):
            stale.unlink()
        failure = self._build(target)
        if failure is not None and MODE == "1":
            raise SystemExit(f"SOD_BUILD_NATIVE=1, but the native libraries were not built: {failure}")
        if failure is not None:
            print(f"\n*** sod-kernels: NO native libraries: {failure}\n", file=sys.stderr, flush=True)
        no_cuda = failure or "nvcc was not found, or SOD_BUILD_CUDA was OFF, when it was installed."
        reasons = {"cpu": failure, "cuda": None if list(target.glob("_cuda*.so")) else no_cuda}
        write_record(target, {kind: reason for kind, reason in reasons.items() if reason is not None})
        # setuptools fails on a listed extension that has no file.
        self.extensions = [e for e in self.extensions if Path(self.get_ext_fullpath(e.name)).exists()]

    def _build(self, target: Path) -> str | None:
        cmake = shutil.which("cmake")
        if cmake is None:
            return (
                "cmake was not found; install cmake 3.25 or newer and a C++17 compiler, then install again."
            )
        build = (ROOT / self.build_temp).resolve() / "cmake"
        python, cuda = sys.executable, os.environ.get("SOD_BUILD_CUDA", "AUTO")
        options = [f"-DSOD_MODULE_DIR={target}", f"-DPython_EXECUTABLE={python}", f"-DSOD_BUILD_CUDA={cuda}"]
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "--fresh", "-DSOD_BUILD_TESTS=OFF"]
        try:
            subprocess.run([*configure, *generator, *options], check=True)
            run_and_keep([cmake, "--build", str(build), "--parallel"], target / "build_log.txt")
        except subprocess.CalledProcessError as error:
            stage = "compile" if "--build" in error.cmd else "configure (is there a C++17 compiler?)"
            return f"CMake failed to {stage}; see the output of: SOD_BUILD_NATIVE=1 pip install -v ."
        return None if list(target.glob("_cpu*.so")) else "pybind11 was not found when it was installed."


extensions = [] if MODE == "0" else [Extension(name, sources=[]) for name in MODULES.values()]
setup(ext_modules=extensions, cmdclass={"build_py": PurePython} if MODE == "0" else {"build_ext": CMakeBuild})
