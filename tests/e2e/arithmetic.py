"""A small tool task and the files of a run on it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path


def write_tasks(path: Path, count: int, *, start: int = 0) -> Path:
    """Write tasks `What is a plus b?` with their answers."""
    pairs = [(a, b) for a, b in product(range(10), range(10))]
    rows = []
    for index in range(start, start + count):
        a, b = pairs[(index * 37) % 100]
        rows.append({"prompt": f"What is {a} plus {b}?", "answer": str(a + b)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_expert(path: Path, count: int) -> Path:
    """Write conversations that call the tool and repeat what it says."""
    pairs = [(a, b) for a, b in product(range(10), range(10))]
    rows = []
    for index in range(count):
        a, b = pairs[(index * 37) % 100]
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"What is {a} plus {b}?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "name": "add", "content": str(a + b)},
                    {"role": "assistant", "content": f"The answer is {a + b}"},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ENVIRONMENT = """
[environment]
name = "tools"
tools = ["toolbox:add"]
reward = "number"
max_errors_in_a_row = 2
"""
LIMITS = """
[rollout]
max_turns = 3
max_turn_tokens = 40
max_trajectory_tokens = 400
"""


def sft_toml(folder: Path, *, output: str, student: Path, rounds: int, every: int = 0) -> Path:
    """Write the settings of a supervised run."""
    path = folder / f"{output}.toml"
    path.write_text(
        f"""
[run]
output = "{output}"
seed = 1
[student]
model = "{student}"
[data]
train = "expert.jsonl"
[algorithm]
name = "sft"
[optimizer]
name = "muon"
learning_rate = 3e-3
matrix_learning_rate = 0.02
schedule = "linear"
final_fraction = 0.1
[trainer]
rounds = {rounds}
tasks_per_round = 64
minibatch_trajectories = 16
device = "cpu"
[checkpoint]
every = {every}
{ENVIRONMENT}{LIMITS}
"""
    )
    return path


def distil_toml(
    folder: Path,
    *,
    output: str,
    student: Path,
    teacher: Path,
    algorithm: str = 'name = "sod"\nform = "vocab"\nreward_coefficient = 0.0',
    more: str = "",
) -> Path:
    """Write the settings of a distillation run."""
    path = folder / f"{output}.toml"
    path.write_text(
        f"""
[run]
output = "{output}"
seed = 3
[student]
model = "{student}"
[teacher]
model = "{teacher}"
[data]
train = "train.jsonl"
eval = "eval.jsonl"
[algorithm]
{algorithm}
[optimizer]
name = "muon"
learning_rate = 1e-3
matrix_learning_rate = 0.01
warmup_updates = 2
schedule = "linear"
final_fraction = 0.2
[trainer]
rounds = 3
tasks_per_round = 8
minibatch_trajectories = 8
epochs = 2
device = "cpu"
[evaluation]
every = 3
[checkpoint]
every = 1
{ENVIRONMENT}{LIMITS}
num_samples = 2
temperature = 0.9
{more}
"""
    )
    return path
