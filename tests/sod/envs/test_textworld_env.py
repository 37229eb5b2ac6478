"""Real TextWorld games, made here and played."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from sod.envs import textworld_games
from sod.envs.expert import expert_conversation
from sod.envs.registry import TaskRequest, build_environment
from sod.envs.textworld_env import TextWorldSection, textworld_tasks
from sod.envs.textworld_games import game_seed
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.tools import Piece, ToolRunner
from sod.types import Task

(TASK,) = textworld_tasks(TaskRequest(num_tasks=1, seed=5))


def act(environment, action: str):
    return environment.step(parse_hermes(f"<action>{action}</action>"), ())


@pytest.fixture
def cooking(textworld_cache):
    built = build_environment(
        TextWorldSection(
            cache=textworld_cache, recipe=1, take=1, has_cutting=True, invalid_action="impossible"
        )
    )
    environment = built.factory(TASK)
    yield environment
    environment.close()


def test_the_expert_cooks_and_the_score_adds_up_to_one(cooking):
    opening = cooking.reset()[-1]["content"]
    assert opening.startswith("You are playing a text adventure")
    assert "cookbook" in opening
    assert "Possible actions:" in opening
    total, num_turns, step = 0.0, 0, None
    while step is None or not step.is_done:
        turn = cooking.expert_turn()
        assert (turn == "<action>examine cookbook</action>") == (num_turns == 0)
        step = cooking.step(parse_hermes(turn), ())
        if num_turns == 0:
            (seen,) = step.messages
            assert "Ingredients:" in seen["content"]
            # Neither the padded status line nor rows of empty lines.
            assert "-= " not in seen["content"]
            assert "\n\n\n" not in seen["content"]
        total, num_turns = total + step.reward, num_turns + 1
        assert num_turns < 20
    assert step.is_success
    assert total == pytest.approx(1.0)
    assert num_turns > 3


def test_what_is_not_possible_is_flagged_and_changes_nothing(cooking):
    before = cooking.reset()[-1]["content"]
    step = act(cooking, "eat the table")
    assert step.results[0].is_error
    assert step.reward == 0.0
    assert (
        before.partition("Possible actions:")[2]
        == step.messages[0]["content"].partition("Possible actions:")[2]
    )
    assert not act(cooking, "look").results[0].is_error


@pytest.mark.parametrize(
    ("action", "word"),
    [
        ("script elsewhere", "script"),
        ("save", "save"),
        ("look. save", "look."),
        ("look then script elsewhere", "then"),
        ("take su\x12 from fridge", "su\x12"),
        ("take \x00 from fridge", "\x00"),
        ("take \N{BANANA}", "\N{BANANA}"),
    ],
)
def test_only_words_of_the_game_reach_its_interpreter(cooking, action, word, tmp_path, monkeypatch):
    # The interpreter writes files into the current folder, and dies of control characters.
    monkeypatch.chdir(tmp_path)
    opening = cooking.reset()[-1]["content"]
    step = act(cooking, action)
    assert f"The game does not know the word {word!r}." in step.messages[0]["content"]
    assert step.results[0].is_error
    assert step.messages[0]["content"].partition("Possible actions:")[2] in opening
    assert not list(tmp_path.iterdir())
    assert not act(cooking, "look").results[0].is_error


def test_games_in_several_threads_are_played_as_one_by_one(textworld_cache):
    section = TextWorldSection(cache=textworld_cache, recipe=1, take=1, has_cutting=True)
    built = build_environment(section)

    def play(environment):
        opening = environment.reset()[-1]["content"]
        actions = ("look", "inventory", "examine cookbook", "go north", "look", "eat the table")
        seen = [act(environment, action).messages[0]["content"] for action in actions]
        environment.close()
        return [opening, *seen]

    alone = play(built.factory(TASK))
    environments = [built.factory(TASK) for _ in range(4)]
    output = sys.stdout
    with ToolRunner((), num_threads=4) as runner:
        pieces = [Piece(work=partial(play, one), timeout_s=None, overdue=str) for one in environments]
        assert runner.side_by_side(pieces) == [alone] * 4
    assert sys.stdout is output


def test_a_game_is_made_once_and_is_the_same_for_the_same_seed(
    textworld_cache, cooking, monkeypatch, tmp_path
):
    first = cooking.reset()
    monkeypatch.setattr(textworld_games, "_make", None)
    section = TextWorldSection(cache=textworld_cache, recipe=1, take=1, has_cutting=True)
    again = build_environment(section).factory(TASK)
    assert again.reset() == first
    again.close()


def test_a_treasure_hunt_is_lost_by_the_wrong_object_or_won(textworld_cache):
    built = build_environment(
        TextWorldSection(cache=textworld_cache, game="treasure", level=1, reward="success")
    )
    messages = expert_conversation(built.factory(TASK), TASK, max_turns=5)
    assert messages[-1]["role"] == "assistant"


def test_tasks_are_a_pure_function_of_their_request_and_splits_share_no_game():
    tasks = textworld_tasks(TaskRequest(num_tasks=3, seed=5))
    assert tasks == textworld_tasks(TaskRequest(num_tasks=3, seed=5))
    assert tasks[2:] == textworld_tasks(TaskRequest(num_tasks=1, seed=5, first=2))
    seeds = {
        split: {game_seed(seed, index, split=split) for seed in range(5) for index in range(200)}
        for split in ("train", "valid", "test")
    }
    assert all(len(own) == 1000 for own in seeds.values())
    assert not seeds["train"] & (seeds["valid"] | seeds["test"])
    assert max(max(own) for own in seeds.values()) < 2**32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"take": 2}, r"take = 2: wanted at most recipe = 1"),
        ({"level": 3}, 'level = 3: is not read by game = "cooking"'),
        ({"game": "treasure", "rooms": 6}, 'rooms = 6: is not read by game = "treasure"'),
        ({"rooms": 5}, "rooms = 5: wanted one of 1, 6, 9, 12"),
        ({"game": "treasure", "level": 31}, "level = 31: wanted at most 30"),
    ],
)
def test_settings_that_no_game_has_are_refused(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        TextWorldSection(cache=tmp_path, **values)


def test_requests_and_tasks_that_cannot_be_met_are_refused(tmp_path):
    with pytest.raises(DataError, match="num_tasks is 0; ask for at least 1"):
        textworld_tasks(TaskRequest(num_tasks=0))
    with pytest.raises(DataError, match=r"split is 'dev'; choose one of train, valid, test"):
        textworld_tasks(TaskRequest(num_tasks=1, split="dev"))
    with pytest.raises(DataError, match="index is -1; it counts from 0"):
        textworld_tasks(TaskRequest(num_tasks=1, first=-1))
    factory = build_environment(TextWorldSection(cache=tmp_path)).factory
    with pytest.raises(DataError, match="task 'x' has game_seed None and split None"):
        factory(Task(task_id="x", messages=TASK.messages))


def test_a_machine_without_textworld_says_what_to_install(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(textworld_games, "version", missing)
    with pytest.raises(
        ConfigError, match=r"textworld is not installed; run: pip install 'sod-kernels\[envs\]'"
    ):
        build_environment(TextWorldSection(cache=tmp_path))
