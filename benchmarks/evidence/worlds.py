"""The questions, the expert's traces and the tokenizer of the experiment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from benchmarks.evidence.grid import World
from sod.demo.expert_data import expert_traces
from sod.demo.tokenizer import train_tokenizer
from sod.envs.ledger_chain import CODES
from sod.envs.ledger_env import LedgerSection, make_tasks
from sod.envs.ledger_expert import expert_turns
from sod.envs.registry import TaskRequest
from sod.seeding import derive_seed
from sod.types import Task, Trajectory

_NUM_TOKENIZER_QUESTIONS = 600
# Faults in a row must not end an attempt of the expert, who has done nothing wrong.
_NO_LIMIT = 1000
_ERRORS = (
    "error: timeout",
    "error: invalid_json",
    "error: bad_args",
    "error: unknown_tool",
    "error: no call and no number",
    "error: LookupError: no field cost",
    "error: SyntaxError: invalid syntax",
    "error: NameError: name 'lamp' is not defined",
)


def ledger_section(world: World, num_lookups: int, *, has_faults: bool) -> LedgerSection:
    """Settings of the environment for questions of one length."""
    return LedgerSection(
        num_lookups=num_lookups,
        has_codes=True,
        max_errors_in_a_row=world.max_errors_in_a_row,
        fault_rate=world.fault_rate if has_faults else 0.0,
        python_workers=1,
    )


def make_questions(world: World, num_tasks: int, *, seed: int, split: str) -> list[Task]:
    """Make tasks whose numbers of look-ups take turns.

    Args:
        world: The kinds of question.
        num_tasks: How many.
        seed: Of the set.
        split: "train" or "held_out".

    Returns:
        Tasks with different names, so that each has faults of its own.
    """
    sections = [ledger_section(world, length, has_faults=False) for length in world.num_lookups]
    tasks = []
    for index in range(num_tasks):
        request = TaskRequest(num_tasks=1, seed=seed, split=split, first=index)
        tasks += make_tasks(sections[index % len(sections)], request)
    return tasks


def make_traces(
    world: World, num_traces: int, *, seed: int, has_faults: bool, tokenizer: PreTrainedTokenizerFast
) -> list[Trajectory]:
    """Play the expert; after a fault it repeats its call."""
    lengths = world.num_lookups
    traces: list[Trajectory] = []
    for place, length in enumerate(lengths):
        count = num_traces // len(lengths) + (place < num_traces % len(lengths))
        section = ledger_section(world, length, has_faults=has_faults)
        if count:
            traces += expert_traces(
                count,
                seed=derive_seed(seed, "traces", length),
                error_rate=0.0,
                tokenizer=tokenizer,
                section=replace(section, max_errors_in_a_row=_NO_LIMIT),
            )
    return traces


def make_tokenizer(world: World, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer, the same one for every seed."""
    return train_tokenizer(_texts(world), vocab_size=vocab_size)


def _texts(world: World) -> Iterator[str]:
    yield from CODES
    for index in range(_NUM_TOKENIZER_QUESTIONS):
        section = ledger_section(world, world.num_lookups[index % len(world.num_lookups)], has_faults=False)
        question = section.question(77, index)
        yield question.text
        yield from (turn.text for turn in expert_turns(question))
        yield f"error: LookupError: no item {question.amounts[0].item}"
        yield from _ERRORS
