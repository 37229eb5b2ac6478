"""Whole runs of SimCT: a teacher with another tokenizer and template, tool turns, step weights, resume."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from training_runs import SimulatedCrashError, StopAt, assert_same_run, crash, trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from sod.config_file import load_config
from sod.doctor import Level, diagnose
from sod.errors import ConfigError, ModelError, TranslationError
from sod.loop.display import Display
from sod.rollout.store import read_trajectories
from sod.testing import make_tiny_checkpoint
from sod.trainer import SODTrainer

pytestmark = pytest.mark.timeout(300)

SOD = 'name = "simct"\nweight = "sod"\ndelta = 0.5\nepsilon = 0.05'


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A teacher of other merges, which reads in words instead of control tokens."""
    return make_tiny_checkpoint(
        tmp_path_factory.mktemp("stranger"), hidden_size=32, num_layers=2, seed=7, vocab_size=320
    )


def write_toml(arithmetic, stranger, output, algorithm=SOD):
    path = arithmetic.toml(output, algorithm=algorithm)
    own, other = (f'model = "{folder}"' for folder in (arithmetic.teacher, stranger))
    path.write_text(path.read_text().replace(own, f'{other}\nchat_template = "plain"'))
    return path


@pytest.fixture
def toml(arithmetic, stranger):
    return partial(write_toml, arithmetic, stranger)


class Lines(Display):
    """Keeps what is shown."""

    def __init__(self):
        super().__init__(is_quiet=True)
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def unbroken(arithmetic, stranger):
    """A run, and the lines that it showed."""
    display = Lines()
    return trainer_of(write_toml(arithmetic, stranger, "cross_whole"), display=display).train(), display.lines


def test_a_teacher_with_another_tokenizer_teaches_through_tool_turns(unbroken, metric_rows):
    result, lines = unbroken
    rows = [row for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "round"]
    # Without the term over units there is no gradient at all, and the student stays where it was.
    assert rows[-1]["kl/token_mean"] < 0.5 * rows[0]["kl/token_mean"]
    assert 0 < rows[0]["unit/one_to_one"] < 1
    assert rows[0]["unit/per_step"] > 2
    assert rows[0]["unit/aligned_tokens"] > 0.9
    assert 0.9 < rows[0]["unit/compared_mean"] <= 1
    assert rows[0]["unit/dropped_trajectories"] < 4
    assert rows[0]["log_ratio_abs/token_mean"] > 0
    steps = metric_rows(result.folder / "steps.jsonl")
    weights = {row["weight"] for row in steps}
    assert min(weights) < 1.0 < max(weights) <= 1.5
    assert all(row["divergence"] > 0 for row in steps)
    assert {row["step"] for row in steps} >= {0, 1}
    stored = read_trajectories(result.folder / "trajectories" / "round_0000.jsonl.gz")
    observed = [turn.messages for one in stored for turn in one.turns[1:]]
    assert {message["role"] for messages in observed for message in messages} <= {"tool", "user"}
    assert any("tokenizers: shared text tokens" in line for line in lines)
    assert any("in 1:1 units" in line for line in lines)


def test_a_run_that_was_stopped_repeats_the_unbroken_one(toml, unbroken, metric_rows):
    path = toml("cross_halves")
    with pytest.raises(SimulatedCrashError):
        trainer_of(path, display=StopAt("updates", 6, crash)).train()
    assert_same_run(trainer_of(path).train(resume=True), unbroken[0], metric_rows)


def test_objects_need_the_teachers_tokenizer(arithmetic, stranger, toml):
    config = load_config(toml("cross_objects"), ["trainer.rounds=1"])
    made = SODTrainer.from_config(config, display=Display(is_quiet=True))
    made.parts.environment.close()
    teacher = AutoModelForCausalLM.from_pretrained(stranger)
    parts = {
        "environment": made.parts.environment,
        "tokenizer": made.parts.tokenizer,
        "tasks": made.parts.tasks,
        "eval_tasks": made.parts.eval_tasks,
        "config": config,
    }
    with pytest.raises(ConfigError, match='"simct" reads the teacher\'s tokenizer; pass teacher_tokenizer='):
        SODTrainer(made.model, teacher, **parts)
    tokenizer = AutoTokenizer.from_pretrained(stranger)
    trainer = SODTrainer(made.model, teacher, teacher_tokenizer=tokenizer, **parts)
    assert len(trainer.parts.pair.tables[1]) == len(tokenizer)


def test_an_algorithm_that_needs_equal_ids_names_the_one_that_does_not(toml):
    path = toml("cross_opd", 'name = "opd"')
    path.write_text(path.read_text().replace('chat_template = "plain"', ""))
    with pytest.raises(ModelError, match='or \\[algorithm\\] name = "simct"'):
        trainer_of(path)


@pytest.mark.parametrize("policy", ["drop", "stop"])
def test_a_trajectory_that_cannot_be_aligned_is_left_out_or_stops_the_run(toml, metric_rows, policy):
    path, display = toml(f"cross_{policy}", f'{SOD}\nmisaligned = "{policy}"'), Lines()
    trainer = trainer_of(path, "trainer.rounds=1", display=display)
    tokenizer, rows = trainer.parts.tokenizer, trainer.model.get_input_embeddings().weight
    # Half of the time the student writes a control token, which has no partner, instead of a word.
    word = tokenizer("The answer is 7")["input_ids"][0]
    with torch.no_grad():
        rows[tokenizer.convert_tokens_to_ids("<|endoftext|>")] = rows[word]
    where = r"simct: trajectory \d+ \(task '.*'\), turn \d: the student wrote '<\|endoftext\|>'"
    if policy == "stop":
        with pytest.raises(TranslationError, match=where):
            trainer.train()
        return
    result = trainer.train()
    (row,) = [row for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "round"]
    assert 0 < row["unit/dropped_trajectories"] < 16
    kept = {row["trajectory"] for row in metric_rows(result.folder / "steps.jsonl")}
    assert len(kept) == 16 - row["unit/dropped_trajectories"]
    assert any(re.search(f"trajectories were left out: {where}", line) for line in display.lines)


def test_the_doctor_tells_the_coverage_of_the_pair(toml):
    found = diagnose(load_config(toml("cross_doctor"), []))
    by_subject = {(finding.area, finding.subject): finding for finding in found}
    columns, units = by_subject["teacher", "shared columns"], by_subject["teacher", "units"]
    assert "shared text tokens" in columns.text
    assert "<|im_end|> = <|im_end|>" in columns.text
    assert units.level is Level.OK
    assert "are in units of one token on each side" in units.text
    assert not found.is_fatal, [each for each in found if each.level is Level.FATAL]
