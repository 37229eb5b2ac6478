"""The papers' runs as settings: each passes a dry run on a small file of the published form."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sod.config_file import load_config
from sod.doctor import examine_run
from sod.envs.registry import TaskRequest
from sod.run_data import load_task_file
from sod.task_files import write_task_file
from sod.testing import make_tiny_checkpoint

RECIPES = {
    path.stem: path for path in (Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.toml")
}
PROMPT = [{"role": "user", "content": "P?"}]
CALL = {"type": "function", "function": {"name": "python", "arguments": json.dumps({"code": "print(4)"})}}
CONVERSATION = [
    *PROMPT,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "name": "python"},
    {"role": "assistant", "content": r"\boxed{4}"},
]


def table(path, *rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return f"'{path}'"


def made(name, folder):
    """Small files in the place of those that a recipe names, as settings."""
    if name == "sft_qwen3_0.6b":
        return [f"data.train={table(folder / 'sft.parquet', {'messages': CONVERSATION})}"]
    if name == "sod_qwen3_0.6b":
        truths = ["34", json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})]
        rows = [
            {"data_source": "d", "prompt": PROMPT, "reward_model": {"ground_truth": one}} for one in truths
        ]
        return [f"data.train={table(folder / 'rl.parquet', *rows)}"]
    if name == "atod_search_qa":
        corpus, questions = folder / "corpus.jsonl", folder / "questions.jsonl"
        corpus.write_text(json.dumps({"title": "Rome", "text": "Rome is in Italy."}) + "\n")
        questions.write_text(json.dumps({"question": "Where is Rome?", "golden_answers": ["Italy"]}) + "\n")
        files = [f"data.{which}='{questions}'" for which in ("train", "eval")]
        return [*files, f"environment.corpus='{corpus}'", f"environment.cache='{folder / 'index'}'"]
    more = [f"environment.cache='{folder / 'index'}'"] if name == "atod_web_store" else []
    tasks = folder / "tasks.jsonl"
    section = load_config(RECIPES[name], more).environment
    write_task_file(section, TaskRequest(num_tasks=2), tasks)
    return [*more, *(f"data.{which}='{tasks}'" for which in ("train", "eval"))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("student"))


@pytest.mark.sandbox
@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"eval_qwen3"}))
def test_a_recipe_passes_a_dry_run_on_a_small_file(name, checkpoint, tmp_path):
    if name == "atod_alfworld" and find_spec("alfworld") is None:
        pytest.skip("alfworld is not installed")
    settings = [f"run.output='{tmp_path / 'run'}'", f"student.model='{checkpoint}'", *made(name, tmp_path)]
    if "sandbox_workers" in RECIPES[name].read_text():
        settings.append("environment.sandbox_workers=1")
    if "[teacher]" in RECIPES[name].read_text():
        settings.append(f"teacher.model='{checkpoint}'")
    config = load_config(RECIPES[name], settings)
    findings = {(each.area, each.subject): each for each in examine_run(config)}
    broken = {key: each.text for key, each in findings.items() if each.level == "fatal"}
    for text in [text for (area, _), text in broken.items() if area == "sandbox"]:
        pytest.skip(text)
    # The checkpoint in place of the recipe's is too short for its trajectories.
    assert set(broken) <= {("student", "context"), ("teacher", "context")}
    assert "proven" in findings["template", "append-only"].text
    if name == "sft_qwen3_0.6b":
        assert findings["data", "expert trajectories"].text == "1"
    else:
        number = 1 if name == "atod_search_qa" else 2
        assert findings["data", "training tasks"].text.startswith(f"{number} task")


def test_the_evaluation_reads_an_examination(tmp_path):
    file = table(tmp_path / "aime.parquet", {"Problem": "P?", "Answer": 33})
    config = load_config(RECIPES["eval_qwen3"], [f"data.train={file}", f"data.eval={file}"])
    (task,) = load_task_file(config, "eval")
    assert task.fields["grader"] == "math"
    assert config.environment.reward == "by_task"
    assert (config.evaluation.num_samples, config.evaluation.top_p) == (32, 0.6)


def surrogate_of(config):
    return config.algorithm.clip_low, config.algorithm.clip_high, config.algorithm.dual_clip


def test_recipes_have_the_papers_numbers():
    sod = load_config(RECIPES["sod_qwen3_0.6b"])
    # 64 prompts x 16 rollouts, 256 trajectories an update, one epoch.
    assert sod.updates_per_round == 4
    assert (sod.trainer.tasks_per_round, sod.rollout.num_samples, sod.trainer.epochs) == (64, 16, 1)
    assert (sod.algorithm.delta, sod.algorithm.epsilon, sod.algorithm.reward_coefficient) == (0.2, 1e-6, 1.0)
    assert surrogate_of(sod) == (0.2, 0.28, 3.0)
    assert (sod.optimizer.learning_rate, sod.optimizer.weight_decay, sod.optimizer.warmup_updates) == (
        *(1e-6, 0.01),
        0,
    )
    assert sod.rollout.max_trajectory_tokens == 2560 + 20480
    assert (sod.rollout.max_turns, sod.rollout.max_observation_chars, sod.rollout.top_p) == (16, 256, 1.0)
    assert (sod.environment.python_timeout_s, sod.environment.sandbox_workers) == (60.0, 32)
    sft = load_config(RECIPES["sft_qwen3_0.6b"])
    assert 5 * 3000 - 128 < sft.num_updates * 128 <= 5 * 3000
    assert (sft.optimizer.learning_rate, sft.optimizer.beta2, sft.optimizer.schedule) == (
        5e-5,
        0.95,
        "cosine",
    )
    assert sft.optimizer.warmup_updates == pytest.approx(0.1 * sft.num_updates, abs=1)
    assert sft.rollout.max_trajectory_tokens == 32768
    # The checkpoint that the second stage starts from is the one that the first leaves.
    assert sod.student.model.endswith(f"round_{sft.num_updates:05d}_update_{sft.num_updates:07d}")
    evaluation = load_config(RECIPES["eval_qwen3"])
    assert evaluation.student.model.endswith(f"update_{sod.num_updates:07d}")
    for name in ("atod_alfworld", "atod_web_store", "atod_search_qa"):
        atod = load_config(RECIPES[name])
        assert (atod.algorithm.anneal_rounds, atod.trainer.rounds, atod.rollout.num_samples) == (80, 150, 8)
        assert atod.environment.invalid_penalty == 0.1
        coefficients = [
            getattr(atod.algorithm, f"{term}_{end}")
            for term in ("distillation", "reward")
            for end in ("start", "end")
        ]
        assert coefficients == [1.0, 0.1, 1.0, 2.0]
        assert surrogate_of(atod) == (0.2, 0.2, 3.0)
        assert (atod.algorithm.min_turns, atod.algorithm.min_divergence) == (3, 0.01)
        assert (atod.optimizer.learning_rate, atod.optimizer.weight_decay) == (1e-6, 0.01)
        assert (atod.evaluation.every, atod.evaluation.temperature) == (5, 0.4)
        assert atod.rollout.max_turns == {"alfworld": 50, "web_store": 15, "search_qa": 4}[name[5:]]
        assert atod.student.enable_thinking is False
