"""Longer questions of the ledger world, and codes that must be known by heart.

A chain asks for two to ten amounts. With codes it calls them by a name and a digit, "the price of jacket 2":
which item that is stands in no table and no tool tells it. The 120 codes are the same in every question, so
they can be learnt, and every look-up carries knowledge.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from sod.envs.ledger import (
    ITEMS,
    ITEMS_PER_TABLE,
    SPLITS,
    Amount,
    Question,
    is_in_split,
    make_table,
)
from sod.errors import DataError

MIN_LOOKUPS, MAX_LOOKUPS = 2, 10
_NUM_CODE_NAMES, _NUM_DIGITS = 30, 4
_SIGNS = ("+", "-")


def _make_codes() -> dict[str, str]:
    generator = random.Random("ledger codes")  # noqa: S311 - not for secrets
    names = generator.sample(ITEMS, _NUM_CODE_NAMES)
    return {
        f"{name} {digit}": generator.choice([item for item in ITEMS if item != name])
        for name in names
        for digit in range(1, _NUM_DIGITS + 1)
    }


CODES: Mapping[str, str] = _make_codes()
"""Code to item; never changes."""


def chain_question(
    seed: int, index: int, *, num_lookups: int, has_codes: bool, split: str = "train"
) -> Question:
    """Make one question: the same arguments always give the same question.

    Args:
        seed: Seed of the set of questions, any integer.
        index: Number of the question within the set, from 0.
        num_lookups: Amounts asked for, 2 to 10; each takes one look-up.
        has_codes: Whether items are called by their codes.
        split: "train" or "held_out"; no wording occurs in both.

    Returns:
        The question with its hidden table.

    Raises:
        DataError: If an argument is out of range.
    """
    if split not in SPLITS:
        raise DataError(f"chain_question: split is {split!r}; choose one of {', '.join(SPLITS)}.")
    if index < 0:
        raise DataError(f"chain_question: index is {index}; it counts from 0.")
    if not MIN_LOOKUPS <= num_lookups <= MAX_LOOKUPS:
        raise DataError(
            f"chain_question: num_lookups is {num_lookups}; wanted {MIN_LOOKUPS} to {MAX_LOOKUPS}."
        )
    name = f"chain:{num_lookups}:{has_codes}:{seed}:{split}:{index}"
    generator = random.Random(name)  # noqa: S311 - not for secrets
    while True:
        question = _draw(generator, num_lookups, has_codes)
        if is_in_split(question.text, split):
            return question


def _draw(generator: random.Random, num_lookups: int, has_codes: bool) -> Question:
    codes = _distinct_codes(generator, num_lookups) if has_codes else [""] * num_lookups
    named = [CODES[code] for code in codes] if has_codes else generator.sample(ITEMS, num_lookups)
    others = [item for item in ITEMS if item not in named]
    items = named + generator.sample(others, max(0, ITEMS_PER_TABLE - num_lookups))
    generator.shuffle(items)
    amounts = tuple(
        Amount(item=item, field=generator.choice(("price", "stock")), is_of_rival=False, code=code)
        for item, code in zip(named, codes, strict=True)
    )
    signs = tuple(generator.choice(_SIGNS) for _ in amounts[1:])
    return Question(table=make_table(items, generator), amounts=amounts, signs=signs)


def _distinct_codes(generator: random.Random, count: int) -> list[str]:
    """Codes of different items."""
    chosen: dict[str, str] = {}
    for code in generator.sample(sorted(CODES), len(CODES)):
        chosen.setdefault(CODES[code], code)
        if len(chosen) == count:
            break
    return list(chosen.values())
