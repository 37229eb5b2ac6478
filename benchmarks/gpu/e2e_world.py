"""Tokenizer, questions, expert traces and untrained models of the end-to-end part."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.e2e_settings import E2EPaths, E2ESize, environment_section
from sod.data import write_tasks
from sod.demo.expert_data import expert_traces
from sod.demo.tokenizer import CHAT_TEMPLATE, ledger_tokenizer
from sod.envs.ledger_env import make_tasks
from sod.envs.registry import TaskRequest
from sod.models import build_qwen3
from sod.rollout.store import write_trajectories

_MAX_POSITIONS = 1024


def wide_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make the ledger's tokenizer with fillers up to a size, so that models have a real model's vocabulary.

    Args:
        vocab_size: Tokens, more than the ledger's own.

    Returns:
        The tokenizer; no text is written with a filler, but every softmax runs over all of them.
    """
    own = ledger_tokenizer()
    content = json.loads(own.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for token in range(max(own.get_vocab().values()) + 1, vocab_size):
        vocab[f"<filler{token}>"] = token
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token=own.pad_token,
        eos_token=own.eos_token,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prepare(size: E2ESize, paths: E2EPaths) -> None:
    """Write questions, clean expert traces for the teacher, and ones with faults for the students.

    Args:
        size: How many.
        paths: Where to.
    """
    paths.root.mkdir(parents=True, exist_ok=True)
    faulty = environment_section(has_faults=True)
    num_tasks = size.rounds * size.tasks_per_round
    write_tasks(paths.train, make_tasks(faulty, TaskRequest(num_tasks=num_tasks, seed=1)))
    held_out = TaskRequest(num_tasks=size.num_questions, seed=2, split="held_out")
    write_tasks(paths.held_out, make_tasks(faulty, held_out))
    tokenizer = wide_tokenizer(size.vocab_size)
    for seed, name in ((3, "teacher"), (4, "student")):
        section = environment_section(has_faults=name == "student")
        traces = expert_traces(
            size.num_traces, seed=seed, error_rate=0.0, tokenizer=tokenizer, section=section
        )
        write_trajectories(paths.traces(name), traces)


def make_model(name: str, size: E2ESize, paths: E2EPaths, *, seed: int) -> None:
    """Write the random model that a supervised run starts from.

    Args:
        name: "teacher", or a student's name.
        size: Its shape.
        paths: Where to.
        seed: Of its weights.
    """
    tokenizer = wide_tokenizer(size.vocab_size)
    shape = size.teacher if name == "teacher" else size.student
    model = build_qwen3(
        vocab_size=size.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        intermediate_size=3 * shape.hidden_size,
        max_positions=_MAX_POSITIONS,
        seed=seed,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(paths.untrained(name))
    tokenizer.save_pretrained(paths.untrained(name))
