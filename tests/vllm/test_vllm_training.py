"""Whole runs whose rollouts, or whose teacher, are a real vLLM."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from sod.config_engines import VLLMServerSection
from sod.config_file import load_config
from sod.engines.vllm_server import VLLMServerEngine
from sod.errors import ServiceUnavailableError
from sod.loop.display import Display
from sod.models import build_qwen3
from sod.rollout.store import read_trajectories
from sod.testing import make_tiny_checkpoint
from sod.trainer import SODTrainer
from tests.sod.tiny import sharpened
from tests.vllm.forwarder import Forwarder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Two tasks without tools, and two checkpoints of one architecture and tokenizer."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"prompt": f"What is {a} plus 2?", "answer": str(a + 2)} for a in (1, 3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 128}
    for seed, name in enumerate(("student", "teacher")):
        make_tiny_checkpoint(folder / name)
        model = sharpened(build_qwen3(vocab_size=512, max_positions=4096, seed=seed, **sizes))
        model.save_pretrained(folder / name)
    return folder


def toml_of(folder, output, engine, more=""):
    path = folder / f"{output}.toml"
    path.write_text(
        f"""
[run]
output = "{output}"
[student]
model = "{folder}/student"
[data]
train = "train.jsonl"
[algorithm]
name = "opd"
[optimizer]
name = "adamw"
learning_rate = 1e-3
[environment]
name = "tools"
tools = []
reward = "number"
[rollout]
num_samples = 2
max_turns = 1
max_turn_tokens = 12
max_trajectory_tokens = 256
[trainer]
rounds = 2
tasks_per_round = 2
epochs = 2
minibatch_trajectories = 2
alignment_bound = 1e-3
device = "cpu"
[engine]
{engine}
{more or f'[teacher]{chr(10)}model = "{folder}/teacher"'}
"""
    )
    return load_config(path)


def run(config, **options):
    return SODTrainer.from_config(config, display=Display(is_quiet=True)).train(**options)


def updates_of(result):
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "update"]


def test_a_run_on_vllm_in_process_stays_on_policy(task):
    engine = 'name = "vllm"\nkv_cache_mib = 64\nenforce_eager = true'
    num_threads = torch.get_num_threads()
    result = run(toml_of(task, "in_process", engine))
    torch.set_num_threads(num_threads)
    updates = updates_of(result)
    assert len(updates) == 8
    firsts = [row["alignment/gap_max"] for row in updates if "alignment/gap_max" in row]
    assert len(firsts) == 2
    assert max(firsts) < 1e-4
    later = [row["alignment/step_gap_max"] for row in updates if "alignment/step_gap_max" in row]
    assert len(later) == 6
    assert min(later) > max(firsts)
    versions = [
        {turn.policy_version for one in read_trajectories(path) for turn in one.turns}
        for path in sorted((result.folder / "trajectories").iterdir())
    ]
    assert versions == [{0}, {4}]


def test_a_run_whose_server_dies_resumes_to_the_same_end(task, server, tmp_path):
    with Forwarder(server.port) as forwarder:
        engine = (
            f'name = "vllm_server"\nurl = "{forwarder.url}"\nfolder = "{tmp_path}"\ndtype = "float32"\n'
            "max_attempts = 2\nretry_wait_s = 0.01\ntimeout_s = 60.0"
        )
        whole = run(toml_of(task, "whole", engine))

        class CutAfterOne(Display):
            def end_round(self, index, row):
                if index == 1:
                    forwarder.cut()

        config = toml_of(task, "cut", engine)
        with pytest.raises(ServiceUnavailableError, match="--resume"):
            SODTrainer.from_config(config, display=CutAfterOne(is_quiet=True)).train()
        assert len(list((task / "cut" / "checkpoints").iterdir())) >= 1
        forwarder.restore()
        resumed = run(config, resume=True)
    ends = [AutoModelForCausalLM.from_pretrained(one.checkpoint).state_dict() for one in (whole, resumed)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)
    assert len(updates_of(resumed)) == 8


def test_a_run_with_a_teacher_on_a_server_learns_from_its_lists(task, server, tmp_path):
    section = VLLMServerSection(url=server.url, folder=tmp_path, dtype="float32")
    engine = VLLMServerEngine(section)
    engine.update_weights(AutoModelForCausalLM.from_pretrained(task / "teacher"), 0)
    engine.close()
    teacher = f'[teacher]\nname = "vllm_server"\nmodel = "{task}/teacher"\nurl = "{server.url}"\nnum_top = 32'
    config = toml_of(task, "served", 'name = "lockstep"', more=teacher)
    updates = updates_of(run(config))
    assert len(updates) == 8
    assert all(row["kl/token_mean"] > 0 for row in updates)
    assert all(0 < row["grad/norm"] < float("inf") for row in updates)
    assert updates[-1]["kl/token_mean"] < updates[0]["kl/token_mean"]
