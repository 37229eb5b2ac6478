"""The expert of the ledger world: writes the turns of a perfect attempt, with mistakes put in on purpose.

A teacher that has only ever seen perfect attempts is useless after its student's first error, so an expert
attempt may contain wrong calls, each followed by the correct one. The wrong turns are marked as not trained:
the teacher learns what to do after an error, not to make it. The expert only writes; what the tools answer
comes from running them. Where a question calls items by codes, the expert says the code before the call.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from sod.envs.ledger import ITEMS, Question

MISTAKES: tuple[str, ...] = ("unknown_item", "unknown_field", "broken_json", "python_error")
"""The kinds of wrong call that an expert attempt may contain."""

END_OF_ANSWER = "<|im_end|>"
"""The stop token of the final turn."""

_WRONG_FIELDS = ("cost", "count", "owner", "amount")
_MAX_MISTAKES_IN_A_ROW = 2


@dataclass(frozen=True, kw_only=True)
class ExpertTurn:
    """One turn that the expert writes.

    Attributes:
        text: Exactly what an assistant writes, stop token included.
        mistake: Kind of mistake, one of `MISTAKES`; empty for a correct turn. Only correct turns are trained.
    """

    text: str
    mistake: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether a model should learn to write this turn."""
        return not self.mistake


def lookup_call(item: str, field: str) -> str:
    """Writes a call of the lookup tool."""
    return _call("lookup", {"item": item, "field": field})


def python_call(expression: str) -> str:
    """Writes a call of the Python tool that prints an expression."""
    return _call("python", {"code": f"print({expression})"})


def expert_turns(question: Question, *, seed: int = 0, error_rate: float = 0.0) -> tuple[ExpertTurn, ...]:
    """Writes a whole attempt at a question, which always ends in the right answer.

    Args:
        question: What is asked.
        seed: Decides where mistakes fall; not read with `error_rate` 0.
        error_rate: Chance, in [0, 1), of a wrong call before each right one, at most two in a row.

    Returns:
        The turns in order.

    Raises:
        ValueError: If `error_rate` is outside [0, 1).
    """
    if not 0.0 <= error_rate < 1.0:
        raise ValueError(f"expert_turns: error_rate is {error_rate}; it must be at least 0 and below 1.")
    generator = random.Random(f"expert:{seed}:{question.text}")  # noqa: S311 - not for secrets
    turns: list[ExpertTurn] = []
    for right, spoil in _plan(question):
        for _ in range(_MAX_MISTAKES_IN_A_ROW):
            if generator.random() >= error_rate:
                break
            turns.append(spoil(generator))
        turns.append(ExpertTurn(text=right))
    turns.append(ExpertTurn(text=f"Answer: {question.answer}{END_OF_ANSWER}"))
    return tuple(turns)


def _plan(question: Question) -> Iterator[tuple[str, _Spoil]]:
    """The right calls in order, each with what writes a wrong one in its place."""
    for amount in question.amounts:
        item = amount.item
        if amount.is_of_rival:
            yield lookup_call(item, "rival"), partial(_wrong_lookup, question, item, "rival")
            item = str(question.table[item]["rival"])
        # Said aloud, a code is copied first and then known by heart: two easy things in place of a hard one.
        spoil = partial(_wrong_lookup, question, item, amount.field, spoken=amount.code)
        yield amount.code + lookup_call(item, amount.field), spoil
    if question.signs:
        yield python_call(question.expression), partial(_wrong_python, question.expression)


def _call(name: str, arguments: dict[str, str]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _wrong_lookup(
    question: Question, item: str, field: str, generator: random.Random, *, spoken: str = ""
) -> ExpertTurn:
    mistake = generator.choice(("unknown_item", "unknown_field", "broken_json"))
    if mistake == "unknown_item":
        absent = [name for name in ITEMS if name not in question.table]
        return ExpertTurn(text=spoken + lookup_call(generator.choice(absent), field), mistake=mistake)
    if mistake == "unknown_field":
        wrong = generator.choice(_WRONG_FIELDS)
        return ExpertTurn(text=spoken + lookup_call(item, wrong), mistake=mistake)
    return ExpertTurn(text=spoken + _broken(generator, lookup_call(item, field)), mistake=mistake)


def _wrong_python(expression: str, generator: random.Random) -> ExpertTurn:
    if generator.random() < 0.3:
        return ExpertTurn(text=_broken(generator, python_call(expression)), mistake="broken_json")
    kind = generator.randrange(3)
    wrong = (
        f"{expression}{generator.choice('+-*')}",
        expression.replace(generator.choice([sign for sign in "+-*" if sign in expression]), "//0*", 1),
        f"{expression}{generator.choice('+-*')}{generator.choice(ITEMS)}",
    )[kind]
    return ExpertTurn(text=python_call(wrong), mistake="python_error")


def _broken(generator: random.Random, call: str) -> str:
    """Spoils the JSON of a call in one of two ways: a bracket too few or a quote too few."""
    if generator.random() < 0.5:
        return call.replace("}}</tool_call>", "}</tool_call>")
    start, end = call.split('": "', 1) if '"code"' not in call else call.rsplit('": "', 1)
    return f'{start}": {end}'


_Spoil = Callable[[random.Random], ExpertTurn]
