"""Whole runs with teachers of every kind: told more than the student, and several of them."""

from __future__ import annotations

import json
import shutil

import pytest
from training_runs import SimulatedCrashError, StopAt, assert_same_run, crash, trainer_of

from sod.errors import ConfigError
from sod.loop.minibatches import is_own_round
from sod.rollout.store import read_trajectories

pytestmark = pytest.mark.timeout(300)

SHORT = ("trainer.rounds=1", "evaluation.every=0")


def tell(arithmetic, output, algorithm, teacher):
    """A run whose tasks have a hint and a source, with a teacher of one's own writing."""
    toml = arithmetic.toml(output, algorithm=algorithm)
    (block,) = [block for block in toml.read_text().split("\n[") if block.startswith("teacher]")]
    text = toml.read_text().replace(f"[{block}", teacher).replace("train.jsonl", "told.jsonl")
    toml.write_text(text)
    tasks = [json.loads(line) for line in (arithmetic.folder / "train.jsonl").read_text().splitlines()]
    conversations = (arithmetic.folder / "expert.jsonl").read_text().splitlines()
    rows = [
        {**task, **json.loads(expert), "data_source": ("even", "odd")[index % 2]}
        for index, (task, expert) in enumerate(zip(tasks, conversations, strict=False))
    ]
    (arithmetic.folder / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return toml


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [("opsd_gt", "start", "The right answer is: "), ("opsd_hint", "current", 'A hint:\n1. add({"a": ')],
)
def test_a_student_learns_from_itself_told_more_also_after_a_crash(
    arithmetic, metric_rows, name, weights, words
):
    algorithm = f'name = "{name}"' + ('\nhint_field = "messages"' if name == "opsd_hint" else "")
    teacher = f'[teacher]\nname = "self"\nweights = "{weights}"\n'
    trainer = trainer_of(tell(arithmetic, name, algorithm, teacher), *SHORT)
    result = trainer.train()
    updates = [row for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "update"]
    # Nothing but what the teacher is told can make a student differ from itself.
    assert updates[0]["kl/token_mean"] > 1e-3
    assert updates[0]["loss/total"] == pytest.approx(updates[0]["kl/token_mean"], rel=1e-5)
    stored = read_trajectories(result.folder / "trajectories" / "round_0000.jsonl.gz")
    renderer = trainer.parts.renderer
    for one in stored:
        assert words in renderer.decode(one.turns[0].teacher_context_ids)
        assert words not in renderer.decode(one.turns[0].context_ids)
        assert all(turn.teacher_context_ids is None for turn in one.turns[1:])
    if weights == "start":
        # The policy that the run started from is not that of the checkpoint.
        halves = tell(arithmetic, f"{name}_halves", algorithm, teacher)
        with pytest.raises(SimulatedCrashError):
            trainer_of(halves, *SHORT, display=StopAt("updates", 2, crash)).train()
        assert_same_run(trainer_of(halves, *SHORT).train(resume=True), result, metric_rows)


def test_what_the_teacher_is_told_must_be_there_before_weights_are_loaded(arithmetic, tmp_path):
    bare = shutil.copytree(
        arithmetic.student, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    toml = tell(arithmetic, "untold", 'name = "opsd_hint"', '[teacher]\nname = "self"\n')
    with pytest.raises(ConfigError, match=r"fields\['hint'\] of a task, but that of task 'told:1' is 'None'"):
        trainer_of(toml, f"student.model='{bare}'")
    toml = tell(arithmetic, "idle", 'name = "opd"', '[teacher]\nname = "self"\n')
    with pytest.raises(ConfigError, match=r'name = "self" has nothing to teach with algorithm "opd"'):
        trainer_of(toml)


def test_every_task_is_scored_by_its_own_teacher(arithmetic, metric_rows):
    routes = (
        '[teacher]\nname = "routed"\n'
        f'[teacher.routes.even]\nmodel = "{arithmetic.teacher}"\nkeep_scores = "run"\n'
        f'[teacher.routes.odd]\nmodel = "{arithmetic.student}"\n'
    )
    toml = tell(arithmetic, "routed", 'name = "opd"', routes)
    result = trainer_of(toml, "trainer.rounds=1", "trainer.epochs=1", "evaluation.every=0").train()
    assert (result.folder / "teacher_scores" / "scores.sqlite").is_file()
    rows = [row for row in metric_rows(result.folder / "steps.jsonl") if row["update"] == 0]
    by_parity = {0: [], 1: []}
    for row in rows:
        by_parity[int(row["task_id"].split(":")[1]) % 2].append(row["divergence"])
    # Rows are counted from 1. Before the first update the student is its own start.
    assert max(by_parity[0]) < 1e-5
    assert min(by_parity[1]) > 1e-3
    toml = tell(arithmetic, "unrouted", 'name = "opd"', routes.replace("odd", "prime"))
    wanted = r"that of task 'told:2' is 'odd'; wanted one of the routes even, prime"
    with pytest.raises(ConfigError, match=wanted):
        trainer_of(toml)


def test_rounds_of_the_student_and_of_an_expert_are_mixed(arithmetic, metric_rows):
    sets = ("data.expert='expert.jsonl'", "trainer.rounds=2", "trainer.epochs=1", "evaluation.every=0")

    def trainer(output, **more):
        toml = arithmetic.toml(output, algorithm='name = "gkd"\non_policy_share = 0.5')
        return trainer_of(toml, *sets, "run.seed=0", **more)

    whole = trainer("mixed")
    assert [is_own_round(whole.config, index) for index in range(2)] == [True, False]
    result = whole.train()
    stored = [path.name for path in (result.folder / "trajectories").iterdir()]
    assert stored == ["round_0000.jsonl.gz"]
    steps = metric_rows(result.folder / "steps.jsonl")
    updates = [row for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "update"]
    assert len(updates) == whole.config.num_updates == 4
    for index, name in enumerate(("train", "expert")):
        rows = [row for row in steps if row["round"] == index]
        assert {row["task_id"].split(":")[0] for row in rows} == {name}
        assert len({row["trajectory"] for row in rows}) == 16
        # Nobody sampled what the expert wrote, so there is nothing to align.
        is_aligned = ["alignment/gap_max" in row for row in updates if row["round"] == index]
        assert any(is_aligned) == (name == "train")
    with pytest.raises(SimulatedCrashError):
        trainer("mixed_halves", display=StopAt("updates", 3, crash)).train()
    assert_same_run(trainer("mixed_halves").train(resume=True), result, metric_rows)


def test_expert_conversations_are_given_exactly_where_they_are_read(arithmetic):
    toml = arithmetic.toml("unmixed", algorithm='name = "gkd"')
    with pytest.raises(ConfigError, match=r'\[data\] expert is missing; give .* to algorithm "gkd"'):
        trainer_of(toml)
    for change in ("algorithm.on_policy_share=1", "algorithm.name='opd'"):
        with pytest.raises(ConfigError, match=r"\[data\] expert is not read by algorithm|belongs to"):
            trainer_of(toml, "data.expert='expert.jsonl'", change)
