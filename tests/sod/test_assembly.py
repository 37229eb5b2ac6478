"""The parts of a run as Python objects: what the API takes, and what it refuses before any rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sod.config import (
    EvaluationSection,
    MuonSection,
    RolloutSection,
    RunConfig,
    RunSection,
    TrainerSection,
)
from sod.config_algorithms import OPDSection, OPSDAnswerSection, SFTSection, SODSection
from sod.config_simct import SimCTSection
from sod.config_teachers import SelfTeacherSection
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry, build_environment, environment_entry
from sod.envs.tool_entry import ToolsSection, tool_environment
from sod.errors import ConfigError, DataError, ModelError
from sod.loop.display import Display
from sod.rewards import exact
from sod.teacher.base import Capability
from sod.teacher.local import LocalTeacher
from sod.testing import make_tiny_checkpoint
from sod.trainer import SODTrainer
from sod.types import Task, Trajectory, Turn

MY_ENTRY = EnvironmentEntry(
    options=ToolsSection, build=lambda section: tool_environment([double], section.reward)
)
NOT_AN_ENTRY = 3


def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: Any number.
    """
    return 2 * number


SOD = SODSection(form="vocab", reward_coefficient=0.0)


def config(path: Path, algorithm=None, **more) -> RunConfig:
    values = {
        "trainer": TrainerSection(rounds=1, tasks_per_round=2, minibatch_trajectories=2, device="cpu"),
        "rollout": RolloutSection(num_samples=1, max_turns=2, max_turn_tokens=8, max_trajectory_tokens=256),
        "optimizer": MuonSection(learning_rate=1e-3),
        **more,
    }
    return RunConfig(run=RunSection(output=path / "run"), algorithm=algorithm or SOD, **values)


TASKS = [Task(task_id=str(n), messages=({"role": "user", "content": f"double {n}"},)) for n in range(3)]
TASKS = [Task(task_id=t.task_id, messages=t.messages, fields={"answer": "1"}) for t in TASKS]
EXPERT = [
    Trajectory(task_id="e", turns=(Turn(context_ids=(5, 6), sampled_ids=(7, 8, 9)),)),
    Trajectory(task_id="f", turns=(Turn(context_ids=(5,), sampled_ids=(7, 2)),)),
]


def make(tmp_path, *arguments, algorithm=None, more=None, **parts):
    return SODTrainer(
        *arguments,
        config=config(tmp_path, algorithm, **(more or {})),
        display=Display(is_quiet=True),
        **parts,
    )


def test_models_tools_and_a_reward_are_all_it_takes(tmp_path, tiny_model, tiny_tokenizer, tiny_checkpoint):
    before = tiny_model.model.embed_tokens.weight.detach().clone()
    trainer = make(
        tmp_path,
        tiny_model,
        str(tiny_checkpoint),
        tokenizer=tiny_tokenizer,
        tools=[double],
        reward="exact",
        tasks=TASKS,
    )
    result = trainer.train()
    assert result.model is tiny_model
    assert result.metrics["rollout/trajectories"] == 2.0
    assert not torch.equal(tiny_model.model.embed_tokens.weight, before)
    assert (result.checkpoint / "tokenizer.json").is_file()


def test_a_student_by_name_a_teacher_object_and_a_bare_factory(tmp_path, tiny_checkpoint, tiny_model):
    factory = tool_environment([], exact).factory
    trainer = make(
        tmp_path, str(tiny_checkpoint), LocalTeacher(tiny_model), factory, tasks=TASKS, algorithm=OPDSection()
    )
    assert trainer.train().metrics["kl/token_mean"] > 0


def test_a_student_that_teaches_itself_is_told_more(tmp_path, tiny_model, tiny_tokenizer):
    parts = {"environment": tool_environment([], exact), "tokenizer": tiny_tokenizer, "tasks": TASKS}
    trainer = make(tmp_path, tiny_model, SelfTeacherSection(), algorithm=OPSDAnswerSection(), **parts)
    assert trainer.parts.teacher.model is not tiny_model
    assert trainer.train().metrics["kl/token_mean"] > 1e-4
    with pytest.raises(ConfigError, match=r'name = "self" has nothing to teach with algorithm "opd"'):
        make(tmp_path, tiny_model, SelfTeacherSection(), algorithm=OPDSection(), **parts)
    parts["tasks"] = [Task(task_id="n", messages=TASKS[0].messages)]
    with pytest.raises(
        ConfigError, match=r"tells the teacher fields\['answer'\] of a task, .* 'n' is 'None'"
    ):
        make(tmp_path, tiny_model, SelfTeacherSection(), algorithm=OPSDAnswerSection(), **parts)


def test_supervised_training_from_trajectories_in_memory(tmp_path, tiny_model, tiny_tokenizer):
    trainer = make(tmp_path, tiny_model, tokenizer=tiny_tokenizer, expert=EXPERT, algorithm=SFTSection())
    assert trainer.train().metrics["update/tokens"] == 5.0


def parts_of(tiny_model, tiny_tokenizer, **more):
    values = {
        "student": tiny_model,
        "teacher": LocalTeacher(tiny_model),
        "environment": tool_environment([], exact),
        "tokenizer": tiny_tokenizer,
        "tasks": TASKS,
        **more,
    }
    return {key: value for key, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("algorithm", "change", "words"),
    [
        (SOD, {"teacher": None}, 'algorithm "sod" needs a teacher, but there is none'),
        (OPDSection(), {"environment": None}, 'algorithm "opd" needs an environment'),
        (SOD, {"tasks": None}, 'algorithm "sod" needs tasks'),
        (SOD, {"expert": EXPERT}, 'expert trajectories were given, but algorithm "sod"'),
        (SFTSection(), {}, 'a teacher was given, but algorithm "sft" reads none'),
        (SFTSection(), {"teacher": None}, 'algorithm "sft" needs expert trajectories'),
        (SOD, {"tokenizer": None}, "tokenizer is None; wanted the student's"),
        (SOD, {"tools": [double], "reward": "exact"}, "got environment and tools or reward"),
        (
            SOD,
            {"environment": None, "tools": [double]},
            "got tools without a reward; pass reward=",
        ),
    ],
)
def test_parts_that_are_missing_or_too_many(tmp_path, tiny_model, tiny_tokenizer, algorithm, change, words):
    with pytest.raises(ConfigError) as caught:
        make(tmp_path, algorithm=algorithm, **parts_of(tiny_model, tiny_tokenizer, **change))
    assert words in str(caught.value)


def test_an_evaluation_needs_tasks(tmp_path, tiny_model, tiny_tokenizer):
    with pytest.raises(ConfigError, match=r"\[evaluation\] every = 1: needs held-out tasks"):
        make(
            tmp_path,
            more={"evaluation": EvaluationSection(every=1)},
            **parts_of(tiny_model, tiny_tokenizer),
        )


def test_a_teacher_that_cannot_give_logits(tmp_path, tiny_model, tiny_tokenizer):
    class Sampler:
        capabilities = frozenset()

    with pytest.raises(ConfigError, match='algorithm "sod" needs full logits'):
        make(tmp_path, **parts_of(tiny_model, tiny_tokenizer, teacher=Sampler()))


def test_a_teacher_of_another_tokenizer_that_cannot_give_logits(tmp_path, tiny_model, tiny_tokenizer):
    class Lister:
        capabilities = frozenset({Capability.TOP_K, Capability.SAMPLED})

    parts = parts_of(tiny_model, tiny_tokenizer, teacher=Lister())
    with pytest.raises(ConfigError, match='algorithm "simct" needs full logits of its teacher'):
        make(tmp_path, algorithm=SimCTSection(), teacher_tokenizer=tiny_tokenizer, **parts)


def test_a_student_that_is_its_own_teacher(tmp_path, tiny_model, tiny_tokenizer):
    with pytest.raises(ConfigError, match="student and teacher are one object"):
        make(tmp_path, **parts_of(tiny_model, tiny_tokenizer))


def test_a_teacher_with_another_tokenizer(tmp_path, tiny_model, tiny_tokenizer):
    other = make_tiny_checkpoint(tmp_path / "other", vocab_size=300)
    with pytest.raises(ModelError, match="Take a teacher with the student's tokenizer"):
        make(tmp_path, **parts_of(tiny_model, tiny_tokenizer, teacher=str(other)))


def test_a_minibatch_without_a_trained_token(tmp_path, tiny_model, tiny_tokenizer):
    idle = [
        Trajectory(task_id="i", turns=(Turn(context_ids=(5,), sampled_ids=(7,), is_trained=False),))
        for _ in range(2)
    ]
    trainer = make(tmp_path, tiny_model, tokenizer=tiny_tokenizer, expert=idle, algorithm=SFTSection())
    with pytest.raises(DataError, match=r"trajectories \[0, 1\] of round 0 have no token to train on"):
        trainer.train()


def test_an_environment_of_your_own_by_module_path():
    name = f"{__name__}:MY_ENTRY"
    built = build_environment(ToolsSection(name=name, reward="exact"))
    assert isinstance(built, BuiltEnvironment)
    assert [one.name for one in built.tools] == ["double"]
    with pytest.raises(ConfigError, match="wanted an EnvironmentEntry, got int"):
        environment_entry(f"{__name__}:NOT_AN_ENTRY")
    with pytest.raises(ConfigError, match="cannot be imported"):
        environment_entry("no_such_module:ENTRY")
    with pytest.raises(ConfigError, match="'tool': unknown; did you mean 'tools'"):
        environment_entry("tool")
    with pytest.raises(ConfigError, match="known: tools"):
        environment_entry("zzzz")
