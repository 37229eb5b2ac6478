"""A teacher with another tokenizer trains the demo's student through tool turns, over several seeds.

    python benchmarks/simct_agent.py --seeds 0 1 2 --digits 1 --output runs/simct_agent

The student is that of `sod demo`; the teacher is as large as the demo's, but its tokenizer has another
vocabulary (shorter pieces of everything; numbers in single digits as the student's, or in pairs) and a chat
template with headers.
Both are made from nothing. The claim that is checked: over the seeds, the mean gain of SimCT over the cold
student is more than eight points; and the table says whether spans help, beside 1:1 units alone. It does not
hold so far: docs/log.md has the table and what was found since, docs/simct.md what the units do not see.

Every finished round and phase is kept, so that a run that was stopped goes on where it was with the same
command. Exits with 1 where the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from sod import commands
from sod.config import CheckpointSection, RunConfig
from sod.config_simct import SimCTSection
from sod.data import write_tasks
from sod.demo.configs import DemoPaths, method_config, policy_config, supervised_config
from sod.demo.expert_data import expert_traces
from sod.demo.settings import FULL, QUICK, DemoSettings, SupervisedPhase
from sod.demo.summary import Reading, reading_of
from sod.demo.tokenizer import ledger_texts, ledger_tokenizer
from sod.envs.ledger import FIELDS, ITEMS, ledger_tasks
from sod.loop.display import Display
from sod.metrics import read_rows
from sod.models import build_qwen3
from sod.rollout.store import write_trajectories
from sod.seeding import derive_seed
from sod.trainer import SODTrainer

WANTED_GAIN = 8.0
# All control tokens of the student, so that the teacher has a say in each: what it must not write too.
BRIDGE = (
    "<|im_end|> = <|im_end|>",
    "<tool_call> = <tool_call>",
    "</tool_call> = </tool_call>",
    "<|im_start|> = <|user|>",
    "<tool_response> = <|tool|>",
    "</tool_response> = <|im_end|>",
    "<|pad|> = <|pad|>",
)
METHODS = {
    "simct": SimCTSection(bridge=BRIDGE),
    "simct_one_to_one": SimCTSection(bridge=BRIDGE, unit_filter="one_to_one"),
}
TITLES = {
    "teacher": "teacher (its own tokenizer)",
    "student": "cold student",
    "simct": "SimCT",
    "simct_one_to_one": "SimCT, 1:1 units only",
}
MAX_POSITIONS = 1024
TEACHER_TURN_TOKENS = 56
TEACHER_TRAJECTORY_TOKENS = 512

TEACHER_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] or '') }}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set call = call['function'] if 'function' in call else call -%}"
    "{{ '<tool_call>{\"name\": \"' + call['name'] + '\", \"arguments\": ' }}"
    "{{ call['arguments'] if call['arguments'] is string else call['arguments'] | tojson }}"
    "{{ '}</tool_call>' }}"
    "{%- endfor -%}"
    "{{ '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
_SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|im_end|>", "<tool_call>", "</tool_call>")
_NAME_REPEATS = 2000


def teacher_tokenizer(digits: int, vocab_size: int = 700, longest: int = 16) -> PreTrainedTokenizerFast:
    """Trains the teacher's tokenizer: names are tokens, numbers groups of digits, all else short pieces."""
    names = (*ITEMS, *FIELDS, "lookup", "python")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(rf"\b({'|'.join(names)})\b|-|[0-9]{{1,{digits}}}"), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        max_token_length=longest,
        special_tokens=[AddedToken(text, normalized=False) for text in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = [str(number) for number in range(10, 100)] if digits == 2 else []
    markers = "|".join(map(re.escape, _SPECIAL))

    def pieces() -> Iterator[str]:
        for text in ledger_texts():
            yield from (piece for piece in re.split(markers, text) if piece)
        for text in (*names, *numbers):
            yield from [text] * _NAME_REPEATS

    tokenizer.train_from_iterator(pieces(), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        chat_template=TEACHER_TEMPLATE,
    )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What a finished phase keeps.

    Attributes:
        checkpoint: Of the model that it made.
        reading: The model on the held-out questions.
        rounds: For a method, one row of numbers per round.
    """

    checkpoint: Path
    reading: Reading
    rounds: Sequence[Mapping[str, float]] = ()


class Agent:
    """All phases of one seed."""

    def __init__(
        self, settings: DemoSettings, root: Path, *, seed: int, num_threads: int, digits: int
    ) -> None:
        """Take size, folder, seed and the digits of a number's tokens, and make the tokenizers."""
        self._settings, self._paths = settings, DemoPaths(root)
        self._seed, self._num_threads = seed, num_threads
        self._tokenizers = {
            "teacher": teacher_tokenizer(digits),
            "student": ledger_tokenizer(settings.vocab_size),
        }

    def run(self) -> dict[str, Phase]:
        """Run what is left to run, and give all phases by name."""
        for folder in ("data", "answers"):
            (self._paths.root / folder).mkdir(parents=True, exist_ok=True)
        self._kept("questions", self._questions)
        phases = {}
        for name in ("teacher", "student"):
            phases[name] = self._phase(name, lambda name=name: self._supervised(name))
        starts = {name: phase.checkpoint for name, phase in phases.items()}
        for name in METHODS:
            phases[name] = self._phase(name, lambda name=name: self._method(name, **starts))
        return phases

    def _questions(self) -> dict[str, Any]:
        settings = self._settings
        write_tasks(
            self._paths.held_out, ledger_tasks(settings.num_questions, seed=self._seed, split="held_out")
        )
        write_tasks(
            self._paths.check, ledger_tasks(settings.num_check_questions, seed=self._seed_of("check"))
        )
        num_tasks = settings.distillation.num_trajectories
        write_tasks(self._paths.train, ledger_tasks(num_tasks, seed=self._seed_of("train")))
        return {}

    def _supervised(self, name: str) -> tuple[Path, float]:
        """Train a fresh model on expert traces; the same as the demo's, but for the teacher's tokenizer."""
        phase: SupervisedPhase = getattr(self._settings, name)
        done = len(self._rounds(name))
        if not done:
            shutil.rmtree(self._paths.run(name), ignore_errors=True)
            self._begin(name, phase)
        config = self._with_room(
            name,
            supervised_config(
                name, phase, self._settings, self._paths, seed=self._seed, num_threads=self._num_threads
            ),
        )
        if phase.target_success is None:
            return self._train(config, resume=done > 0)
        for rounds in range(max(done, 1), phase.rounds + 1):
            config = replace(config, trainer=replace(config.trainer, rounds=rounds))
            checkpoint, _ = self._train(config, resume=self._paths.run(name).is_dir())
            solved = commands.evaluate(self._policy(name, checkpoint, self._paths.check)).success_mean
            print(f"{name}: round {rounds}, {100 * solved:.0f}% of the training questions", flush=True)
            if solved >= phase.target_success:
                break
        return checkpoint, math.nan

    def _begin(self, name: str, phase: SupervisedPhase) -> None:
        """Write the expert's traces and a random model."""
        tokenizer, start = self._tokenizers[name], self._paths.untrained(name)
        traces = expert_traces(
            phase.num_traces,
            seed=self._seed_of(f"{name} traces"),
            error_rate=phase.error_rate,
            tokenizer=tokenizer,
        )
        write_trajectories(self._paths.traces(name), traces)
        model = build_qwen3(
            vocab_size=len(tokenizer),
            hidden_size=phase.size.hidden_size,
            num_layers=phase.size.num_layers,
            num_heads=phase.size.num_heads,
            intermediate_size=3 * phase.size.hidden_size,
            max_positions=MAX_POSITIONS,
            seed=self._seed_of(f"{name} weights"),
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(start)
        tokenizer.save_pretrained(start)

    def _method(self, name: str, *, teacher: Path, student: Path) -> tuple[Path, float]:
        config = method_config(
            "opd",
            self._settings,
            self._paths,
            teacher=teacher,
            student=student,
            seed=self._seed,
            num_threads=self._num_threads,
        )
        config = replace(
            config,
            run=replace(config.run, output=self._paths.run(name)),
            algorithm=METHODS[name],
            checkpoint=CheckpointSection(every=1, keep_last=1),
        )
        return self._train(config, resume=config.run.output.is_dir())

    def _phase(self, name: str, make: Callable[[], tuple[Path, float]]) -> Phase:
        def measured() -> dict[str, Any]:
            started = time.perf_counter()
            checkpoint, sampled = make()
            seconds = time.perf_counter() - started
            answers = commands.evaluate(self._policy(name, checkpoint, self._paths.held_out)).trajectories
            write_trajectories(self._paths.answers(name), answers)
            reading = reading_of(
                TITLES[name],
                answers,
                sampled_success=None if math.isnan(sampled) else sampled,
                seconds=seconds,
            )
            print(f"seed {self._seed}, {TITLES[name]}: {100 * reading.success:.1f}%", flush=True)
            return {"checkpoint": str(checkpoint), "reading": asdict(reading), "rounds": self._rounds(name)}

        kept = self._kept(name, measured)
        reading = {**kept["reading"], "is_solved": tuple(kept["reading"]["is_solved"])}
        reading["errors"] = tuple(reading["errors"])
        return Phase(
            checkpoint=Path(kept["checkpoint"]), reading=Reading(**reading), rounds=tuple(kept["rounds"])
        )

    def _rounds(self, name: str) -> list[dict[str, float]]:
        wanted = ("unit/", "kl/", "log_ratio_abs/", "step/divergence_mean", "rollout/success_mean")
        path = self._paths.run(name) / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["kind"] == "round"] if path.is_file() else []
        return [{key: row[key] for key in row if key.startswith(wanted)} for row in rows]

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self._paths.root / f"{name}.json"
        if not path.is_file():
            made = make()
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    def _train(self, config: RunConfig, *, resume: bool = False) -> tuple[Path, float]:
        result = SODTrainer.from_config(config, display=Display()).train(resume=resume)
        return result.checkpoint, float(result.metrics.get("rollout/success_mean", math.nan))

    def _policy(self, name: str, checkpoint: Path, questions: Path) -> RunConfig:
        config = policy_config(
            checkpoint,
            self._settings,
            self._paths,
            questions=questions,
            seed=self._seed,
            num_threads=self._num_threads,
        )
        return self._with_room(name, config)

    def _with_room(self, name: str, config: RunConfig) -> RunConfig:
        """The teacher's tokens are shorter, so it is given more of them for the same text."""
        if name != "teacher":
            return config
        rollout = replace(
            config.rollout,
            max_turn_tokens=TEACHER_TURN_TOKENS,
            max_trajectory_tokens=TEACHER_TRAJECTORY_TOKENS,
        )
        return replace(config, rollout=rollout)

    def _seed_of(self, purpose: str) -> int:
        return derive_seed(self._seed, purpose)


def seed_table(phases: Mapping[int, Mapping[str, Phase]]) -> str:
    """Writes one row per model: success per seed, mean, and gain with its standard error over the seeds."""
    seeds = list(phases)
    lines = [
        "| model | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " | mean | gain over the cold student |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for name, title in TITLES.items():
        rates = [100 * phases[seed][name].reading.success for seed in seeds]
        gain = spread(gains(phases, name, "student")) if name in METHODS else ""
        lines.append(
            f"| {title} | " + " | ".join(f"{rate:.1f}" for rate in rates) + f" | {mean(rates):.1f} | {gain} |"
        )
    last = [phases[seed]["simct"].rounds[-1] for seed in seeds]
    lines.append(
        f"\nSpans and 1:1 units minus 1:1 units alone: {spread(gains(phases, 'simct', 'simct_one_to_one'))} "
        "points over the seeds.\n"
        f"1:1 units: {100 * mean(row['unit/one_to_one'] for row in last):.1f} % of the units in the last "
        f"round, {100 * mean(row['unit/one_to_one_tokens'] for row in last):.1f} % of the student's tokens; "
        f"{mean(row['unit/per_step'] for row in last):.1f} units per step; "
        f"{sum(row['unit/dropped_trajectories'] for row in last):.0f} trajectories left out."
    )
    return "\n".join(lines)


def gains(phases: Mapping[int, Mapping[str, Phase]], name: str, other: str) -> list[float]:
    """Points by which one model is ahead of another, per seed."""
    return [100 * (one[name].reading.success - one[other].reading.success) for one in phases.values()]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):+.1f} ± {error:.1f}"


def main() -> int:
    """Runs the seeds, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/simct_agent"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--digits", type=int, choices=(1, 2), default=1, help="of the teacher's numbers")
    parser.add_argument("--quick", action="store_true", help="a small run of every phase; nothing is claimed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    # The demo's teacher stops after so many updates, and has learnt by then; in longer calls it takes more.
    patient = replace(FULL.teacher, num_updates=480, target_success=0.95)
    settings = QUICK if arguments.quick else replace(FULL, teacher=patient)
    phases: dict[int, dict[str, Phase]] = {}
    for seed in arguments.seeds:
        agent = Agent(
            settings,
            arguments.output / f"seed_{seed}",
            seed=seed,
            num_threads=arguments.threads,
            digits=arguments.digits,
        )
        phases[seed] = agent.run()
        # After every seed, so that a run that is stopped leaves what it knows.
        table = seed_table(phases)
        (arguments.output / "seeds.md").write_text(table + "\n", encoding="utf-8")
        kept = {
            str(key): {
                name: {**one.reading.to_json(), "rounds": list(one.rounds)} for name, one in each.items()
            }
            for key, each in phases.items()
        }
        (arguments.output / "seeds.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table)
    gain = mean(gains(phases, "simct", "student"))
    print(f"\nmean gain of SimCT: {gain:+.1f} points (wanted: more than {WANTED_GAIN:.0f})")
    return 0 if gain > WANTED_GAIN or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
