"""Fixtures of the tests that run vLLM; they are left out where it is not installed, see `make vllm`."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from sod.config_engines import VLLMSection
from sod.models import build_qwen3
from sod.testing import make_tiny_checkpoint
from tests.sod.tiny import sharpened

# This folder itself is found under that name, but it has no origin.
_SPEC = importlib.util.find_spec("vllm")
HAS_VLLM = _SPEC is not None and _SPEC.origin is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

# Compiling for this processor alone would take longer than the tests.
os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
transformers_logging.disable_progress_bar()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "vllm":
            item.add_marker(pytest.mark.vllm)
            # vLLM and what it brings along warn of things that are none of ours.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a random checkpoint whose embeddings are tied, with larger weights, so choices are clear.

    vLLM's attention on a CPU has no heads as small as those of the tiny checkpoint.
    """
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 128}
    sharpened(build_qwen3(vocab_size=512, max_positions=4096, seed=0, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="session")
def shared_engine(tiny_folder):
    """One vLLM for all tests that may share it: it takes seconds to start."""
    from sod.engines.vllm_local import VLLMEngine

    num_threads = torch.get_num_threads()
    start = AutoModelForCausalLM.from_pretrained(tiny_folder)
    section = VLLMSection(kv_cache_mib=64, enforce_eager=True)
    engine = VLLMEngine(start, section, vocab_size=500, max_batch=8, max_total_tokens=512)
    assert torch.get_num_threads() == num_threads
    yield engine
    engine.close()


class Server:
    """A real vLLM server in a process of its own."""

    def __init__(self, folder, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        # Console scripts of vllm-cpu ask for a distribution of another name; the module does not.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        # One process less than the default.
        command += ["--distributed-executor-backend", "uni"]
        command += ["--port", str(self.port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "512", "--max-num-seqs", "8", "--max-logprobs", "32"]
        command += ["--kv-cache-memory-bytes", str(64 << 20), "--logprobs-mode", "processed_logprobs"]
        command += ["--worker-extension-cls", "sod.engines.vllm_worker.WeightReload"]
        command += ["--logits-processors", "sod.engines.vllm_worker:PaddingMask"]
        command += ["--additional-config", '{"sod_vocab_size": 470}', "--generation-config", "vllm"]
        environment = {
            **os.environ,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_CI_ENV": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
            # The engine's process begins with what the server has imported.
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    def wait(self, seconds=600):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"the server did not answer in {seconds} s:\n{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="session")
def server(tiny_folder, tmp_path_factory):
    """One server for all tests; it begins with the tiny checkpoint."""
    started = Server(tiny_folder, tmp_path_factory.mktemp("server") / "log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()
