"""Whole runs on real files: supervised, OPD and SOD; what they write, and what they refuse."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
from training_runs import SimulatedCrashError, StopAt, assert_same_run, crash, terminate, trainer_of
from transformers import AutoModelForCausalLM

from sod.config_file import load_config
from sod.errors import CheckpointError, ConfigError, RolloutError, TrainingError
from sod.loop.display import Display
from sod.loop.signals import StopRequested
from sod.rollout.store import read_trajectories

pytestmark = pytest.mark.timeout(300)


def test_sft_learns_from_expert_rows(arithmetic, metric_rows):
    rounds = [row for row in metric_rows(arithmetic.sft / "metrics.jsonl") if row["kind"] == "round"]
    assert [row["round"] for row in rounds] == list(range(12))
    losses = [row["nll/token_mean"] for row in rounds]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] == pytest.approx(rounds[0]["loss/total"], rel=1e-6)
    steps = metric_rows(arithmetic.sft / "steps.jsonl")
    assert {row["step"] for row in steps} == {0, 1}
    assert len(steps) == 12 * 64 * 2


ALGORITHMS = {
    "opd": 'name = "opd"',
    "opd_sampled": 'name = "opd"\nform = "sampled"\nreward_coefficient = 0.1',
    "sod": 'name = "sod"\nform = "vocab"\nreward_coefficient = 0.0',
    "sod_paper": 'name = "sod"\nreward_coefficient = 0.1',
    "atod": 'name = "atod"\nform = "vocab"\nanneal_rounds = 9\nmin_turns = 2\n'
    "reward_start = 0.0\nreward_end = 0.0",
    "stm": 'name = "stm"',
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_distillation_lowers_the_divergence(arithmetic, metric_rows, name):
    toml = arithmetic.toml(f"learn_{name}", algorithm=ALGORITHMS[name])
    # The sampled form sees one token where the other sees the vocabulary: four times the trajectories.
    is_sampled = name in ("opd_sampled", "sod_paper")
    more = ("rollout.num_samples=8", "trainer.minibatch_trajectories=32") if is_sampled else ()
    result = trainer_of(toml, "trainer.rounds=6", *more).train()
    rows = metric_rows(result.folder / "metrics.jsonl")
    rounds = [row for row in rows if row["kind"] == "round"]
    updates = [row for row in rows if row["kind"] == "update"]
    assert len(rounds) == 6
    assert len(updates) == 6 * 2 * 2
    rates = [row["update/learning_rate"] for row in updates]
    assert rates[0] == pytest.approx(0.5e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(0.2e-3)
    assert rounds[-1]["kl/token_mean"] < 0.8 * rounds[0]["kl/token_mean"]
    assert [row["round"] for row in rows if row["kind"] == "eval"] == [0, 3, 6]
    assert all(row["alignment/gap_max"] < 1e-3 for row in updates if "alignment/gap_max" in row)
    assert sum("alignment/gap_max" in row for row in updates) == 6
    weights = {row["weight"] for row in metric_rows(result.folder / "steps.jsonl")}
    assert (weights == {1.0}) == name.startswith("opd")
    coefficients = [row.get("coefficient/distillation") for row in rounds]
    wanted = {"atod": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}.get(name, [1.0] * 6)
    assert coefficients == pytest.approx(wanted)

    before = AutoModelForCausalLM.from_pretrained(arithmetic.student).state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.checkpoint).state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(after[key], value) for key, value in result.model.state_dict().items())


def test_the_reference_is_where_the_run_started_also_after_a_resume(arithmetic, metric_rows):
    whole = trainer_of(arithmetic.toml("stm_whole", algorithm='name = "stm"')).train()
    halves = arithmetic.toml("stm_halves", algorithm='name = "stm"')

    class StopAfterOne(Display):
        def end_round(self, index, row):
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StopRequested):
        trainer_of(halves, display=StopAfterOne(is_quiet=True)).train()
    resumed = trainer_of(halves).train(resume=True)

    def numbers(result):
        rows = metric_rows(result.folder / "metrics.jsonl")
        kept = ("loss/total", "kl_reference/token_mean", "step/weight_mean", "grad/norm")
        return [{key: row[key] for key in kept} for row in rows if row["kind"] == "update"]

    assert numbers(resumed) == numbers(whole)
    assert numbers(whole)[0]["kl_reference/token_mean"] < 1e-6
    assert numbers(whole)[-1]["kl_reference/token_mean"] > 1e-4


def test_the_reference_may_be_a_checkpoint(arithmetic, metric_rows):
    toml = arithmetic.toml("stm_held", algorithm='name = "stm"')
    sets = (f"reference.model='{arithmetic.teacher}'", "trainer.rounds=1", "evaluation.every=0")
    result = trainer_of(toml, *sets).train()
    first = next(row for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "update")
    # The teacher itself as the reference: both targets are one.
    assert first["kl_reference/token_mean"] == pytest.approx(first["kl/token_mean"], rel=1e-5)


def test_steps_match_the_trajectories_that_were_stored(arithmetic, metric_rows):
    result = trainer_of(arithmetic.toml("stored"), "trainer.rounds=1", "trainer.epochs=1").train()
    stored = read_trajectories(result.folder / "trajectories" / "round_0000.jsonl.gz")
    assert len(stored) == 16
    rows = metric_rows(result.folder / "steps.jsonl")
    wanted = {(i, k): len(t.sampled_ids) for i, one in enumerate(stored) for k, t in enumerate(one.turns)}
    assert {(row["trajectory"], row["step"]): row["tokens"] for row in rows} == wanted
    for row in rows:
        one = stored[row["trajectory"]]
        assert row["task_id"] == one.task_id
        assert row["outcomes"] == [str(result.outcome) for result in one.turns[row["step"]].results]
        before = one.turns[row["step"] - 1].results if row["step"] else ()
        assert row["is_after_error"] == any(result.is_error for result in before)
    round_row = next(r for r in metric_rows(result.folder / "metrics.jsonl") if r["kind"] == "round")
    assert round_row["rollout/errors_per_trajectory"] == sum(one.num_errors for one in stored) / 16
    assert any(one.num_errors for one in stored), "the task must produce error observations"
    assert round_row["step/count_by_turn"][0] == 16.0


def test_gradient_checkpointing_changes_memory_and_not_the_run(arithmetic, unbroken, metric_rows):
    toml = arithmetic.toml("recomputed")
    result = trainer_of(toml, "student.gradient_checkpointing=true").train()
    assert metric_rows(result.folder / "metrics.jsonl") == metric_rows(unbroken.folder / "metrics.jsonl")


def test_bfloat16_products_train_float32_weights(arithmetic, unbroken, metric_rows):
    toml = arithmetic.toml("rounded")
    result = trainer_of(toml, "trainer.precision='bfloat16'", "trainer.rounds=1").train()
    assert result.model.dtype == torch.float32
    gaps = [
        r["alignment/gap_max"]
        for r in metric_rows(result.folder / "metrics.jsonl")
        if "alignment/gap_max" in r
    ]
    assert 1e-4 < gaps[0] < 1.0
    assert result.metrics["kl/token_mean"] == pytest.approx(
        metric_rows(unbroken.folder / "metrics.jsonl")[5]["kl/token_mean"], rel=0.5
    )


def test_the_run_folder_says_what_ran(arithmetic):
    toml = arithmetic.toml("folder")
    result = trainer_of(toml, "trainer.rounds=1").train()
    config = load_config(result.folder / "config.resolved.toml")
    assert config == load_config(toml, ["trainer.rounds=1"])
    (start,) = json.loads((result.folder / "env.json").read_text())["starts"]
    assert start["packages"]["torch"] == torch.__version__
    assert start["num_threads"] == 1
    assert {"python", "git_sha", "cpu"} <= start.keys()


@pytest.mark.parametrize(
    ("part", "count"), [("rollout", 5), ("updates", 1), ("updates", 7), ("updates", 8), ("evaluation", 12)]
)
def test_a_crash_anywhere_resumes_to_the_same_run(arithmetic, unbroken, metric_rows, part, count):
    toml = arithmetic.toml(f"crash_{part}_{count}")
    with pytest.raises(SimulatedCrashError):
        trainer_of(toml, display=StopAt(part, count, crash)).train()
    assert_same_run(trainer_of(toml).train(resume=True), unbroken, metric_rows)


@pytest.mark.parametrize(("part", "count"), [("rollout", 20), ("updates", 6), ("updates", 8)])
def test_sigterm_keeps_every_update_and_resumes_to_the_same_run(
    arithmetic, unbroken, metric_rows, part, count
):
    toml = arithmetic.toml(f"term_{part}_{count}")
    stopped = trainer_of(toml, display=StopAt(part, count, terminate))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopRequested, match="SIGTERM"):
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) == before
    if part == "updates":
        assert stopped.state.update == count
    again = trainer_of(toml)
    result = again.train(resume=True)
    assert_same_run(result, unbroken, metric_rows)


def test_resuming_a_finished_run_changes_nothing_and_more_rounds_go_on(arithmetic, metric_rows):
    toml = arithmetic.toml("longer")
    constant = ["optimizer.schedule='constant'", "optimizer.final_fraction=0.0"]
    first = trainer_of(toml, "trainer.rounds=2", *constant).train()
    before = (first.folder / "metrics.jsonl").read_bytes()
    trainer_of(toml, "trainer.rounds=2", *constant).train(resume=True)
    assert (first.folder / "metrics.jsonl").read_bytes() == before
    longer = trainer_of(toml, "trainer.rounds=3", *constant).train(resume=True)
    rounds = [row["round"] for row in metric_rows(longer.folder / "metrics.jsonl") if row["kind"] == "round"]
    assert rounds == [0, 1, 2]


def test_a_run_is_not_written_over_nor_resumed_with_other_settings(arithmetic):
    toml = arithmetic.toml("once")
    trainer_of(toml, "trainer.rounds=1").train()
    with pytest.raises(ConfigError, match="holds a run already; go on with it by --resume"):
        trainer_of(toml, "trainer.rounds=1").train()
    with pytest.raises(CheckpointError, match=r"other settings: \[rollout\] temperature: 0.9 -> 0.5"):
        trainer_of(toml, "trainer.rounds=1", "rollout.temperature=0.5").train(resume=True)
    with pytest.raises(CheckpointError, match="holds no run"):
        trainer_of(arithmetic.toml("never")).train(resume=True)


def test_tokens_that_were_not_sampled_by_these_weights_are_noticed(arithmetic):
    toml = arithmetic.toml("misaligned")
    trainer = trainer_of(toml, "evaluation.every=0")

    class Drift(Display):
        def part(self, name, done, total, metrics=None):
            if name == "rollout" and done == total:
                with torch.no_grad():
                    trainer.model.model.norm.weight.mul_(1.5)

    trainer._display = Drift(is_quiet=True)
    with pytest.raises(RolloutError, match=r"trajectory \d+ \(task 'train:\d+'\), turn \d, token \d"):
        trainer.train()


def test_gradients_that_stay_infinite_stop_the_run(arithmetic, metric_rows):
    toml = arithmetic.toml("infinite")
    trainer = trainer_of(toml, "trainer.max_skipped_updates=3", "evaluation.every=0")
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="not finite 3 times in a row"):
        trainer.train()
    rows = metric_rows(arithmetic.folder / "infinite" / "metrics.jsonl")
    updates = [row for row in rows if row["kind"] == "update"]
    assert [row["update/is_skipped"] for row in updates] == [1.0, 1.0, 1.0]
    assert math.isfinite(updates[0]["loss/total"])
    before = AutoModelForCausalLM.from_pretrained(arithmetic.student).state_dict()
    assert all(torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())


def test_a_collapsed_anchor_is_told_once_on_screen_and_in_the_metrics(
    arithmetic, metric_rows, monkeypatch, capsys
):
    monkeypatch.setattr("sod.loop.records.ANCHOR_RATIO", 1e9)
    result = trainer_of(arithmetic.toml("anchor"), "trainer.rounds=2", "evaluation.every=0").train()
    texts = [row["text"] for row in metric_rows(result.folder / "metrics.jsonl") if row["kind"] == "warning"]
    assert len(texts) == 1
    assert texts[0].startswith("anchor collapse: the first step's mean divergence")
    assert capsys.readouterr().err.count("warning: anchor collapse") == 1
