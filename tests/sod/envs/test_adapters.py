"""Environments of other libraries' users, run unchanged: TRL's classes and Gymnasium's."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium
import pytest
from wordy import BytesEnv, Echo, GuessEnv, GuessTheWord, NoReset, NoReward, NumberEnv, Picture, Strict

from sod.assembly import make_renderer
from sod.config_file import config_from_dict
from sod.engines.base import SamplingParams
from sod.engines.scripted import ScriptedEngine
from sod.envs.gym_env import GymSection, gym_environment
from sod.envs.registry import build_environment
from sod.envs.trl_env import TRLSection, trl_environment
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.rollout.collector import collect
from sod.rollout.limits import RolloutLimits
from sod.tools import ToolRunner
from sod.types import EndReason, Task

TASK = Task(
    task_id="w", messages=({"role": "user", "content": "Guess."},), fields={"word": "otter", "answer": "x"}
)


def call(name: str, **arguments) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def play(built, task, *texts):
    environment = built.factory(task)
    opening = environment.reset()
    steps = []
    with ToolRunner(built.tools) as runner:
        for text in texts:
            turn = parse_hermes(text)
            (results,) = runner.run_batch([turn.calls], tools=[environment.tools])
            steps.append(environment.step(turn, results))
    environment.close()
    return opening, steps


def test_a_trl_class_runs_as_it_is():
    built = trl_environment(GuessTheWord, success_threshold=0.5)
    assert [tool.name for tool in built.tools] == ["guess", "hint"]
    guess = call("guess", word="otter")
    opening, steps = play(built, TASK, call("hint", position=1), guess, guess, "Otter.")
    assert opening == ({"role": "user", "content": "Guess. It has 5 letters."},)
    assert TASK.messages[0]["content"] == "Guess."
    assert [step.messages[0]["content"] for step in steps[:2]] == ["o", "right"]
    # What a method raises goes back to the model.
    assert "Game over." in steps[2].messages[0]["content"]
    assert [round(step.reward, 6) for step in steps] == [-0.1, 1.0, 0.0, 0.0]
    assert (steps[-1].is_done, steps[-1].is_success) == (True, True)
    assert not steps[1].is_done


def test_reset_is_given_all_columns_as_trl_gives_them():
    built = trl_environment(GuessTheWord)
    environment = built.factory(TASK)
    environment.reset()
    instance = environment._instance
    assert instance.kwargs == {**TASK.fields, "prompt": [{"role": "user", "content": "Guess."}]}


def test_instances_are_used_again_but_never_by_two_attempts():
    GuessTheWord.made = 0
    built = trl_environment(GuessTheWord)
    first, second = built.factory(TASK), built.factory(TASK)
    first.reset()
    second.reset()
    assert GuessTheWord.made == 2
    first.close()
    third = built.factory(TASK)
    third.reset()
    assert GuessTheWord.made == 2


def test_async_tools_and_an_awaited_reward_work():
    opening, steps = play(trl_environment(Echo), TASK, call("echo", message="hello"), "Done.")
    assert opening == TASK.messages
    assert steps[0].messages[0]["content"] == "hello"
    assert [step.reward for step in steps] == [0.5, 0.0]
    assert not steps[-1].is_success


def test_a_dictionary_of_classes_is_chosen_from_by_the_task():
    built = trl_environment({"words": GuessTheWord, "echo": Echo})
    assert sorted(tool.name for tool in built.tools) == ["echo", "guess", "hint"]
    task = replace(TASK, fields={**TASK.fields, "environment": "words"})
    assert [tool.name for tool in built.factory(task).tools] == ["guess", "hint"]
    opening, _ = play(built, task, "x")
    assert "5 letters" in opening[0]["content"]
    with pytest.raises(DataError, match="task 'w' has environment None; wanted one of words, echo"):
        built.factory(TASK)


def test_a_trl_class_goes_through_a_whole_rollout(tiny_tokenizer):
    built = trl_environment(GuessTheWord)
    renderer = make_renderer(tiny_tokenizer, built, None)
    scripts = [
        (call("guess", word="otter"), "It is otter."),
        (call("hint", position=2), call("hint", position=3)),
    ]
    ids = [
        [tiny_tokenizer.encode(text + "<|im_end|>", add_special_tokens=False) for text in texts]
        for texts in scripts
    ]
    with ToolRunner(built.tools) as runner:
        solved, cut = collect(
            [TASK],
            engine=ScriptedEngine(ids),
            renderer=renderer,
            environment_factory=built.factory,
            limits=RolloutLimits(max_turns=2, max_turn_tokens=200, max_trajectory_tokens=4000),
            params=SamplingParams(max_turn_tokens=200, stop_ids=renderer.stop_ids),
            seed=0,
            runner=runner,
            num_samples=2,
        )
    assert (solved.reward, solved.is_success, solved.end_reason) == (1.0, True, EndReason.DONE)
    # An attempt that is cut off keeps the reward that it had.
    assert (cut.reward, cut.is_success, cut.end_reason) == (-0.2, False, EndReason.MAX_TURNS)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NoReset, "NoReset has no method reset"),
        (NoReward, "NoReward has neither get_reward"),
    ],
)
def test_a_class_that_is_no_environment_is_refused(cls, words):
    with pytest.raises(ConfigError, match=words):
        trl_environment(cls)


def test_what_reset_cannot_do_is_named():
    with pytest.raises(DataError, match=r"Picture.reset returned list; wanted text or None"):
        trl_environment(Picture).factory(TASK).reset()
    with pytest.raises(DataError, match=r"Strict.reset refuses the columns \['answer', 'prompt', 'wo"):
        trl_environment(Strict).factory(TASK).reset()


def test_a_toml_file_names_the_class(tmp_path):
    raw = {
        "run": {"output": "out"},
        "trainer": {"rounds": 1},
        "environment": {"name": "trl", "factory": "wordy:GuessTheWord"},
    }
    section = config_from_dict(raw, base=tmp_path).environment
    assert [tool.name for tool in build_environment(section).tools] == ["guess", "hint"]
    for name in ("wordy:Missing", "no_such_module:X", "wordy", ":X"):
        with pytest.raises(ConfigError, match=r"cannot be imported: .*wanted 'module:Class'"):
            build_environment(TRLSection(factory=name))


def gym_play(built, task, *actions):
    environment = built.factory(task)
    opening = environment.reset()[-1]["content"]
    steps = [environment.step(parse_hermes(f"<action>{action}</action>"), ()) for action in actions]
    environment.close()
    return opening, steps


def test_a_gymnasium_environment_of_text_runs_as_it_is():
    built = build_environment(GymSection(make="wordy:GuessEnv", success_threshold=0.7))
    task = replace(TASK, fields={"seed": 3, "options": {"words": ["otter"]}})
    opening, steps = gym_play(built, task, "tulip", "otter")
    assert opening == "Guess.\n\nGuess a word of 5 letters.\n\nPossible actions:\n- otter"
    assert [step.reward for step in steps] == [-0.25, 1.0]
    assert steps[0].messages[0]["content"] == "Wrong, 2 left."
    assert (steps[1].is_done, steps[1].is_success) == (True, True)
    _, steps = gym_play(built, task, "a", "b", "c")
    assert (steps[2].is_done, steps[2].is_success) == (True, False)


def test_a_registered_environment_runs_with_its_seed_and_is_closed():
    gymnasium.register("Guess-v0", entry_point="wordy:GuessEnv")
    built = build_environment(GymSection(make="Guess-v0"))
    words = {gym_play(built, replace(TASK, fields={"seed": seed}))[0] for seed in (1, 1, 1)}
    assert len(words) == 1
    made = []

    def make():
        made.append(GuessEnv())
        return made[-1]

    gym_play(gym_environment(make, GymSection(make="x")), TASK, "tulip")
    assert [env.is_closed for env in made] == [True, True]


def test_environments_that_are_not_text_are_refused():
    with pytest.raises(ConfigError, match=r"its actions are Discrete\(3\), wanted gymnasium.spaces.Text"):
        gym_environment(NumberEnv, GymSection(make="wordy:NumberEnv"))
    with pytest.raises(DataError, match="BytesEnv gave an observation of type bytes in task"):
        gym_environment(BytesEnv, GymSection(make="x")).factory(TASK).reset()


def test_an_environment_that_does_not_exist_is_named(monkeypatch):
    with pytest.raises(ConfigError, match=r"make = 'NoSuch-v1': .*NoSuch"):
        build_environment(GymSection(make="NoSuch-v1"))
    with pytest.raises(ConfigError, match="make = 'wordy:Missing': cannot be imported"):
        build_environment(GymSection(make="wordy:Missing"))
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(ConfigError, match="the package is not installed"):
        build_environment(GymSection(make="NoSuch-v1"))
