"""The ledger world: tasks are reproducible, split cleanly, hidden, and scored exactly."""

from __future__ import annotations

import json

import pytest

from sod.envs.ledger import (
    FIELDS,
    ITEMS,
    ITEMS_PER_TABLE,
    ledger_question,
    ledger_reward,
    ledger_task,
    ledger_tasks,
    look_up,
)
from sod.errors import DataError


def test_question_is_a_pure_function_of_seed_split_and_index() -> None:
    assert ledger_question(3, 7) == ledger_question(3, 7)
    assert ledger_question(3, 7) != ledger_question(3, 8)
    assert ledger_question(3, 7) != ledger_question(4, 7)
    tasks = ledger_tasks(6, seed=1)
    assert tasks[2:4] == ledger_tasks(2, seed=1, first=2)
    assert len({task.task_id for task in tasks}) == 6


def test_first_question_of_seed_0_never_changes() -> None:
    # A changed generator silently changes what every recorded result means.
    question = ledger_question(0, 1)
    assert question.text == (
        "What is the price of the rival of saddle times the price of sofa times the stock of bucket?"
    )
    assert question.expression == "7*3*8"
    assert question.answer == 168


def test_no_held_out_question_is_worded_like_a_training_question() -> None:
    train = {ledger_question(seed, index).text for seed in range(3) for index in range(400)}
    held_out = {
        ledger_question(seed, index, split="held_out").text for seed in range(3) for index in range(400)
    }
    assert not train & held_out
    # Both splits draw one-amount questions too, of which there are only 240 wordings in all.
    assert any(" plus " not in text and " minus " not in text and " times " not in text for text in held_out)


def test_answer_is_what_python_says() -> None:
    for index in range(300):
        question = ledger_question(9, index)
        assert question.answer == eval(question.expression)


def test_numbers_of_amounts_and_rivals_are_where_expected() -> None:
    counts = [len(ledger_question(5, index).amounts) for index in range(600)]
    assert {1, 2, 3} == set(counts)
    assert all(150 < counts.count(size) < 250 for size in (1, 2, 3))
    rivals = [amount.is_of_rival for index in range(600) for amount in ledger_question(5, index).amounts]
    assert 0.30 < sum(rivals) / len(rivals) < 0.40


def test_table_is_complete_and_hidden_from_the_student() -> None:
    for index in range(50):
        question = ledger_question(2, index)
        assert len(question.table) == ITEMS_PER_TABLE
        assert set(question.table) <= set(ITEMS)
        for item, row in question.table.items():
            assert set(row) == set(FIELDS)
            assert row["rival"] in question.table
            assert row["rival"] != item
        task = ledger_task(question, task_id="x")
        seen = json.dumps([dict(message) for message in task.messages])
        assert not any(character.isdigit() for character in seen)
        for item in question.table:
            if item not in {amount.item for amount in question.amounts}:
                assert item not in seen.split()


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("Answer: -2", 1.0),
        ("-2", 1.0),
        ("2-4 = -2", 1.0),
        ("Answer: 2", 0.0),
        ("", 0.0),
        ("-22", 0.0),
    ],
)
def test_reward_wants_the_exact_number(text: str, reward: float) -> None:
    task = ledger_task(ledger_question(0, 3), task_id="x")
    assert ledger_reward(task, text) == reward


def test_look_up_reads_cells_and_refuses_the_rest() -> None:
    table = ledger_question(0, 3).table
    item = next(iter(table))
    assert look_up(table, item, "price") == str(table[item]["price"])
    assert look_up(table, item, "rival") == table[item]["rival"]
    with pytest.raises(LookupError, match="no item spaceship"):
        look_up(table, "spaceship", "price")
    with pytest.raises(LookupError, match="no field cost"):
        look_up(table, item, "cost")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match=r"split is 'test'; choose one of train, held_out"):
        ledger_question(0, 0, split="test")
    with pytest.raises(DataError, match="index is -1; it counts from 0"):
        ledger_question(0, -1)
    with pytest.raises(DataError, match="num_tasks is 0; ask for at least 1"):
        ledger_tasks(0, seed=0)
