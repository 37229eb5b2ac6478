"""`sod tasks`: files of tasks and of demonstrations that the loaders read back."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from sod.chat import ChatRenderer
from sod.cli import app
from sod.config_file import load_config
from sod.data import expert_trajectories, load_tasks, read_rows, write_rows
from sod.envs.registry import TaskRequest
from sod.envs.tool_entry import ToolsSection
from sod.errors import ConfigError, DataError
from sod.task_files import make_tasks

TOML = """
[run]
output = "out"
[trainer]
rounds = 1
[rollout]
max_turns = 12
[environment]
name = "web_store"
cache = "cache"
num_made_up = 20
"""


@pytest.fixture
def run_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["tasks", *map(str, arguments)])


def test_tasks_are_written_and_read_back(run_toml, tmp_path):
    output = tmp_path / "new" / "tasks.jsonl"
    result = invoke(run_toml, "--output", output, "--num-tasks", 3, "--seed", 4, "--split", "test")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("3 tasks: ")
    section = load_config(run_toml).environment
    made = make_tasks(section, TaskRequest(num_tasks=3, seed=4, split="test"))
    loaded = load_tasks(output, answer_column=None, id_column="task_id")
    assert [(task.task_id, task.messages) for task in loaded] == [
        (task.task_id, task.messages) for task in made
    ]
    assert loaded[0].fields["goal"]["product_id"] == made[0].fields["goal"]["product_id"]


def test_the_experts_conversations_become_trajectories(run_toml, tmp_path, tiny_tokenizer):
    output = tmp_path / "expert.jsonl"
    result = invoke(run_toml, "--output", output, "--num-tasks", 2, "--expert")
    assert result.exit_code == 0, result.output
    renderer = ChatRenderer(tiny_tokenizer, observation_roles=("user",))
    trajectories = expert_trajectories(output, renderer)
    assert len(trajectories) == 2
    last = tiny_tokenizer.decode(trajectories[0].turns[-1].sampled_ids)
    assert last == "<action>click[buy now]</action><|im_end|>"


def test_errors_are_one_line_and_code_two(run_toml, tmp_path):
    result = invoke(run_toml, "--output", tmp_path / "a.jsonl", "--num-tasks", 99)
    assert result.exit_code == 2
    assert "99 goals from 0 on asked for" in result.output
    run_toml.write_text(TOML.partition("[environment]")[0])
    result = invoke(run_toml, "--output", tmp_path / "a.jsonl", "--num-tasks", 1)
    assert result.exit_code == 2
    assert "section [environment] is missing; it says whose tasks are made" in result.output


def test_an_environment_without_tasks_of_its_own_is_refused():
    with pytest.raises(ConfigError, match='name = "tools": makes no tasks; write a file of them'):
        make_tasks(ToolsSection(), TaskRequest(num_tasks=1))


def test_a_file_that_would_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(DataError, match=r"tasks.txt must be a .jsonl file"):
        write_rows(tmp_path / "tasks.txt", [])
    write_rows(tmp_path / "rows.jsonl", [{"a": "é"}, {"a": 2}])
    assert list(read_rows(tmp_path / "rows.jsonl", "test", None)) == [(1, {"a": "é"}), (2, {"a": 2})]
