"""Ledger: a small world of chained look-ups, made for seeing an agent learn on two CPU cores.

Every question has its own hidden table: ten items, each with a price, a stock and a rival (another item).
The question names one to three amounts joined by plus, minus and times; an amount may be that "of the
rival of" an item. Nothing of the table is in the question, so the only way to the answer is the tools:
`lookup(item, field)` reads one cell, `python(code)` does the sum, and the last turn states the number.
A wrong call is answered with a real error, a wrong item with a plausible wrong number.

Tasks are a pure function of (seed, split, index). A hash of a question's wording decides in which split it
may appear, so no held-out question is ever worded like a training one.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sod.errors import DataError
from sod.types import Task

_ITEM_NAMES = """
anchor apron arrow barrel basket bell bench blanket bottle bowl broom brush bucket candle canoe carpet chair
clock coat compass cup curtain desk drum easel fan flute funnel globe glove hammer harp helmet jacket jar
kettle ladder lamp lantern magnet mirror mitten needle oar pencil piano pillow plate pulley quilt rope
saddle scarf shovel sled sofa spoon teapot violin wagon
"""
ITEMS: tuple[str, ...] = tuple(_ITEM_NAMES.split())
"""The sixty item names of the world; the tokenizer of the demo makes each of them one token."""

FIELDS: tuple[str, ...] = ("price", "stock", "rival")
"""The columns of a table."""

SPLITS: tuple[str, ...] = ("train", "held_out")
"""The two disjoint sets of questions."""

OPERATORS: Mapping[str, str] = {"+": "plus", "-": "minus", "*": "times"}
"""Arithmetic signs and their words in a question."""

ITEMS_PER_TABLE = 10
_HELD_OUT_SHARE = 4
_RIVAL_SHARE = 0.35
# Digits: a model of two layers learns to copy one digit long before it keeps two in order, and the world is
# about which cell to read. A wrong cell of the right kind so holds the right number one time in eight.
_SMALLEST, _LARGEST = 2, 9
_ANSWER = re.compile(r"-?\d+")

Table = Mapping[str, Mapping[str, int | str]]
"""Item name to its row."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """One number that a question asks for.

    Attributes:
        item: Item named in the question.
        field: "price" or "stock".
        is_of_rival: Whether the number is that of the item's rival.
        code: What the question calls the item, see `sod.envs.ledger_chain`; empty for its own name.
    """

    item: str
    field: str
    is_of_rival: bool
    code: str = ""

    def words(self) -> str:
        """The amount as the question says it."""
        item = self.code or self.item
        owner = f"the rival of {item}" if self.is_of_rival else item
        return f"the {self.field} of {owner}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, what it means, and the hidden table it is asked about.

    Attributes:
        table: Hidden from the student; read only through `lookup`.
        amounts: The numbers asked for, in order.
        signs: What joins them, one fewer than `amounts`, each a key of `OPERATORS`.
    """

    table: Table
    amounts: tuple[Amount, ...]
    signs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question as the student reads it."""
        parts = [self.amounts[0].words()]
        for sign, amount in zip(self.signs, self.amounts[1:], strict=True):
            parts += [OPERATORS[sign], amount.words()]
        return f"What is {' '.join(parts)}?"

    def value(self, amount: Amount) -> int:
        """The number behind one amount."""
        item = str(self.table[amount.item]["rival"]) if amount.is_of_rival else amount.item
        return int(self.table[item][amount.field])

    @property
    def expression(self) -> str:
        """The sum with the numbers filled in, as Python writes it."""
        text = str(self.value(self.amounts[0]))
        for sign, amount in zip(self.signs, self.amounts[1:], strict=True):
            text += f"{sign}{self.value(amount)}"
        return text

    @property
    def answer(self) -> int:
        """The exact result, with the usual precedence of times over plus and minus."""
        total, product, sign = 0, self.value(self.amounts[0]), 1
        for operator, amount in zip(self.signs, self.amounts[1:], strict=True):
            if operator == "*":
                product *= self.value(amount)
                continue
            total += sign * product
            product, sign = self.value(amount), 1 if operator == "+" else -1
        return total + sign * product


def ledger_question(seed: int, index: int, *, split: str = "train") -> Question:
    """Makes one question: the same arguments always give the same question.

    Args:
        seed: Seed of the set of questions, any integer.
        index: Number of the question within the set, from 0.
        split: "train" or "held_out"; no wording occurs in both, whatever the seeds.

    Returns:
        The question with its hidden table.

    Raises:
        DataError: If the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise DataError(f"ledger_question: split is {split!r}; choose one of {', '.join(SPLITS)}.")
    if index < 0:
        raise DataError(f"ledger_question: index is {index}; it counts from 0.")
    generator = random.Random(f"ledger:{seed}:{split}:{index}")  # noqa: S311 - not for secrets
    while True:
        question = _draw(generator)
        if is_in_split(question.text, split):
            return question


def ledger_tasks(num_tasks: int, *, seed: int, split: str = "train", first: int = 0) -> list[Task]:
    """Makes tasks with the indices `first` to `first + num_tasks - 1`.

    Args:
        num_tasks: How many, at least 1.
        seed: Seed of the set of questions.
        split: "train" or "held_out".
        first: Index of the first question.

    Returns:
        Tasks whose fields hold the hidden `table` and the `answer`; neither is in the messages.

    Raises:
        DataError: If an argument is out of range.
    """
    if num_tasks < 1:
        raise DataError(f"ledger_tasks: num_tasks is {num_tasks}; ask for at least 1.")
    tasks = []
    for index in range(first, first + num_tasks):
        question = ledger_question(seed, index, split=split)
        tasks.append(ledger_task(question, task_id=f"ledger-{split}-{seed}-{index}"))
    return tasks


def ledger_task(question: Question, *, task_id: str) -> Task:
    """Wraps a question as a task.

    Args:
        question: What is asked.
        task_id: Unique name.

    Returns:
        The task; `fields` holds what the environment needs and the student must not see.
    """
    fields = {"table": question.table, "answer": question.answer, "num_amounts": len(question.amounts)}
    return Task(task_id=task_id, messages=({"role": "user", "content": question.text},), fields=fields)


def ledger_reward(task: Task, text: str) -> float:
    """Scores a final answer: 1 if the last integer in it is the exact answer, otherwise 0.

    Args:
        task: A ledger task.
        text: The final turn as written.

    Returns:
        0.0 or 1.0.
    """
    numbers = _ANSWER.findall(text)
    return float(bool(numbers) and int(numbers[-1]) == task.fields["answer"])


def look_up(table: Table, item: str, field: str) -> str:
    """Reads one cell of a table.

    Args:
        table: The question's hidden table.
        item: Name of an item.
        field: "price", "stock" or "rival".

    Returns:
        The cell as text.

    Raises:
        LookupError: If the item is not in this table or there is no such field. The words are few, since the
            student reads them.
    """
    if item not in table:
        raise LookupError(f"no item {item}")
    if field not in FIELDS:
        raise LookupError(f"no field {field}")
    return str(table[item][field])


def is_in_split(text: str, split: str) -> bool:
    """Tell whether a question's wording belongs to a split; a hash of it decides.

    Args:
        text: The question.
        split: "train" or "held_out".

    Returns:
        True for one split only.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return (int.from_bytes(digest) % _HELD_OUT_SHARE == 0) == (split == "held_out")


def make_table(items: Sequence[str], generator: random.Random) -> Table:
    """Fill the hidden table of a question.

    Args:
        items: Its rows, at least two.
        generator: Draws the cells.

    Returns:
        A price, a stock and a rival for every item.
    """
    table: dict[str, dict[str, Any]] = {}
    for item in items:
        rival = generator.choice([other for other in items if other != item])
        table[item] = {
            "price": generator.randint(_SMALLEST, _LARGEST),
            "stock": generator.randint(_SMALLEST, _LARGEST),
            "rival": rival,
        }
    return table


def _draw(generator: random.Random) -> Question:
    items = generator.sample(ITEMS, ITEMS_PER_TABLE)
    table = make_table(items, generator)
    named: Sequence[str] = generator.sample(items, generator.randint(1, 3))
    amounts = tuple(
        Amount(
            item=item,
            field=generator.choice(("price", "stock")),
            is_of_rival=generator.random() < _RIVAL_SHARE,
        )
        for item in named
    )
    signs = tuple(generator.choice(tuple(OPERATORS)) for _ in amounts[1:])
    return Question(table=table, amounts=amounts, signs=signs)
