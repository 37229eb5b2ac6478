"""The training loop, and the only place that owns state.

One *round*: take tasks, roll them out (or take expert trajectories), tokenise, make the updates, evaluate,
checkpoint. Every random draw is derived from the root seed and its place in the run, so a run that was
killed and resumed repeats the unbroken one bit for bit (CPU, one thread).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sod.algorithms import LossContext, make_algorithm
from sod.assembly import RunParts, assemble, assemble_objects
from sod.checkpoint import TrainerState, latest_checkpoint, recover_checkpoint, save_checkpoint
from sod.config import RunConfig
from sod.config_algorithms import SODSection
from sod.config_teachers import SelfTeacherSection
from sod.envs.base import EnvironmentFactory
from sod.envs.registry import BuiltEnvironment
from sod.errors import ServiceUnavailableError, TrainingError
from sod.evaluate import rollout_metrics
from sod.loop.alignment import Canary, check_versions
from sod.loop.display import Display
from sod.loop.minibatches import Minibatch, is_own_round, plan_round
from sod.loop.records import (
    add_steps,
    anchor_warning,
    mean_metrics,
    running_quantile,
    step_rows,
    step_table,
)
from sod.loop.result import TrainResult
from sod.loop.sampling import make_runner, make_sampler
from sod.loop.signals import StopRequested, StopSignals
from sod.loop.targets import round_targets
from sod.loop.update import UpdateResult, UpdateSettings, run_update
from sod.metrics import JsonLines, read_rows
from sod.models import load_weights
from sod.optim import OptimizerSet, learning_rate_scale
from sod.pairing import translate_for
from sod.rollout.store import read_trajectories, write_trajectories
from sod.run_folder import RunFolder
from sod.seeding import seed_generators, take_from
from sod.teacher.base import AnyTeacher, ListingTeacher
from sod.translation import TranslatedRound
from sod.types import Task, Trajectory


class SODTrainer:
    """Trains a student: `SODTrainer(student, teacher, environment, config=config).train()`."""

    def __init__(
        self,
        student: PreTrainedModel | str,
        teacher: AnyTeacher | PreTrainedModel | SelfTeacherSection | str | None = None,
        environment: BuiltEnvironment | EnvironmentFactory | None = None,
        *,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
        tools: Sequence[Any] = (),
        reward: Any = None,
        tasks: Sequence[Task] = (),
        eval_tasks: Sequence[Task] = (),
        expert: Sequence[Trajectory] = (),
        display: Display | None = None,
    ) -> None:
        """Take the parts of a run as objects; `from_config` builds them from a TOML file instead.

        Args:
            student: The model that is trained, or where to load it from.
            teacher: Who scores, frozen; `SelfTeacherSection()` for the student itself, None for "sft".
            environment: What the student acts in; a bare factory where its environments have no tools that
                the template must tell of. Or None and `tools` with `reward`.
            config: Settings; `student`, `teacher`, `data` and `environment` sections are not read.
            tokenizer: The student's; None loads the one that lies with `student`.
            teacher_tokenizer: The teacher's, for "simct"; None loads the one that lies with `teacher`.
            tools: Plain functions or `Tool`s for the standard tool environment.
            reward: Name of a reward or a function (task, text) -> float.
            tasks: Training tasks.
            eval_tasks: Held-out tasks.
            expert: Expert trajectories, for "sft" and "gkd".
            display: Where progress is shown; None for stderr.
        """
        parts = assemble_objects(
            config,
            student=student,
            teacher=teacher,
            environment=environment,
            tokenizer=tokenizer,
            teacher_tokenizer=teacher_tokenizer,
            tools=tools,
            reward=reward,
            tasks=tasks,
            eval_tasks=eval_tasks,
            expert=expert,
        )
        self._take(config, parts, display)

    @classmethod
    def from_config(cls, config: RunConfig, *, display: Display | None = None) -> Self:
        """Build every part from the settings of a TOML file.

        Args:
            config: Settings with all sections that the algorithm needs.
            display: Where progress is shown; None for stderr.

        Returns:
            A trainer.

        Raises:
            SodError: Whatever does not exist or does not fit.
        """
        # What the algorithm's settings get wrong shows before any weights are loaded.
        make_algorithm(config.algorithm)
        trainer = cls.__new__(cls)
        trainer._take(config, assemble(config), display)
        return trainer

    def _take(self, config: RunConfig, parts: RunParts, display: Display | None) -> None:
        self.config = config
        self.parts = parts
        self.model = parts.student
        self.state = TrainerState()
        self._display = display or Display()
        self._algorithm = make_algorithm(
            config.algorithm,
            vocab_size=parts.vocab_size,
            sampling_temperature=config.rollout.temperature,
        )
        self._optimizer = OptimizerSet(self.model, config.optimizer)
        self._reference = parts.reference
        self._autocast = torch.bfloat16 if config.trainer.precision == "bfloat16" else None
        self._canary = Canary.of(config, vocab_size=parts.vocab_size, dtype=self.model.dtype)

    def train(self, *, resume: bool = False) -> TrainResult:
        """Run all rounds that are left.

        Args:
            resume: Go on from the latest checkpoint of the run in `[run] output`; a run that was killed
                before its first checkpoint begins again.

        Returns:
            Student, folder and the last round's metrics.

        Raises:
            SodError: Whatever stops the run; the latest checkpoint stays whole.
            StopRequested: After SIGINT or SIGTERM; a checkpoint has been written.
        """
        torch.set_num_threads(self.config.trainer.num_threads)
        with ExitStack() as stack:
            if self.parts.environment is not None:
                stack.callback(self.parts.environment.close)
            if isinstance(self.parts.teacher, ListingTeacher):
                stack.callback(self.parts.teacher.close)
            opened = RunFolder.reopen(self.config) if resume else RunFolder.create(self.config)
            self._folder = stack.enter_context(opened)
            self._restore()
            self._metrics = stack.enter_context(self._lines("metrics"))
            self._steps = stack.enter_context(self._lines("steps"))
            self._stop = stack.enter_context(StopSignals())
            stack.enter_context(self._display)
            if self.parts.needs_sampler:
                runner = stack.enter_context(make_runner(self.config, self.parts))
                self._sampler = make_sampler(self.config, self.parts, runner)
                stack.callback(self._sampler.engine.close)
            if self.parts.pair is not None:
                self._display.line(f"tokenizers: {self.parts.pair.report(self.parts.tasks)}")
            self._display.begin(self.state.round, self.config.trainer.rounds)
            try:
                self._rounds()
            except (StopRequested, ServiceUnavailableError):
                self._save()
                raise
            return self._result()

    def _rounds(self) -> None:
        if self.state.round >= self.config.trainer.rounds:
            self._display.line(
                f"the run is finished ({self.state.round} rounds); raise [trainer] rounds to go on"
            )
            return
        if self.state == TrainerState():
            self._evaluate_if_due(0)
            self._commit(self.state)
        while self.state.round < self.config.trainer.rounds:
            self._stop.check()
            self._round()
            is_last = self.state.round == self.config.trainer.rounds
            every = self.config.checkpoint.every
            if is_last or (every and self.state.round % every == 0):
                self._save()

    def _round(self) -> None:
        index = self.state.round
        started = time.perf_counter()
        trajectories = self._trajectories(index)
        rollout_s = time.perf_counter() - started
        translated = translate_for(self.config, self.parts.pair, trajectories, warn=self._display.warn)
        scoring = self._updates(trajectories, translated)
        row: dict[str, Any] = {"kind": "round", "round": index, "update": self.state.update}
        row |= rollout_metrics(trajectories) | mean_metrics(self.state.round_metrics)
        row |= step_table(self.state.round_steps) | ({} if translated is None else translated.metrics)
        row |= scoring | {"time/rollout_s": rollout_s, "time/round_s": time.perf_counter() - started}
        row["time/tokens_per_s"] = row["update/tokens"] / row["time/round_s"]
        self._metrics.write(row)
        has_warned = self._warn_of_anchor(index)
        self._evaluate_if_due(index + 1)
        self._commit(
            replace(
                self.state,
                round=index + 1,
                cursor=self.state.cursor + self.config.trainer.tasks_per_round,
                updates_in_round=0,
                round_metrics=(),
                round_steps={},
                has_warned_anchor=has_warned,
            )
        )
        self._display.end_round(index + 1, row)

    def _trajectories(self, index: int) -> list[Trajectory]:
        count, seed = self.config.trainer.tasks_per_round, self.config.run.seed
        if not is_own_round(self.config, index):
            whole = self.config.trajectories_per_round
            return take_from(self.parts.expert, self.state.cursor // count * whole, whole, seed=seed)
        path = self._folder.trajectories(index)
        if self.state.updates_in_round:
            return read_trajectories(path)
        tasks = take_from(self.parts.tasks, self.state.cursor, count, seed=seed)
        self._sampler.take_weights(self.model, self.state.update)
        seed_generators(seed, "tools", index)
        trajectories = self._sampler.rollout(tasks, index, self._progress("rollout"))
        check_versions(trajectories, self.state.update)
        path.parent.mkdir(exist_ok=True)
        write_trajectories(path, trajectories)
        return trajectories

    def _updates(
        self, trajectories: Sequence[Trajectory], translated: TranslatedRound | None
    ) -> dict[str, float]:
        """Make the updates of a round; metrics of what was scored before them come back."""
        plan = plan_round(
            trajectories,
            self.config,
            round_index=self.state.round,
            pad_id=self.parts.pad_id,
            teacher=self.parts.teacher,
            translated=translated,
        )
        done, progress = self.state.updates_in_round, self._progress("scoring")
        targets = round_targets(self.config, self.parts.teacher, self._reference, plan[done:], progress)
        for position, minibatch in enumerate(plan[done:], done):
            self._stop.check()
            seed_generators(self.config.run.seed, "update", self.state.update)
            is_own = is_own_round(self.config, self.state.round)
            watch = self._canary.watch(trajectories, is_first=position == 0) if is_own else None
            result = run_update(
                self.model,
                self._optimizer,
                self._algorithm,
                minibatch.batches,
                targets.source(minibatch.first_key),
                self._update_settings(minibatch),
                watch,
            )
            result.metrics.update({} if watch is None else watch.metrics)
            self._record(result, trajectories)
            self._display.part("updates", position + 1, len(plan), result.metrics)
        return targets.metrics

    def _update_settings(self, minibatch: Minibatch) -> UpdateSettings:
        optimizer = self.config.optimizer
        scale = learning_rate_scale(optimizer, self.state.update, self.config.num_updates)
        return UpdateSettings(
            context=LossContext(
                denominator=minibatch.num_tokens,
                round_number=self.state.round + 1,
                anchor=self.state.divergence_anchor,
            ),
            learning_rate=scale * optimizer.learning_rate,
            learning_rate_scale=scale,
            max_grad_norm=optimizer.max_grad_norm,
            autocast_dtype=self._autocast,
        )

    def _record(self, result: UpdateResult, trajectories: Sequence[Trajectory]) -> None:
        state = self.state
        in_a_row = state.num_skipped_in_a_row + 1 if result.is_skipped else 0
        where = {"round": state.round, "update": state.update}
        self._metrics.write({"kind": "update", **where, **result.metrics})
        for row in step_rows(result.steps, trajectories, round_index=state.round, update=state.update):
            self._steps.write(row)
        self._commit(
            replace(
                state,
                update=state.update + 1,
                updates_in_round=state.updates_in_round + 1,
                num_skipped=state.num_skipped + result.is_skipped,
                num_skipped_in_a_row=in_a_row,
                divergence_anchor=running_quantile(
                    state.divergence_anchor, result.steps, self.config.algorithm.anchor_quantile
                ),
                round_metrics=(*state.round_metrics, result.metrics),
                round_steps=add_steps(state.round_steps, result.steps),
            )
        )
        if result.is_skipped:
            self._display.warn(f"update {state.update} was skipped: its gradient is not finite")
        if in_a_row >= self.config.trainer.max_skipped_updates:
            raise TrainingError(
                f"train: the gradient was not finite {in_a_row} times in a row, last at {state.update} "
                f"in round {state.round}; lower the learning rate, set [algorithm] min_log_prob, or look at "
                "steps.jsonl for the trajectories"
            )

    def _warn_of_anchor(self, index: int) -> bool:
        section = self.config.algorithm
        if not isinstance(section, SODSection) or section.weight != "divergence":
            return False
        if self.state.has_warned_anchor:
            return True
        text = anchor_warning(self.state.round_steps, section.epsilon)
        if text is not None:
            self._display.warn(text)
            self._metrics.write({"kind": "warning", "round": index, "text": text})
        return text is not None

    def _evaluate_if_due(self, rounds_done: int) -> None:
        every, is_last = self.config.evaluation.every, rounds_done == self.config.trainer.rounds
        if not every or (rounds_done % every and not is_last):
            return
        started = time.perf_counter()
        self._sampler.take_weights(self.model, self.state.update)
        seed_generators(self.config.run.seed, "evaluation tools", rounds_done)
        result = self._sampler.evaluate(self.parts.eval_tasks, rounds_done, self._progress("evaluation"))
        row = {"kind": "eval", "round": rounds_done, "update": self.state.update, **result.metrics}
        self._metrics.write(row | {"time/eval_s": time.perf_counter() - started})
        self._display.line(f"evaluation after {rounds_done} rounds: {result.describe()}")

    def _progress(self, name: str) -> Any:
        def report(done: int, total: int) -> None:
            self._display.part(name, done, total)
            self._stop.check()

        return report

    def _commit(self, state: TrainerState) -> None:
        sizes = {"metrics": self._metrics.flush(), "steps": self._steps.flush()}
        self.state = replace(state, file_bytes=sizes)

    def _lines(self, name: str) -> JsonLines:
        path = self._folder.metrics if name == "metrics" else self._folder.steps
        return JsonLines(path, offset=self.state.file_bytes.get(name, 0))

    def _restore(self) -> None:
        found = recover_checkpoint(self._folder.checkpoints)
        if found is None:
            return
        self.state = found.state
        load_weights(self.model, found.folder)
        self._optimizer.load_state_dict(found.optimizer_state)
        if found.problem is not None:
            self._display.warn(
                f"damaged checkpoints were set aside, the last whole one taken: {found.problem}"
            )
        self._display.line(found.description)

    def _save(self) -> Path:
        self._metrics.sync()
        self._steps.sync()
        return save_checkpoint(
            self._folder.checkpoints,
            self.state,
            model=self.model,
            tokenizer=self.parts.tokenizer,
            optimizer_state=self._optimizer.state_dict(),
            keep_last=self.config.checkpoint.keep_last,
        )

    def _result(self) -> TrainResult:
        rows = [row for row in read_rows(self._folder.metrics) if row["kind"] == "round"]
        checkpoint = latest_checkpoint(self._folder.checkpoints)
        if checkpoint is None or not rows:
            raise TrainingError(
                f"train: {self._folder.path} has no finished round; look at its metrics.jsonl"
            )
        return TrainResult(
            model=self.model, folder=self._folder.path, checkpoint=checkpoint, metrics=rows[-1]
        )
