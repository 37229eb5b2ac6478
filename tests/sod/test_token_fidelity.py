"""A thousand random conversations through every template: ids, masks and log-probs are those of the engine.

The engine is scripted by a random generator and keeps its own books: what it was given, what it sampled. It
samples whole calls, broken calls and text, spelt as a tokenizer would and not, and plain noise: any id at
all, special tokens, halves of characters. Everything between it and the token sequences is real.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import pytest

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.engines.base import Generation, SamplingParams
from sod.envs.base import StepResult
from sod.evaluate import rollout_metrics
from sod.rollout.collector import collect
from sod.rollout.history import History
from sod.rollout.limits import RolloutLimits
from sod.tokenization import tokenize_trajectory
from sod.tools import ToolRunner, tool
from sod.types import Drift, StopReason, Task, Trajectory
from tests.sod.trained_tokenizers import KINDS, trained_tokenizer

NUM_CONVERSATIONS = 500
"""Of each kind of tokenizer, so a thousand of each template."""

SAID = ("", "42", " spaced  out ", "\n\n", "你好 🙂", "<|im_end|>", "</think>", "<tool_response>", "a\n" * 9)
SAID += ("</s> [INST]", "<0x0A>▁", "\x00\x7f", "e\u0301", '{"name": "add"', "<start_of_turn>user\nhi")
QUESTIONS = ("What is 17 plus 25?", " 1+2\n", "naïve?")


@tool
def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: One.
        b: The other.
    """
    return str(a + b)


@dataclass
class Book:
    """What the engine knows of one sequence."""

    ids: list[int]
    is_sampled: list[bool]
    log_probs: list[float]
    turns: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, ids, log_probs=None):
        self.ids += ids
        self.is_sampled += [log_probs is not None] * len(ids)
        self.log_probs += log_probs or [0.0] * len(ids)


class OddEngine:
    """Samples what `write` gives until every row is over, and books every token."""

    policy_version = 0

    def __init__(self, write):
        self.books = []
        self._write = write

    def rollout(self, prompts, respond, params, *, seed):
        rng = random.Random(seed)
        books = [Book(list(p), [False] * len(p), [0.0] * len(p)) for p in prompts]
        self.books += books
        running = list(range(len(prompts)))
        while running:
            ended = []
            for row in running:
                ids = self._write(rng)
                first = next((i for i, token in enumerate(ids) if token in params.stop_ids), None)
                ids = tuple(ids[: params.max_turn_tokens] if first is None else ids[: first + 1])
                reason = StopReason.LENGTH if first is None else StopReason.STOP_TOKEN
                log_probs = [-rng.randrange(1, 640) / 64 for _ in ids]
                books[row].add(ids, log_probs)
                books[row].turns.append(ids)
                ended.append(
                    (row, Generation(sampled_ids=ids, log_probs=tuple(log_probs), stop_reason=reason))
                )
            answers = respond(ended)
            for row, ids in zip(running, answers, strict=True):
                if ids is not None:
                    books[row].add(ids)
            running = [row for row, ids in zip(running, answers, strict=True) if ids is not None]


class Writer:
    """Random turns in the call format of a template."""

    def __init__(self, tokenizer, renderer):
        self._encode = renderer._encode
        self._tokenizer = tokenizer
        self._stop = renderer.stop_ids[0]
        key = {"hermes": "arguments", "json": "parameters"}[renderer.call_format]
        call = f'{{"name": "add", "{key}": {{"a": 12, "b": 34}}}}'
        opening, closing = ("<tool_call>\n", "\n</tool_call>") if key == "arguments" else ("", "")
        one = opening + call + closing
        # With the number of answers that each must get.
        self.texts = {
            one: 1,
            f"{one}\n{one}": 2,
            opening + call[:-2] + closing: 1,
            one.replace('"name"', '"nme"'): 1,
            f"<think>\nadd them\n</think>\n\n{one}": 1,
            "The answer is 42": 0,
            "": 0,
            "<think>cut off": 0,
            "你好 🙂": 0,
        }

    def __call__(self, rng):
        ids = self._noise(rng) if rng.random() < 0.3 else self._spelt(rng, rng.choice(list(self.texts)))
        return (*ids, self._stop) if rng.random() < 0.8 or not ids else ids

    def _noise(self, rng):
        return tuple(rng.randrange(len(self._tokenizer)) for _ in range(rng.randrange(1, 9)))

    def _spelt(self, rng, text):
        """As the tokenizer would spell it, or cut at odd places: the same text as other tokens."""
        if rng.random() < 0.6 or not text:
            return self._encode(text)
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(3))
        parts = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return tuple(token for part in parts for token in self._encode(part))


class Talk:
    """Goes on for a random number of turns, with results, with words, or with nothing at all."""

    tools = (add,)

    def __init__(self, task):
        self._task = task
        self._rng = random.Random(task.task_id)
        self.messages = list(task.messages)

    def reset(self):
        return self._task.messages

    def step(self, turn, results):
        self.messages.append({"role": "assistant", "content": turn.text})
        if self._rng.random() < 0.25:
            return StepResult(results=results, is_done=True)
        said = tuple({"role": "tool", "content": result.text} for result in results)
        if not results and self._rng.random() < 0.9:
            said = ({"role": "user", "content": self._rng.choice(SAID)},)
        elif results and self._rng.random() < 0.3:
            said = (*said, {"role": "tool", "content": self._rng.choice(SAID)})
        self.messages += said
        return StepResult(results=results, messages=said)

    def close(self):
        pass


class Rolled(NamedTuple):
    books: list[Book]
    texts: dict[str, int]
    environments: list[Talk]
    trajectories: list[Trajectory]


def roll_out(kind, name, *, num_conversations=NUM_CONVERSATIONS, **options):
    tokenizer = trained_tokenizer(kind, name)
    rewrites = "fork" if name == "qwen3-strip" else "refuse"
    renderer = ChatRenderer(
        tokenizer,
        tools=(add,),
        chat_template=TEMPLATES[name],
        observation_roles=("tool", "user"),
        rewrites=rewrites,
    )
    environments = []

    def factory(task):
        environments.append(Talk(task))
        return environments[-1]

    writer = Writer(tokenizer, renderer)
    engine = OddEngine(writer)
    tasks = [
        Task(task_id=str(n), messages=({"role": "user", "content": QUESTIONS[n % len(QUESTIONS)]},))
        for n in range(num_conversations)
    ]
    with ToolRunner((add,), timeout_s=30.0) as runner:
        trajectories = collect(
            tasks,
            engine=engine,
            renderer=renderer,
            environment_factory=factory,
            limits=RolloutLimits(max_turns=4, max_turn_tokens=120, max_trajectory_tokens=4000),
            params=SamplingParams(max_turn_tokens=120, stop_ids=renderer.stop_ids),
            seed=sum(map(ord, kind + name)),
            runner=runner,
            **options,
        )
    return renderer, Rolled(engine.books, writer.texts, environments, trajectories)


def check_against_the_books(books, trajectories):
    """Every sequence is one that the engine saw, token for token, and each is used once."""
    seen = Counter((tuple(b.ids), tuple(b.is_sampled), tuple(b.log_probs)) for b in books)
    for trajectory in trajectories:
        for sequence in tokenize_trajectory(trajectory):
            mask = sequence.response_mask.tolist()
            key = (tuple(sequence.input_ids.tolist()), tuple(mask), tuple(sequence.log_probs.tolist()))
            assert seen[key] > 0
            seen[key] -= 1
            assert sequence.loss_mask.tolist() == mask
    assert not +seen
    # Steps are the engine's turns, none merged and none split.
    turns = Counter(turn for book in books for turn in book.turns)
    assert turns == Counter(turn.sampled_ids for each in trajectories for turn in each.turns)


def check_drift(renderer, trajectory):
    """A sequence re-tokenises to itself exactly where each of its turns is classified so."""
    bounds = [*trajectory.segments, len(trajectory.turns)]
    for start, end in pairwise(bounds):
        turns = trajectory.turns[start:end]
        is_last = end == len(trajectory.turns)
        assert [turn.drift is Drift.FORK for turn in turns] == [False] * (len(turns) - 1) + [not is_last]
        known = turns if is_last else turns[:-1]
        ids = tuple(token for turn in known for token in (*turn.context_ids, *turn.sampled_ids))
        if known:
            is_same = renderer._encode(renderer.decode(ids)) == ids
            assert is_same == all(turn.drift is Drift.CLEAN for turn in known)


def check_that_no_call_is_lost(renderer, texts, trajectory):
    """Every attempt at a call has an answer: a result or the reason why it could not be read."""
    num_known = 0
    for turn in trajectory.turns:
        parsed = renderer.parse(turn.sampled_ids)
        if parsed.text in texts:
            num_known += 1
            assert len(turn.results) == texts[parsed.text]
        if renderer.call_format == "hermes":
            assert len(turn.results) == parsed.spoken.count("<tool_call>")
        assert len(turn.calls) <= len(turn.results)
    return num_known


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thousand_conversations(name, kind):
    renderer, rolled = roll_out(kind, name)
    trajectories = rolled.trajectories
    assert len(trajectories) == NUM_CONVERSATIONS
    check_against_the_books(rolled.books, trajectories)
    for trajectory in trajectories:
        check_drift(renderer, trajectory)
    assert sum(check_that_no_call_is_lost(renderer, rolled.texts, each) for each in trajectories) > 500
    shares = rollout_metrics(trajectories)
    assert shares["drift/clean"] > 0.1
    assert shares["drift/realign"] > 0.1
    assert (shares["drift/fork"] > 0.01) == (name == "qwen3-strip")
    assert shares["drift/clean"] + shares["drift/realign"] + shares["drift/fork"] == pytest.approx(1.0)
    if kind == "byte_level":
        check_the_text(renderer, rolled.environments, trajectories)


def check_the_text(renderer, environments, trajectories):
    """What the student read and wrote last is the conversation as the template writes it as a whole."""
    for environment, trajectory in list(zip(environments, trajectories, strict=True))[:100]:
        turns = trajectory.turns[trajectory.segments[-1] :]
        ids = [token for turn in turns for token in (*turn.context_ids, *turn.sampled_ids)]
        is_cut_off = ids[-1] not in renderer.stop_ids
        last = max(i for i, message in enumerate(environment.messages) if message["role"] == "assistant")
        text = renderer._render(environment.messages[: last + 1], header=False)
        written = renderer.decode(ids)
        assert text.startswith(written)
        assert len(text) - len(written) <= (20 if is_cut_off else 2)


@pytest.mark.parametrize("window", [0, 2])
def test_turns_of_their_own_are_in_the_books_too(window):
    renderer, rolled = roll_out(
        "sentencepiece_like", "gemma", num_conversations=60, history=History(window=window)
    )
    check_against_the_books(rolled.books, rolled.trajectories)
    for trajectory in rolled.trajectories:
        check_drift(renderer, trajectory)
        assert trajectory.segments == tuple(range(len(trajectory.turns)))
